package routes

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A hop is a next hop, or why there is none.
type hop struct {
	addr    netip.Addr
	link    *cluster.Link // nil when the host is not known
	problem string        // a sentence; empty when there is nothing to be said
}

// hops finds next hops on the links of this host.
type hops struct {
	known    bool                      // whether there is a host
	attached *prefixMap[*attachment]   // the networks of its links
	networks map[cluster.Family]string // the same in words
	mine     map[netip.Addr]string     // this node's addresses, with where they are
	pods     []netip.Prefix            // this node's own podCIDRs
}

// An attachment is a network, and the links that are in it.
type attachment struct {
	up, down *cluster.Link // the first of either kind
}

func newHops(h *cluster.Host, own *cluster.Node, pods []netip.Prefix) *hops {
	hs := &hops{
		attached: newPrefixMap[*attachment](0), pods: pods,
		networks: map[cluster.Family]string{}, mine: map[netip.Addr]string{},
	}
	if own != nil {
		for _, a := range own.InternalIPs {
			hs.mine[a] = "node " + own.Name
		}
	}
	if h == nil {
		return hs
	}
	hs.known = true
	words := map[cluster.Family][]string{}
	for i := range h.Links {
		link := &h.Links[i]
		for _, a := range link.Addrs {
			hs.mine[a.Addr()] = "link " + link.Name
			if hs.attach(link, a) {
				f := cluster.FamilyOf(a.Addr())
				words[f] = append(words[f], fmt.Sprintf("%s on %s", a.Masked(), link.Name))
			}
		}
	}
	for f, w := range words {
		hs.networks[f] = strings.Join(w, ", ")
	}
	return hs
}

// attach records that link is in the network of its address a. It reports false for a network in which no node can
// be a next hop: loopback, link-local, a single address, or one of this node's own pods.
func (hs *hops) attach(link *cluster.Link, a netip.Prefix) bool {
	network := a.Masked()
	if link.Loopback || a.IsSingleIP() || !usable(a.Addr()) || inside(hs.pods, network) {
		return false
	}
	at := hs.attached.values[network]
	if at == nil {
		at = &attachment{}
		hs.attached.put(network, at)
	}
	switch {
	case link.Up && at.up == nil:
		at.up = link
	case !link.Up && at.down == nil:
		at.down = link
	}
	return true
}

// find returns the first InternalIP of a node that can be a next hop of family f. A node without any InternalIP of f
// has no hop and no problem: that it is incomplete is noted elsewhere.
func (hs *hops) find(n *cluster.Node, f cluster.Family) hop {
	var problem string
	for _, a := range n.InternalIPs {
		if cluster.FamilyOf(a) != f {
			continue
		}
		h := hs.check(a, f, "InternalIP")
		if h.problem == "" {
			return h
		}
		if problem == "" {
			problem = h.problem
		}
	}
	return hop{problem: problem}
}

// check tells whether a, which is a kind of address for people, can be a next hop.
func (hs *hops) check(a netip.Addr, f cluster.Family, kind string) hop {
	if !usable(a) {
		return hop{problem: fmt.Sprintf(
			"%s %s cannot be a next hop; right would be a global unicast address in a network of this node.", kind, a)}
	}
	if at, ok := hs.mine[a]; ok {
		return hop{problem: fmt.Sprintf(
			"%s %s is this node's own address (%s); right would be an address of the other node.", kind, a, at)}
	}
	for _, pods := range hs.pods {
		if pods.Contains(a) {
			return hop{problem: fmt.Sprintf(
				"%s %s is in this node's own podCIDR %s; right would be an address in the node network.", kind, a, pods)}
		}
	}
	if !hs.known {
		return hop{addr: a}
	}
	return hs.onLink(a, f, kind)
}

// onLink looks for a in the networks of the links; the most specific one with a link that is up wins, as it does in
// the kernel.
func (hs *hops) onLink(a netip.Addr, f cluster.Family, kind string) hop {
	var link, down *cluster.Link
	var network netip.Prefix
	for n, at := range hs.attached.covering(host(a)) {
		if at.up != nil {
			link, network = at.up, n
		}
		if at.down != nil {
			down = at.down
		}
	}
	switch {
	case link != nil && isBroadcast(network, a):
		return hop{problem: fmt.Sprintf(
			"%s %s is the broadcast address of %s on link %s; right would be the address of a host.", kind, a, network, link.Name)}
	case link != nil:
		return hop{addr: a, link: link}
	case down != nil:
		return hop{problem: fmt.Sprintf("%s %s is on link %s, which is down; the route comes back with the link.", kind, a, down.Name)}
	case hs.networks[f] == "":
		return hop{problem: fmt.Sprintf("%s %s is on no link of this node, which has no %s network.", kind, a, f)}
	}
	return hop{problem: fmt.Sprintf(
		"%s %s is on no link of this node; a direct route needs an address in one of its networks: %s.", kind, a, hs.networks[f])}
}

// usable reports whether a host can have the address and be reached at it through a route: the kernel, and RFC 1122
// section 3.2.1.3 and RFC 4291, refuse the others. Link-local addresses are refused because a Node object does not
// say on which link they are.
func usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && !(a.Is4() && (a.As4()[0] >= 240 || a.As4()[0] == 0))
}

// isBroadcast reports whether a is the last address of an IPv4 network that has one (RFC 3021: not of a /31).
func isBroadcast(network netip.Prefix, a netip.Addr) bool {
	if !a.Is4() || network.Bits() > 30 {
		return false
	}
	next := a.Next()
	return !next.IsValid() || !network.Contains(next)
}
