package routes

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Config is what the operator says about the network.
type Config struct {
	// NodeName is the node that the plan is for.
	NodeName string
	// ClusterCIDRs are the ranges, of both families, that pods have addresses from. When there are any of a family,
	// a podCIDR of that family outside them is refused; when there are none, every range is plausible.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are ranges that ClusterIPs are from, besides those that the Snapshot has. For a family without any, the
	// ClusterIPs that exist stand for the range.
	ServiceCIDRs []netip.Prefix
}

// Plan returns the routes that the node c.NodeName should have, and a Note for every range and node that gets none.
// It takes time in proportion to the number of nodes and services, whatever their ranges.
//
// A Snapshot without a Host (offline) gives routes without a link; what only the Host's links can tell is then not
// checked.
func Plan(s *cluster.Snapshot, c Config) (*Table, []cluster.Note) {
	p := newPlanner(s, c)
	p.judge()
	p.settle()
	p.hops = newHops(s.Host, p.own.node, p.ownRanges())
	for i := range p.members {
		if m := &p.members[i]; m.node.Name != c.NodeName {
			p.routeTo(m)
		}
	}
	slices.SortFunc(p.routes, Compare)
	return &Table{Routes: p.routes, Own: p.held(), Held: p.heldByAll()}, cluster.SortNotes(p.notes)
}

// A member is a node with its claims.
type member struct {
	node   *cluster.Node
	claims []claim
}

// A claim is one podCIDR of one node.
type claim struct {
	node   *cluster.Node
	prefix netip.Prefix
	inside *rangeFacts // what lies inside prefix; all claims to one prefix have the same
	// refused is true when the claim gets no route, for a reason that has been noted.
	refused bool
	// lost is true when other nodes do not route the claim to its node, although this node, which it is, keeps it: an older
	// node's range overlaps it, or it covers hosts.
	lost bool
	// rivals are the younger claims that lost against this one.
	rivals []*claim
}

// A planner is the working state of one call of Plan.
type planner struct {
	snap *cluster.Snapshot
	own  *member // without a node while the API does not know this one

	podRanges, serviceRanges [2][]netip.Prefix // by familyIndex

	members []member // from the oldest to the youngest
	claims  []claim  // in the order of members, each of which has a part of them
	ranges  *prefixMap[*rangeFacts]
	hops    *hops

	routes []Route
	notes  []cluster.Note
}

func newPlanner(s *cluster.Snapshot, c Config) *planner {
	total := 0
	for _, n := range s.Nodes {
		total += len(n.PodCIDRs)
	}
	p := &planner{
		snap: s, own: &member{},
		podRanges: byFamily(c.ClusterCIDRs), serviceRanges: byFamily(slices.Concat(c.ServiceCIDRs, s.ServiceCIDRs)),
		members: make([]member, 0, len(s.Nodes)),
		claims:  make([]claim, 0, total), // never grows, so members and rivals can point into it
		ranges:  newPrefixMap[*rangeFacts](total),
		routes:  make([]Route, 0, total),
	}
	for _, n := range byAge(s.Nodes) {
		first := len(p.claims)
		for _, given := range n.PodCIDRs {
			p.claim(n, given.Masked(), first)
		}
		p.members = append(p.members, member{node: n, claims: p.claims[first:len(p.claims):len(p.claims)]})
		if n.Name == c.NodeName {
			p.own = &p.members[len(p.members)-1]
		}
	}
	return p
}

// claim records one podCIDR of a node whose claims begin at first; a second equal one of the same node is none.
func (p *planner) claim(n *cluster.Node, prefix netip.Prefix, first int) {
	if !prefix.IsValid() {
		return
	}
	for i := range p.claims[first:] {
		if p.claims[first+i].prefix == prefix {
			return
		}
	}
	inside := p.ranges.values[prefix]
	if inside == nil {
		inside = &rangeFacts{}
		p.ranges.put(prefix, inside)
	}
	p.claims = append(p.claims, claim{node: n, prefix: prefix, inside: inside})
}

