package differential

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairway-net/fairway/proxy/trace"
)

// deliberate are the differences that are meant, and when a difference is such a one. docs/behaviour.md names them for
// operators.
var deliberate = []struct {
	name, reason string
	holds        func(*difference) bool
}{
	{
		"a node's own packets to an external address without endpoints are rejected",
		"kube-proxy lets them leave the node, to wherever the default route leads",
		func(d *difference) bool {
			return d.In == "" && !local(d.Dst.Addr()) && d.claimedAs(externalIP, balancerIP) && d.untouched(d.proxy) && d.agent.only(end{verdict: trace.Reject})
		},
	},
	{
		"a contested address belongs to the oldest Service",
		"kube-proxy gives it to a random one, another one after the next change",
		(*difference).contested,
	},
	{
		"endpoints at multicast addresses are refused",
		"no endpoint is there; and whoever may write slices could use nodes as senders",
		func(d *difference) bool {
			return slices.ContainsFunc(d.met(), func(c claim) bool {
				return slices.ContainsFunc(d.view.endpoints(c.service), netip.Addr.IsMulticast)
			})
		},
	},
	{
		"a remote endpoint that reaches itself through this node keeps its source",
		"its own node sees to that; here it would cost a chain for every endpoint of the cluster",
		(*difference).remoteHairpin,
	},
	{
		"packets to no Service of the service range are rejected",
		"kube-proxy lets them follow the node's routes: they leave, or go round in a loop",
		func(d *difference) bool {
			return !d.configuration.forward && len(d.claims) == 0 && d.ofServices(d.Dst.Addr()) && d.agent.only(end{verdict: trace.Reject}) &&
				(d.untouched(d.proxy) || d.firewall && d.proxy.only(end{verdict: trace.Drop}))
		},
	},
}

// deliberate returns the name of the entry that a difference belongs to; empty for none.
func (d *difference) deliberate() string {
	for _, e := range deliberate {
		if e.holds(d) {
			return e.name
		}
	}
	return ""
}

// met returns the claims whose rules the packet meets: those to its destination, and, as the filter table sees what it is translated
// to, those to what it came to.
func (d *difference) met() []claim {
	list := slices.Clone(d.claims)
	for _, o := range slices.Concat(d.byProxy, d.byAgent) {
		list = append(list, d.view.claims[place{o.Dst, d.Protocol}]...)
	}
	return list
}

// ofServices tells whether an address is from the service ranges, or some Service's own.
func (d *difference) ofServices(a netip.Addr) bool {
	return d.clusterIPs(a) || slices.ContainsFunc(serviceRanges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// clusterIPs tells whether an address is some Service's own.
func (d *difference) clusterIPs(a netip.Addr) bool {
	for at, claims := range d.view.claims {
		if at.at.Addr() == a && slices.ContainsFunc(claims, func(c claim) bool { return c.kind == clusterIP }) {
			return true
		}
	}
	return false
}

// claimedAs tells whether the destination is of one of the kinds, and nothing else.
func (d *difference) claimedAs(kinds ...kind) bool {
	return len(d.claims) > 0 && !slices.ContainsFunc(d.claims, func(c claim) bool { return !slices.Contains(kinds, c.kind) })
}

// untouched tells whether packets go where they were sent to.
func (d *difference) untouched(e ends) bool {
	return e.only(end{verdict: trace.Accept, dst: d.Dst})
}

// contested tells whether the destination is claimed more than once, or an external address that is some Service's ClusterIP,
// which then has it with all its ports.
func (d *difference) contested() bool {
	if slices.ContainsFunc(d.claims, func(c claim) bool { return c.service != d.claims[0].service }) {
		return true
	}
	if !d.claimedAs(externalIP, balancerIP) {
		return false
	}
	return d.clusterIPs(d.Dst.Addr())
}

// remoteHairpin tells whether the only difference is the source of what an endpoint sends to itself, and that endpoint is
// surely not on this node.
func (d *difference) remoteHairpin() bool {
	src := d.Src.Addr()
	if local(src) || ownPod(src) || len(d.claims) == 0 {
		return false
	}
	// Where the firewall refuses what is not marked, it refuses that too.
	kept, refused := ends{}, ends{}
	for k, share := range d.proxy {
		to := k
		if k.dst.Addr() == src && !d.mayBeHere(k.dst) {
			k.masquerade = false
			to = end{verdict: trace.Drop}
		}
		kept[k] += share
		refused[to] += share
	}
	return kept.equal(d.agent) || d.firewall && refused.equal(d.agent)
}

// mayBeHere tells whether the slices leave it open that an endpoint is on this node. Of two entries for one address and
// port, one that is not terminating counts.
func (d *difference) mayBeHere(at netip.AddrPort) bool {
	var entries []discoveryv1.Endpoint
	for _, s := range d.view.slicesOf(d.claims[0].service) {
		if !slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
			return p.Port != nil && *p.Port == int32(at.Port()) && given(p.Name) == d.claims[0].port && protocolOf(given(p.Protocol)) == d.Protocol
		}) {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Addresses[0] == at.Addr().String() {
				entries = append(entries, e)
			}
		}
	}
	if staying := slices.DeleteFunc(slices.Clone(entries), terminating); len(staying) > 0 {
		entries = staying
	}
	return slices.ContainsFunc(entries, func(e discoveryv1.Endpoint) bool { return e.NodeName == nil || *e.NodeName == ownNode })
}

// given returns what an object gives, the zero value when that is nothing: the API's default for the name of a slice's port,
// and to protocolOf that of its protocol.
func given[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}
