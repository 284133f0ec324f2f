package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// A MeshConfig says which nodes have iBGP sessions with each other. Every node decides by the same Nodes, so that both ends of a
// session expect it, with the same addresses and families.
type MeshConfig struct {
	// NodeSelector are labels, as Node.Labels has them, of the nodes that take part; all when empty.
	NodeSelector []string
	// ReflectorSelector are the labels of route reflectors (RFC 4456), which take part whatever NodeSelector says: the other nodes
	// have sessions with these alone. When it is empty, and no annotation of kube-router makes a node one, each node has a
	// session with each.
	ReflectorSelector []string
	// ClusterID is that of all reflectors; the zero Addr stands for each reflector's BGP identifier.
	ClusterID netip.Addr
	// Session is what the sessions are like. Its RestartTime is what reflectors are asked for.
	Session Peer
	// ServiceRanges are where ExternalIPs and LoadBalancerIPs are from, as far as reflectors pass them on.
	ServiceRanges map[Kind][]netip.Prefix
}

// fullMeshMost is the number of nodes up to which a session of each with each is taken as meant.
const fullMeshMost = 100

// A meshNode is a node that takes part.
type meshNode struct {
	*cluster.Node
	reflector bool
	// addresses are the node's ends of its sessions, by family; the zero Addr where it has none.
	addresses [2]netip.Addr
	asn       uint32
}

// mesh returns the peers of this node that are other nodes, and has the Table reflect if it is a reflector. taken are the addresses
// of routers.
func (p *planner) mesh(t *Table, s *cluster.Snapshot, held []routes.Held, taken []Peer) (peers []Peer) {
	c := p.config.Mesh
	if c == nil {
		return nil
	}
	own := p.meshNode(p.node)
	if own == nil {
		return nil
	}
	nodes, reflectors := p.meshNodes(s)
	if len(c.ReflectorSelector) > 0 && reflectors == 0 {
		p.note(cluster.ReasonBGPMeshIncomplete, "No node has the labels %s of route reflectors (bgp.mesh.reflectorSelector), so there are no sessions between nodes; right would be the labels on two or three nodes.",
			strings.Join(c.ReflectorSelector, ","))
		return nil
	}
	if own.addresses == ([2]netip.Addr{}) {
		p.note(cluster.ReasonNodeIncomplete, "The node has no InternalIP from which it could have sessions with other nodes (bgp.mesh).")
		return nil
	}
	if reflectors == 0 && len(nodes) > fullMeshMost {
		p.note(cluster.ReasonBGPMeshLarge, "Each of %d nodes has a BGP session with each; right would be two or three route reflectors (bgp.mesh.reflectorSelector) for more than %d.", len(nodes), fullMeshMost)
	}
	const router, self = "", "this node"
	used := make(map[netip.Addr]string, len(nodes)) // by which node, or a router
	for _, peer := range taken {
		used[peer.Address] = router
	}
	for _, a := range own.addresses {
		used[a] = self
	}
	var pods map[string][2]netip.Prefix
	if own.reflector {
		t.Reflects, t.Reflected = true, p.reflected(s)
		pods = podsByNode(held)
	}
	var apart, foreign []string
	peers = make([]Peer, 0, len(nodes))
	for i := range nodes {
		other := &nodes[i]
		if other.Name == p.node.Name || reflectors > 0 && !own.reflector && !other.reflector {
			continue
		}
		peer, ok := p.meshPeer(own, other)
		switch who, is := used[peer.Address]; {
		case other.asn != own.asn:
			foreign = append(foreign, other.Name)
			continue
		case !ok:
			apart = append(apart, other.Name)
			continue
		case is:
			whose := map[string]string{router: "a router in bgp.peers", self: self}[who]
			p.note(cluster.ReasonBGPMeshIncomplete, "There is no session with node %s: its address %s is also that of %s. Right would be addresses of their own.",
				other.Name, peer.Address, cmp.Or(whose, "node "+who))
			continue
		}
		used[peer.Address] = other.Name
		if own.reflector {
			peer.Pods = pods[other.Name]
		}
		peers = append(peers, peer)
	}
	p.noteMissing(apart, "no InternalIP there is of a family that this node has one of")
	p.noteMissing(foreign, "another autonomous system is there (annotation kube-router.io/node.asn)")
	return peers
}

// noteMissing tells, in one Note however many they are, of nodes that there is no session with.
func (p *planner) noteMissing(names []string, why string) {
	if len(names) > 0 {
		p.note(cluster.ReasonBGPMeshIncomplete, "There is no session with %s: %s.", FewNodes(names), why)
	}
}

// FewNodes names the first of several nodes, for people.
func FewNodes(names []string) string {
	const most = 3
	if len(names) == 1 {
		return "node " + names[0]
	}
	text := "nodes " + strings.Join(names[:min(most, len(names))], ", ")
	if len(names) > most {
		text += fmt.Sprintf(" and %d more", len(names)-most)
	}
	return text
}

