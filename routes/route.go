package routes

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Protocol is the routing protocol number (rtm_protocol, struct rtmsg of linux/rtnetlink.h) that every route of ours
// carries, and no other's: it is the whole of the ownership rule. The kernel gives numbers from 5 (after
// RTPROT_STATIC) no meaning. 102 is assigned neither in linux/rtnetlink.h (…, 99 openr, 186 bgp, …) nor in
// iproute2's rt_protos, nor used by FRR (186 to 197), BIRD (12), Felix (80), Cilium or Open/R.
const Protocol = 102

// ProtocolLearned is the number of the routes that routers announced over BGP (see [PlanLearned]). It is another one, so that
// they have an owner of their own: what is to be kept while no router has been heard yet is not mixed up with what is known from
// the cluster. It is as unassigned as [Protocol].
const ProtocolLearned = 103

// Metrics of our routes (RTA_PRIORITY; less is preferred). They are what the kernel takes when none is given, so
// that `ip route` prints our routes as it prints those made by hand: 0 for IPv4, IP6_RT_PRIO_USER of
// linux/ipv6_route.h for IPv6, where 0 means the same.
const (
	MetricIPv4 = 0
	MetricIPv6 = 1024
)

// MetricLearned is the metric of learned routes in both families. It is more than that of the routes to pods, and of nearly
// everything that is set by hand or by a DHCP client, so all of these win.
const MetricLearned = 2048

// A Route leads to the pods of another node, or to a network that routers announced. The kernel's identity of a route is Dst
// and Metric; Gateway and LinkIndex, or Hops, are what a replacement changes. All of ours are unicast routes of the main table
// with [Protocol] or [ProtocolLearned].
type Route struct {
	// Dst is the pod range or the network, masked.
	Dst netip.Prefix
	// Gateway is the node's address, of the family of Dst.
	Gateway netip.Addr
	// Link and LinkIndex name the link that Gateway is on. They are empty and 0 when the host is not known; Link is
	// also empty for a route read from the kernel over a link that the reader has no name for.
	Link      string
	LinkIndex int
	// Hops are the next hops when there are several, all of the same weight, ordered by CompareHops. Then Gateway, Link and
	// LinkIndex are empty.
	Hops []Hop
	// Metric is the priority; see [MetricIPv4] and [MetricLearned].
	Metric uint32
	// Learned tells that the route carries ProtocolLearned, not Protocol.
	Learned bool
	// Node and NodeUID name the owner of the pods, or this node when it is a learned route, for people. They are no part of
	// what the kernel stores.
	Node, NodeUID string
}

// A Hop is one of several next hops of a Route; its fields are as there.
type Hop struct {
	Gateway   netip.Addr
	Link      string
	LinkIndex int
}

// CompareHops orders hops by gateway and link.
func CompareHops(a, b Hop) int {
	return cmp.Or(a.Gateway.Compare(b.Gateway), cmp.Compare(a.LinkIndex, b.LinkIndex))
}

// String returns the hop as ip route prints it.
func (h Hop) String() string {
	var b strings.Builder
	if h.Gateway.IsValid() {
		b.WriteString("via " + h.Gateway.String())
	}
	switch {
	case h.Link != "":
		b.WriteString(" dev " + h.Link)
	case h.LinkIndex != 0:
		b.WriteString(" dev if" + strconv.Itoa(h.LinkIndex))
	}
	return strings.TrimSpace(b.String())
}

// NextHops returns the next hops, however many there are.
func (r Route) NextHops() []Hop {
	if len(r.Hops) > 0 {
		return r.Hops
	}
	return []Hop{{r.Gateway, r.Link, r.LinkIndex}}
}

// Via names the gateways, for people.
func (r Route) Via() string {
	var names []string
	for _, h := range r.NextHops() {
		names = append(names, h.Gateway.String())
	}
	return strings.Join(names, " and ")
}

// Protocol returns the protocol number that the route carries.
func (r Route) Protocol() uint8 {
	if r.Learned {
		return ProtocolLearned
	}
	return Protocol
}

// Ref names the node that the route leads to.
func (r Route) Ref() cluster.Ref { return cluster.Ref{Kind: "Node", Name: r.Node, UID: r.NodeUID} }

// Family is the address family of the route.
func (r Route) Family() cluster.Family { return cluster.FamilyOf(r.Dst.Addr()) }

