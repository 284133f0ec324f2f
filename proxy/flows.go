package proxy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Flow is what conntrack remembers of a UDP flow, as far as it matters here.
type Flow struct {
	// Dst is where its first packet was sent. Answers is who answers: the endpoint that the flow was translated to, or Dst
	// when it was not translated.
	Dst, Answers netip.AddrPort
	// Zoned is true in a conntrack zone other than 0. Such an entry may be the first of two that one packet passes: with Open
	// vSwitch between pods and host, say, the untranslated one.
	Zoned bool
}

func (f Flow) translated() bool { return f.Dst != f.Answers }

// A FlowReview is what has to be looked for among the UDP flows of one family after its rules have changed. Rules decide
// about the first packet of a flow only; conntrack repeats that for all others. A UDP flow never ends by itself while its
// sender goes on, so one whose endpoint is gone would go into nowhere for as long. TCP and SCTP notice, and are left alone.
//
// Stale is a flow to an address at which a port is served that is not answered by one of Port.Serving, whether it was
// translated to another endpoint or not at all, before there were rules; without an endpoint that is every flow, and the next
// packet is rejected. Stale, too, is a translated flow to an address at which a port was served until now. Changed policies
// and hints cut no flow: they are for new ones, as with TCP.
//
// A FlowReview is a value and does not change.
type FlowReview struct {
	table *Table
	// own are the node's addresses of the family, in order.
	own []netip.Addr
	// owed is true when a flow may have become stale, and none was looked for since.
	owed bool
	// gone are the places at which ports were served until then, with an address or, for a node port, without.
	gone map[netip.AddrPort]bool
}

// ReviewFlows returns the review for a Table whose rules are in force, on a node with the given links. last is the review for
// the Table before, carried out or not, and nil when the agent has just started; see [FlowReview.Found].
func ReviewFlows(last *FlowReview, t *Table, host *cluster.Host) *FlowReview {
	r := &FlowReview{table: t, own: ownAddresses(host, t.Family)}
	if last == nil {
		r.owed = true
		return r
	}
	if last.owed {
		r.owed, r.gone = true, maps.Clone(last.gone)
	}
	old, now := udpDifference(last.table, t)
	r.compare(placesOf(old), placesOf(now))
	if r.servesMoreAddresses(last) {
		r.owed = true
	}
	return r
}

// compare finds out what can be stale when places are served otherwise than before.
func (r *FlowReview) compare(old, now map[netip.AddrPort][]netip.AddrPort) {
	for at, was := range old {
		is, still := now[at]
		switch {
		case !still:
			if r.gone == nil {
				r.gone = map[netip.AddrPort]bool{}
			}
			r.gone[at] = true
			r.owed = r.owed || len(was) > 0
		case len(was) == 0:
			r.owed = r.owed || len(is) > 0
		default:
			r.owed = r.owed || slices.ContainsFunc(was, func(a netip.AddrPort) bool { return !serves(is, a) })
		}
	}
	for at := range now {
		if _, known := old[at]; !known {
			r.owed = true // flows from before were not translated
		}
	}
}

// servesMoreAddresses tells whether node ports are served at an address that they were not served at before. Link-local
// addresses come with every pod and do not count: whoever sends to one is a neighbour that has just met the link.
func (r *FlowReview) servesMoreAddresses(last *FlowReview) bool {
	if slices.Equal(r.own, last.own) && r.table.NodePorts.equal(last.table.NodePorts) {
		return false
	}
	if !slices.ContainsFunc(r.table.Ports, func(p *Port) bool { return p.Protocol == cluster.UDP && p.NodePort != 0 }) {
		return false
	}
	more := func(a netip.Addr) bool {
		return !a.IsLinkLocalUnicast() && r.hasNodePorts(a) && !last.hasNodePorts(a)
	}
	return slices.ContainsFunc(r.own, more) || slices.ContainsFunc(r.table.NodePorts.Addrs, more)
}

// Owed tells whether there can be stale flows. When it is false, nothing needs to be read.
func (r *FlowReview) Owed() bool { return r.owed }

// Again is the same review, owed once more: after somebody else had changed rules that were repaired.
func (r *FlowReview) Again() *FlowReview {
	again := *r
	again.owed = true
	return &again
}

// Found is the same review, when rules of before the agent's start served these places, node ports without an address: what is served
// no more has gone while no agent ran. Nothing else is known of that time; a flow to an address that had no rules of ours is
// somebody else's.
func (r *FlowReview) Found(places []netip.AddrPort) *FlowReview {
	found := *r
	found.gone = make(map[netip.AddrPort]bool, len(places))
	for _, at := range places {
		found.gone[at] = true
	}
	return &found
}

