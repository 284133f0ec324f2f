package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Learned is a network that BGP peers announced, and where they would have its traffic sent.
type Learned struct {
	Prefix netip.Prefix
	// Ways are all that are equally good, in any order; there is one at least.
	Ways []Way
}

// A Way is a next hop, and the BGP peer that named it.
type Way struct{ NextHop, Peer netip.Addr }

// PlanLearned returns the routes to networks that routers announced, and Notes for those that get none: routers are believed
// about the world, never about what is the cluster's own. So there is no route to all addresses, however wide the configured
// ranges are, and none to anything inside the pods' networks, the service ranges, a Service's addresses, or a network that this
// machine is in. (A wider network is no harm: the kernel prefers the more specific route.) A route has all next hops that are on
// a link of this node, and the kernel spreads connections over them.
//
// There is one Note for each reason, however many prefixes there are, and it names the first of them: routers may announce
// anything.
func PlanLearned(s *cluster.Snapshot, c Config, learned []Learned) (*Table, []cluster.Note) {
	own := s.Node(c.NodeName)
	if own == nil || len(learned) == 0 {
		return &Table{}, nil
	}
	p := learnedPlanner{
		own: own, ranges: ownRanges(s, c), hops: newHops(s.Host, own, own.PodCIDRs),
		found: map[netip.Addr]hop{}, refused: map[refusal][]netip.Prefix{},
	}
	for _, l := range slices.SortedFunc(slices.Values(learned), func(a, b Learned) int {
		return Compare(Route{Dst: a.Prefix}, Route{Dst: b.Prefix})
	}) {
		p.add(l)
	}
	slices.SortFunc(p.routes, Compare)
	return &Table{Routes: p.routes}, p.notes()
}

// A learnedPlanner is the working state of one call of PlanLearned.
type learnedPlanner struct {
	own     *cluster.Node
	ranges  *prefixMap[owner]
	hops    *hops
	found   map[netip.Addr]hop // what hops says, as few routers announce many prefixes
	routes  []Route
	refused map[refusal][]netip.Prefix
}

// A refusal is what is said of prefixes that a peer announced.
type refusal struct {
	peer netip.Addr
	why  string
}

// An owner is whose a range is, in two words: "the pods' network" and "", "the podCIDR of node" and "n1".
type owner struct{ what, name string }

// ownRanges are those that no router is believed about.
func ownRanges(s *cluster.Snapshot, c Config) *prefixMap[owner] {
	m := newPrefixMap[owner](len(s.Nodes))
	put := func(p netip.Prefix, what, name string) {
		if _, ok := m.values[p.Masked()]; p.IsValid() && !ok {
			m.put(p.Masked(), owner{what, name})
		}
	}
	for _, p := range c.ClusterCIDRs {
		put(p, "the pods' network", "")
	}
	for _, p := range slices.Concat(c.ServiceCIDRs, s.ServiceCIDRs) {
		put(p, "the service range", "")
	}
	for _, n := range s.Nodes {
		for _, p := range n.PodCIDRs {
			put(p, "the podCIDR of node", n.Name)
		}
	}
	if s.Host != nil {
		for _, link := range s.Host.Links {
			for _, a := range link.Addrs {
				put(a, "the network of link", link.Name)
			}
		}
	}
	for _, svc := range s.Services {
		for _, list := range [...][]netip.Addr{svc.ClusterIPs, svc.ExternalIPs, svc.LoadBalancerIPs} {
			for _, a := range list {
				if a.IsValid() {
					put(host(a), "an address of Service", svc.Namespace+"/"+svc.Name)
				}
			}
		}
	}
	return m
}

func (p *learnedPlanner) add(l Learned) {
	l.Prefix = l.Prefix.Masked()
	if why := p.refuses(l.Prefix); why != "" {
		p.refuse(l.Ways[0].Peer, l.Prefix, "is not imported: "+why)
		return
	}
	var good []Hop
	for _, w := range l.Ways {
		switch h := p.hop(w.NextHop); {
		case cluster.FamilyOf(w.NextHop) != cluster.FamilyOf(l.Prefix.Addr()):
			p.refuse(w.Peer, l.Prefix, fmt.Sprintf("is not sent to one of its next hops: %s is of another family; right would be one of the same", w.NextHop))
		case h.problem != "":
			p.refuse(w.Peer, l.Prefix, "is not sent to one of its next hops: "+strings.TrimSuffix(h.problem, "."))
		case h.link == nil:
			good = append(good, Hop{Gateway: w.NextHop})
		default:
			good = append(good, Hop{w.NextHop, h.link.Name, h.link.Index})
		}
	}
	slices.SortFunc(good, CompareHops)
	good = slices.CompactFunc(good, func(a, b Hop) bool { return CompareHops(a, b) == 0 })
	r := Route{Dst: l.Prefix, Metric: MetricLearned, Learned: true, Node: p.own.Name, NodeUID: p.own.UID}
	switch len(good) {
	case 0:
		return
	case 1:
		r.Gateway, r.Link, r.LinkIndex = good[0].Gateway, good[0].Link, good[0].LinkIndex
	default:
		r.Hops = good
	}
	p.routes = append(p.routes, r)
}

func (p *learnedPlanner) hop(a netip.Addr) hop {
	h, known := p.found[a]
	if !known {
		h = p.hops.check(a, cluster.FamilyOf(a), "the address")
		p.found[a] = h
	}
	return h
}

func (p *learnedPlanner) refuse(peer netip.Addr, prefix netip.Prefix, why string) {
	key := refusal{peer, why}
	p.refused[key] = append(p.refused[key], prefix)
}

// refuses says why there is to be no route to a prefix; "" when there may be one.
func (p *learnedPlanner) refuses(prefix netip.Prefix) string {
	if prefix.Bits() == 0 {
		return "a default route is the machine's own; right would be a static one"
	}
	for _, never := range neverPods {
		if never.prefix.Overlaps(prefix) {
			return fmt.Sprintf("it overlaps %s (%s); right would be unicast networks that are not so wide", never.prefix, never.what)
		}
	}
	for within, o := range p.ranges.covering(prefix) {
		return fmt.Sprintf("it is inside %s, which is %s; right would be a router that does not announce what is the cluster's own",
			within, strings.TrimSpace(o.what+" "+o.name))
	}
	return ""
}

// named is how many prefixes a Note names.
const named = 3

func (p *learnedPlanner) notes() (notes []cluster.Note) {
	for r, list := range p.refused {
		text := ""
		for _, prefix := range list[:min(len(list), named)] {
			text += ", " + prefix.String()
		}
		if len(list) > named {
			text += ", …"
		}
		notes = append(notes, cluster.Note{Object: p.own.Ref(), Reason: cluster.ReasonImportRefused,
			Detail: fmt.Sprintf("Of what the BGP peer %s announces, %s %s.", r.peer, text[2:], r.why)})
	}
	return cluster.SortNotes(notes)
}
