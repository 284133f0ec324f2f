package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// A VIP is an address of a Service that this node serves: by the same decision that its rules are made of, traffic to it
// gets to an endpoint.
type VIP struct {
	Addr    netip.Addr
	Kind    Kind
	Service *cluster.Service
	// Local tells that it goes to endpoints of this node alone (policy Local).
	Local bool
}

// Plan returns what the node c.NodeName should announce and to whom, and a Note for what can't be. pods are the routes of the same
// Snapshot, of which the podCIDRs count that are routed to each node; vips are the addresses that this node serves.
func Plan(s *cluster.Snapshot, c Config, pods *routes.Table, vips []VIP) (*Table, []cluster.Note) {
	node := s.Node(c.NodeName)
	if node == nil {
		return &Table{}, nil // the absence of the node has a Note already
	}
	p := planner{config: c, node: node, asn: c.ASN, plain: plain, paths: make([]Path, 0, len(pods.Own)+len(vips))}
	p.annotated()
	t := &Table{ASN: p.config.ASN, RouterID: c.RouterID, ListenPort: c.ListenPort, Import: c.Import}
	if !t.RouterID.IsValid() {
		t.RouterID = node.InternalIP(cluster.IPv4)
	}
	if !t.RouterID.IsValid() {
		p.note(cluster.ReasonNodeIncomplete, "The node has no IPv4 InternalIP, which would be its BGP identifier; right would be one, or bgp.routerID in the agent's configuration.")
	}
	if p.config.KubeRouter != nil && node.KubeRouter != nil {
		t.ImportReject = node.KubeRouter.ImportReject
	}
	p.routerID = t.RouterID
	t.Peers = p.peers(t, s, pods.Held)
	p.announcePods(pods.Own)
	if !node.Excluded || c.FromExcluded {
		p.announceRanges(slices.Concat(c.ServiceCIDRs, s.ServiceCIDRs))
		p.announceVIPs(vips)
	}
	t.Paths = p.sorted()
	if why := p.draining(!s.Saved.IsZero()); why != "" {
		isPod := func(path Path) bool { return path.Kind == PodCIDRs }
		t.Draining = Leaving(slices.DeleteFunc(slices.Clone(t.Paths), isPod))
		t.Paths = slices.DeleteFunc(t.Paths, func(path Path) bool { return !isPod(path) })
		p.note(cluster.ReasonBGPDraining, "The node draws no traffic to Services, as %s; its pods stay announced, and its sessions stay up.", why)
	}
	return t, p.notes
}

// A planner is the working state of one call of Plan.
type planner struct {
	config Config
	node   *cluster.Node
	// asn is what the operator says, before annotations; routerID the node's BGP identifier.
	asn      uint32
	routerID netip.Addr
	// plain are the attributes of what only a Service's annotation asks to announce.
	plain *Attributes
	// nextHops are those that paths have to name, by family; see peers.
	nextHops [2]netip.Addr
	paths    []Path
	notes    []cluster.Note
}

func (p *planner) note(reason, format string, args ...any) {
	p.notes = append(p.notes, cluster.Note{Object: p.node.Ref(), Reason: reason, Detail: fmt.Sprintf(format, args...)})
}

// peers returns the peers of the node. Where a session carries a family that is not its own, its end is no next hop: then
// the paths of that family name the node's InternalIP.
func (p *planner) peers(t *Table, s *cluster.Snapshot, held []routes.Held) (peers []Peer) {
	for _, candidate := range p.config.Peers {
		peer := candidate.Peer
		if !p.takes(candidate) {
			continue
		}
		if slices.ContainsFunc(peers, func(o Peer) bool { return o.Address == peer.Address }) {
			p.note(cluster.ReasonInvalidField, "Two of bgp.peers have the address %s and node selectors that take this node; the first counts. Right would be selectors of which one at most does.", peer.Address)
			continue
		}
		peers = append(peers, peer)
	}
	peers = append(peers, p.mesh(t, s, held, peers)...)
	for n := range peers {
		peer := &peers[n]
		if t.Reflects && peer.Node == "" && peer.ASN == p.config.ASN {
			peer.ClusterID = p.clusterID() // a router is told what nodes announce, too
		}
		for i, f := range cluster.Families {
			if !peer.Families[i] || cluster.FamilyOf(peer.Address) == f {
				continue
			}
			if p.nextHops[i] = p.node.InternalIP(f); !p.nextHops[i].IsValid() {
				peer.Families[i] = false
				p.note(cluster.ReasonNodeIncomplete, "The node has no %s InternalIP, which would be the next hop in the session with %s; %s is not announced there.", f, peer.Address, f)
			}
		}
	}
	order := make([]int32, len(peers)) // of thousands of nodes, moving the peers themselves would take several times as long
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(i, j int32) int { return peers[i].Address.Compare(peers[j].Address) })
	sorted := make([]Peer, len(peers))
	for i, n := range order {
		sorted[i] = peers[n]
	}
	return sorted
}