// Done is what is left of the review when it has been carried out.
func (r *FlowReview) Done() *FlowReview { return &FlowReview{table: r.table, own: r.own} }

// Judge returns the function that tells whether a flow is stale.
func (r *FlowReview) Judge() func(Flow) bool {
	served := placesOf(r.table.Ports)
	return func(f Flow) bool {
		nodePort := netip.AddrPortFrom(netip.Addr{}, f.Dst.Port())
		ours := r.hasNodePorts(f.Dst.Addr())
		serving, known := served[f.Dst]
		if !known && ours {
			serving, known = served[nodePort]
		}
		if known {
			return (f.translated() || !f.Zoned) && !serves(serving, f.Answers)
		}
		return f.translated() && (r.gone[f.Dst] || ours && r.gone[nodePort])
	}
}

// hasNodePorts tells whether node ports are served at an address. What goes to other machines' ports of the same number
// passes through and is none of ours.
func (r *FlowReview) hasNodePorts(a netip.Addr) bool {
	ports := r.table.NodePorts
	if a.IsLoopback() {
		return ports.Localhost && a.Is4() && (ports.Everywhere || slices.Contains(ports.Addrs, a))
	}
	if ports.Everywhere {
		_, own := slices.BinarySearchFunc(r.own, a, netip.Addr.Compare)
		return own
	}
	return slices.Contains(ports.Addrs, a)
}

func (p NodePorts) equal(o NodePorts) bool {
	return p.Everywhere == o.Everywhere && p.Localhost == o.Localhost && slices.Equal(p.Addrs, o.Addrs)
}

// ownAddresses lists the addresses of a family that the links have, in order without duplicates.
func ownAddresses(host *cluster.Host, f cluster.Family) (own []netip.Addr) {
	if host == nil {
		return nil
	}
	for _, l := range host.Links {
		for _, p := range l.Addrs {
			if cluster.FamilyOf(p.Addr()) == f {
				own = append(own, p.Addr())
			}
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own)
}

// udpDifference returns the UDP ports of two Tables without those that are the same in both.
func udpDifference(prev, next *Table) (old, now []*Port) {
	was, is := prev.Ports, next.Ports
	for len(was) > 0 || len(is) > 0 {
		if len(was) > 0 && len(is) > 0 && was[0] == is[0] {
			was, is = was[1:], is[1:]
			continue
		}
		a, b := portsOfFirst(was), portsOfFirst(is)
		switch {
		case len(b) == 0 || len(a) > 0 && before(a[0].Service, b[0].Service):
			b = nil
		case len(a) == 0 || before(b[0].Service, a[0].Service):
			a = nil
		}
		was, is = was[len(a):], is[len(b):]
		old, now = appendUDP(old, a), appendUDP(now, b)
	}
	return old, now
}

// portsOfFirst returns the ports that belong to the Service of the first one, up to the next Service.
func portsOfFirst(ports []*Port) []*Port {
	for i, p := range ports {
		if p.Service.Namespace != ports[0].Service.Namespace || p.Service.Name != ports[0].Service.Name {
			return ports[:i]
		}
	}
	return ports
}

func appendUDP(to, ports []*Port) []*Port {
	for _, p := range ports {
		if p.Protocol == cluster.UDP {
			to = append(to, p)
		}
	}
	return to
}

// placesOf returns where the UDP ports among the given ones are served, each with the endpoints that serve there. A node port
// is a place without an address.
func placesOf(ports []*Port) map[netip.AddrPort][]netip.AddrPort {
	places := map[netip.AddrPort][]netip.AddrPort{}
	for _, p := range ports {
		if p.Protocol != cluster.UDP {
			continue
		}
		if p.ClusterIP.IsValid() {
			places[netip.AddrPortFrom(p.ClusterIP, p.Port)] = p.Serving
		}
		for _, list := range [...][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
			for _, a := range list {
				places[netip.AddrPortFrom(a, p.Port)] = p.Serving
			}
		}
		if p.NodePort != 0 {
			places[netip.AddrPortFrom(netip.Addr{}, p.NodePort)] = p.Serving
		}
	}
	return places
}

// serving lists the endpoints whose flows may go on, in the order of their addresses and ports. Besides those that serve these are
// the ready ones: with publishNotReadyAddresses an endpoint is ready that does not serve, and the rules send new flows to it.
func serving(all []known) (list []netip.AddrPort) {
	for _, k := range all {
		if k.Serving || k.Ready {
			list = append(list, k.at)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}

// serves finds an endpoint in a list that is in order.
func serves(list []netip.AddrPort, a netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(list, a, netip.AddrPort.Compare)
	return found
}