// String returns the route as `ip route` and `ip -6 route` print it, without the space at the end of the line, and with
// several next hops on the same line.
func (r Route) String() string {
	var b strings.Builder
	b.WriteString(dstString(r.Dst))
	if len(r.Hops) == 0 {
		if hop := r.NextHops()[0].String(); hop != "" {
			b.WriteString(" " + hop)
		}
	}
	b.WriteString(" proto " + strconv.Itoa(int(r.Protocol())))
	if r.Metric != 0 {
		b.WriteString(" metric " + strconv.FormatUint(uint64(r.Metric), 10))
	}
	if r.Dst.Addr().Is6() {
		b.WriteString(" pref medium")
	}
	for _, h := range r.Hops {
		b.WriteString(" nexthop " + h.String() + " weight 1")
	}
	return b.String()
}

// dstString writes a destination as iproute2 does: without the length of a host's prefix, and "default" for all.
func dstString(p netip.Prefix) string {
	switch {
	case p.Bits() == 0:
		return "default"
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// Compare orders routes by family, destination, metric, then by what else the kernel stores of them.
func Compare(a, b Route) int {
	return cmp.Or(
		a.Dst.Addr().Compare(b.Dst.Addr()), // IPv4 sorts before IPv6
		cmp.Compare(a.Dst.Bits(), b.Dst.Bits()),
		cmp.Compare(a.Metric, b.Metric),
		slices.CompareFunc(a.NextHops(), b.NextHops(), CompareHops))
}

// A Table is all routes that this node should have, ordered by [Compare], with no two of the same Dst and Metric.
type Table struct {
	Routes []Route
	// Own are this node's own podCIDRs, but for those that other nodes do not route to it, for the reasons that a route is
	// refused for.
	Own []netip.Prefix
	// Held are those of all nodes, from the oldest node to the youngest.
	Held []Held
}

// Held is a podCIDR and the node that it is routed to, wherever that is.
type Held struct {
	Node   string
	Prefix netip.Prefix
}

// Lines returns the routes as [Route.String] does, one a line, each line ended; nothing for an empty Table.
func (t *Table) Lines() string {
	var b strings.Builder
	for _, r := range t.Routes {
		b.WriteString(r.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Changes is what turns one set of our routes into another.
type Changes struct {
	// Set are routes to be created, or to take the place of the one that has the same Dst and Metric.
	Set []Route
	// Delete are routes to be removed, after Set; each names exactly one, by all that the kernel stores.
	Delete []Route
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool { return len(c.Set) == 0 && len(c.Delete) == 0 }

// A Key is what the kernel knows a route of ours by.
type Key struct {
	Dst    netip.Prefix
	Metric uint32
}

// Key returns the route's key.
func (r Route) Key() Key { return Key{r.Dst, r.Metric} }

// Same reports whether the kernel stores the same for both.
func (r Route) Same(o Route) bool {
	return r.Key() == o.Key() && r.Learned == o.Learned && slices.EqualFunc(r.NextHops(), o.NextHops(), func(a, b Hop) bool { return CompareHops(a, b) == 0 })
}

// Diff returns the changes from have, our routes as the kernel lists them, to want. Link names and owners are not
// compared. have may be in any order and may hold several routes of one key (`ip route append`): the one that is
// as wanted stays, else the first is replaced; all others are deleted.
func Diff(have []Route, want *Table) Changes {
	wanted := make(map[Key]Route, len(want.Routes))
	for _, r := range want.Routes {
		wanted[r.Key()] = r
	}
	keep := make(map[Key]int, len(have))
	for i, h := range have {
		w, ok := wanted[h.Key()]
		if !ok {
			continue
		}
		if first, seen := keep[h.Key()]; !seen || (h.Same(w) && !have[first].Same(w)) {
			keep[h.Key()] = i
		}
	}
	var c Changes
	for i, h := range have {
		if at, ok := keep[h.Key()]; !ok || at != i {
			c.Delete = append(c.Delete, h)
		}
	}
	for _, w := range want.Routes {
		if at, ok := keep[w.Key()]; !ok || !have[at].Same(w) {
			c.Set = append(c.Set, w)
		}
	}
	slices.SortStableFunc(c.Delete, Compare)
	return c
}