// attributes returns those with which a kind is announced, or nil when it is not.
func (p *planner) attributes(k Kind) *Attributes {
	for i := range p.config.Announce {
		if slices.Contains(p.config.Announce[i].Kinds, k) {
			return &p.config.Announce[i].Attributes
		}
	}
	return nil
}

// plain are attributes that nobody has set.
var plain = &Attributes{LocalPref: DefaultLocalPref}

func (p *planner) announcePods(pods []netip.Prefix) {
	if a := p.attributes(PodCIDRs); a != nil {
		for _, prefix := range pods {
			p.add(prefix, PodCIDRs, a, nil)
		}
	}
}

func (p *planner) announceRanges(ranges []netip.Prefix) {
	a := p.attributes(ServiceCIDRs)
	if a == nil {
		return
	}
	if len(ranges) == 0 {
		p.note(cluster.ReasonInvalidField, "bgp.announce has ServiceCIDRs, but neither serviceCIDRs in the agent's configuration nor a ServiceCIDR object says what they are; right would be one of the two, or ClusterIPs.")
	}
	for _, prefix := range ranges {
		p.add(prefix, ServiceCIDRs, a, nil)
	}
}

func (p *planner) announceVIPs(vips []VIP) {
	for _, v := range vips {
		if a := p.wanted(v); a != nil {
			p.add(netip.PrefixFrom(v.Addr, v.Addr.BitLen()), v.Kind, a, v.Service)
		}
	}
}

// wanted returns the attributes with which an address is announced, or nil when it is not: the Service's annotation decides,
// else kube-router's, else the configuration.
func (p *planner) wanted(v VIP) *Attributes {
	a := p.attributes(v.Kind)
	if choice := v.Service.Announce; choice.Given {
		asked := map[Kind]bool{ClusterIPs: choice.ClusterIPs, ExternalIPs: choice.ExternalIPs, LoadBalancerIPs: choice.LoadBalancerIPs}
		switch {
		case !asked[v.Kind]:
			return nil
		case a == nil:
			return p.plain
		}
		return a
	}
	switch p.annotatedChoice(v.Service, v.Kind) {
	case cluster.No:
		return nil
	case cluster.Yes:
		return cmp.Or(a, p.plain)
	}
	if a == nil && v.Kind == ClusterIPs && v.Local {
		return p.attributes(ServiceCIDRs) // more specific than the range, so that it leads to where the endpoints are
	}
	return a
}

func (p *planner) add(prefix netip.Prefix, k Kind, a *Attributes, s *cluster.Service) {
	p.paths = append(p.paths, Path{Prefix: prefix, NextHop: p.nextHops[familyIndex(prefix.Addr())], Attributes: a, Kind: k, Service: s})
}

// sorted returns the paths in order, the first by kind and Service of each prefix.
func (p *planner) sorted() []Path {
	name := func(s *cluster.Service) string {
		if s == nil {
			return ""
		}
		return s.Namespace + "/" + s.Name
	}
	order := make([]int32, len(p.paths)) // of ten thousand, moving the paths themselves would take twice as long
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(i, j int32) int {
		a, b := &p.paths[i], &p.paths[j]
		if c := cmp.Or(comparePrefixes(a.Prefix, b.Prefix), cmp.Compare(a.Kind, b.Kind)); c != 0 {
			return c
		}
		return cmp.Compare(name(a.Service), name(b.Service))
	})
	sorted := make([]Path, 0, len(order))
	for _, i := range order {
		if n := len(sorted); n == 0 || sorted[n-1].Prefix != p.paths[i].Prefix {
			sorted = append(sorted, p.paths[i])
		}
	}
	return sorted
}
