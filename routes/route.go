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

// Metrics of our routes (RTA_PRIORITY; less is preferred). They are what the kernel takes when none is given, so
// that `ip route` prints our routes as it prints those made by hand: 0 for IPv4, IP6_RT_PRIO_USER of
// linux/ipv6_route.h for IPv6, where 0 means the same.
const (
	MetricIPv4 = 0
	MetricIPv6 = 1024
)

// A Route leads to the pods of another node. The kernel's identity of a route is Dst and Metric; Gateway and LinkIndex
// are what a replacement changes. All of ours are unicast routes of the main table with [Protocol].
type Route struct {
	// Dst is the pod range, masked.
	Dst netip.Prefix
	// Gateway is the node's address, of the family of Dst.
	Gateway netip.Addr
	// Link and LinkIndex name the link that Gateway is on. They are empty and 0 when the host is not known; Link is
	// also empty for a route read from the kernel over a link that the reader has no name for.
	Link      string
	LinkIndex int
	// Metric is the priority; see [MetricIPv4].
	Metric uint32
	// Node and NodeUID name the owner of the pods, for people. They are no part of what the kernel stores.
	Node, NodeUID string
}

// Ref names the node that the route leads to.
func (r Route) Ref() cluster.Ref { return cluster.Ref{Kind: "Node", Name: r.Node, UID: r.NodeUID} }

// Family is the address family of the route.
func (r Route) Family() cluster.Family { return cluster.FamilyOf(r.Dst.Addr()) }

// String returns the route as `ip route` and `ip -6 route` print it, without the space at the end of the line.
func (r Route) String() string {
	var b strings.Builder
	b.WriteString(dstString(r.Dst))
	if r.Gateway.IsValid() {
		b.WriteString(" via " + r.Gateway.String())
	}
	switch {
	case r.Link != "":
		b.WriteString(" dev " + r.Link)
	case r.LinkIndex != 0:
		b.WriteString(" dev if" + strconv.Itoa(r.LinkIndex))
	}
	b.WriteString(" proto " + strconv.Itoa(Protocol))
	if r.Metric != 0 {
		b.WriteString(" metric " + strconv.FormatUint(uint64(r.Metric), 10))
	}
	if r.Dst.Addr().Is6() {
		b.WriteString(" pref medium")
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
		a.Gateway.Compare(b.Gateway),
		cmp.Compare(a.LinkIndex, b.LinkIndex))
}

// A Table is all routes that this node should have, ordered by [Compare], with no two of the same Dst and Metric.
type Table struct {
	Routes []Route
	// Own are this node's own podCIDRs, but for those that other nodes do not route to it, for the reasons that a route is
	// refused for.
	Own []netip.Prefix
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

// same reports whether the kernel stores the same for both.
func same(a, b Route) bool {
	return a.Key() == b.Key() && a.Gateway == b.Gateway && a.LinkIndex == b.LinkIndex
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
		if first, seen := keep[h.Key()]; !seen || (same(h, w) && !same(have[first], w)) {
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
		if at, ok := keep[w.Key()]; !ok || !same(have[at], w) {
			c.Set = append(c.Set, w)
		}
	}
	slices.SortStableFunc(c.Delete, Compare)
	return c
}