// meshNodes returns the nodes that take part, and how many of them are reflectors.
func (p *planner) meshNodes(s *cluster.Snapshot) (nodes []meshNode, reflectors int) {
	nodes = make([]meshNode, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		if m := p.meshNode(n); m != nil {
			nodes = append(nodes, *m)
			if m.reflector {
				reflectors++
			}
		}
	}
	return nodes, reflectors
}

// meshNode returns what a node is in the mesh; nil for one that takes no part.
func (p *planner) meshNode(n *cluster.Node) *meshNode {
	c := p.config.Mesh
	m := meshNode{Node: n, asn: p.asn, reflector: len(c.ReflectorSelector) > 0 && n.HasLabels(c.ReflectorSelector)}
	if p.config.KubeRouter != nil && n.KubeRouter != nil {
		m.reflector = m.reflector || n.KubeRouter.ReflectorClusterID.IsValid()
		if n.KubeRouter.ASN != 0 {
			m.asn = n.KubeRouter.ASN
		}
	}
	if !m.reflector && !n.HasLabels(c.NodeSelector) {
		return nil
	}
	for i, f := range cluster.Families {
		if a := n.InternalIP(f); a.IsGlobalUnicast() {
			m.addresses[i] = a
		}
	}
	return &m
}

// meshPeer returns another node as a peer; ok is false when the two have no family in common. The session is over IPv4 where both have
// it, and carries the families that both have. Of two that are alike, the one with the higher address connects, and a reflector
// leaves it to its clients: gobgp 3 resolves no collision of two connections (RFC 4271, section 6.8), but closes both.
func (p *planner) meshPeer(own, other *meshNode) (peer Peer, ok bool) {
	peer = p.config.Mesh.Session
	peer.ASN, peer.Node, peer.RestartTime = own.asn, other.Name, 0
	for i := range cluster.Families {
		peer.Families[i] = own.addresses[i].IsValid() && other.addresses[i].IsValid()
		if peer.Families[i] && !peer.Address.IsValid() {
			peer.Address, peer.LocalAddress = other.addresses[i], own.addresses[i]
		}
	}
	peer.Passive = peer.LocalAddress.Less(peer.Address)
	if own.reflector != other.reflector {
		peer.Passive = own.reflector
	}
	// Routes are to be kept by those that pass them on. gobgp 3 can come from a restart for a few peers only, one after another, so
	// a reflector asks its many clients for nothing: what it tells them, each knows from elsewhere.
	if other.reflector {
		peer.RestartTime = p.config.Mesh.Session.RestartTime
	} else if own.reflector {
		peer.Helps, peer.ClusterID = p.config.Mesh.Session.RestartTime > 0, p.clusterID()
	}
	return peer, peer.Address.IsValid()
}

// clusterID is this node's as a reflector.
func (p *planner) clusterID() netip.Addr {
	if kr := p.node.KubeRouter; p.config.KubeRouter != nil && kr != nil && kr.ReflectorClusterID.IsValid() {
		return kr.ReflectorClusterID
	}
	if p.config.Mesh.ClusterID.IsValid() {
		return p.config.Mesh.ClusterID
	}
	return p.routerID
}

// reflected returns the addresses of Services that are passed on: the service ranges as a whole, and single addresses.
func (p *planner) reflected(s *cluster.Snapshot) (ranges []ImportRange) {
	add := func(prefix netip.Prefix, least int) {
		r := ImportRange{Prefix: prefix, Least: uint8(least), Most: uint8(least)}
		if !slices.Contains(ranges, r) {
			ranges = append(ranges, r)
		}
	}
	for _, prefix := range slices.Concat(p.config.ServiceCIDRs, s.ServiceCIDRs) {
		add(prefix, prefix.Bits())
		add(prefix, prefix.Addr().BitLen())
	}
	for _, k := range []Kind{ExternalIPs, LoadBalancerIPs} {
		from := p.config.Mesh.ServiceRanges[k]
		for _, prefix := range from {
			add(prefix, prefix.Addr().BitLen())
		}
		if p.attributes(k) != nil && len(from) == 0 {
			p.note(cluster.ReasonBGPMeshIncomplete, "%s are announced, but this route reflector does not pass them on, as nothing says where they are from; right would be %s in the agent's configuration.",
				k, map[Kind]string{ExternalIPs: "externalIPs.ranges", LoadBalancerIPs: "loadBalancerIPs.ranges"}[k])
		}
	}
	slices.SortFunc(ranges, func(a, b ImportRange) int {
		if c := comparePrefixes(a.Prefix, b.Prefix); c != 0 {
			return c
		}
		return int(a.Least) - int(b.Least)
	})
	return ranges
}

// podsByNode returns the podCIDRs that are routed to each node, by family; of several of one family, the first.
func podsByNode(held []routes.Held) map[string][2]netip.Prefix {
	pods := make(map[string][2]netip.Prefix, len(held))
	for _, h := range held {
		of := pods[h.Node]
		if i := familyIndex(h.Prefix.Addr()); !of[i].IsValid() {
			of[i] = h.Prefix
			pods[h.Node] = of
		}
	}
	return pods
}