// ownRanges are the podCIDRs of this node that are plausible, whoever else claims them.
func (p *planner) ownRanges() []netip.Prefix {
	var ranges []netip.Prefix
	for _, c := range p.own.claims {
		if !c.refused {
			ranges = append(ranges, c.prefix)
		}
	}
	return ranges
}

// held are the podCIDRs of this node that other nodes route to it.
func (p *planner) held() []netip.Prefix {
	var ranges []netip.Prefix
	for _, c := range p.own.claims {
		if !c.refused && !c.lost {
			ranges = append(ranges, c.prefix)
		}
	}
	return ranges
}

// heldByAll are the podCIDRs of all nodes that other nodes route to them.
func (p *planner) heldByAll() []Held {
	all := make([]Held, 0, len(p.claims))
	for _, c := range p.claims {
		if !c.refused && !c.lost {
			all = append(all, Held{c.node.Name, c.prefix})
		}
	}
	return all
}

// byAge returns the nodes from the oldest to the youngest. Creation times have whole seconds, so nodes of one second
// are told apart by UID and name: what matters is that every agent finds the same order.
func byAge(nodes []*cluster.Node) []*cluster.Node {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, compareAge)
	return sorted
}

func compareAge(a, b *cluster.Node) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(a.UID, b.UID), strings.Compare(a.Name, b.Name))
}

// routeTo adds the routes to one other node, or notes why there are none.
func (p *planner) routeTo(m *member) {
	n := m.node
	p.noteIncomplete(m)
	var found [2]hop // one next hop for each family, looked up once
	for i := range m.claims {
		c := &m.claims[i]
		if c.refused {
			continue
		}
		f := cluster.FamilyOf(c.prefix.Addr())
		h := &found[familyIndex(c.prefix.Addr())]
		if h.problem == "" && !h.addr.IsValid() {
			if *h = p.hops.find(n, f); h.problem != "" {
				p.note(n, cluster.ReasonNextHopUnreachable, h.problem)
			}
		}
		if !h.addr.IsValid() {
			continue
		}
		r := Route{Dst: c.prefix, Gateway: h.addr, Node: n.Name, NodeUID: n.UID, Metric: MetricIPv4}
		if f == cluster.IPv6 {
			r.Metric = MetricIPv6
		}
		if h.link != nil {
			r.Link, r.LinkIndex = h.link.Name, h.link.Index
		}
		p.routes = append(p.routes, r)
	}
}

// noteIncomplete notes what a node lacks. A family that the node half has is worth a note only when this node uses the
// family too: in a cluster of one family, nodes may well have stray addresses of the other.
func (p *planner) noteIncomplete(m *member) {
	n, own := m.node, p.own.node
	if len(m.claims) == 0 {
		p.note(n, cluster.ReasonNodeIncomplete, "The node has no podCIDR yet; it gets a route when spec.podCIDRs is set.")
		return
	}
	if len(n.InternalIPs) == 0 {
		p.note(n, cluster.ReasonNodeIncomplete,
			"The node has no InternalIP yet; it gets a route when status.addresses has one.")
		return
	}
	for _, f := range cluster.Families {
		if own != nil && !own.PodCIDR(f).IsValid() {
			continue
		}
		pods, addr := n.PodCIDR(f), n.InternalIP(f)
		switch {
		case pods.IsValid() && !addr.IsValid():
			p.note(n, cluster.ReasonNodeIncomplete, fmt.Sprintf(
				"The node has the %s podCIDR %s but no InternalIP of that family; it needs one to be the next hop.", f, pods))
		case !pods.IsValid() && own != nil:
			p.note(n, cluster.ReasonNodeIncomplete, fmt.Sprintf(
				"The node has no %s podCIDR, while this node has %s; pods of the two do not reach each other over %s.",
				f, own.PodCIDR(f), f))
		}
	}
}

func (p *planner) note(n *cluster.Node, reason, detail string) {
	p.notes = append(p.notes, cluster.Note{Object: n.Ref(), Reason: reason, Detail: detail})
}

// created writes a node's creation time for a note.
func created(n *cluster.Node) string {
	if n.Created.IsZero() {
		return "at an unknown time"
	}
	return n.Created.UTC().Format(time.RFC3339)
}
