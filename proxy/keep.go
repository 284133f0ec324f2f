package proxy

import (
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// An Earlier is what a Service did before a value of it that can't be programmed; without ports, nothing.
type Earlier struct {
	Ports []*Port
	// Whole keeps endpoints that the new value has no more: for the moments until it is known whether the new value can be
	// programmed.
	Whole bool
}

// Keeping returns the Table in which some Services have what is left of what they did before, instead of their own ports. An
// older port does nothing any more that the new one would not do: it is served where both are and, unless it is kept whole, by
// endpoints that both have. So it never leads for long to a pod that is gone, and never takes an address or a node port that
// has another owner by now; and a load balancer IP whose allowed sources have changed is not served.
func (t *Table) Keeping(before map[cluster.Ref]Earlier) *Table {
	if len(before) == 0 {
		return t
	}
	rest := *t
	rest.Ports = make([]*Port, 0, len(t.Ports))
	for _, p := range t.Ports {
		if old, held := before[p.Service.Ref()]; held {
			p = p.left(old, t.Family)
		}
		if p != nil {
			rest.Ports = append(rest.Ports, p)
		}
	}
	return &rest
}

// left returns what is left of the older value of the port, nil when that is nothing.
func (p *Port) left(before Earlier, f cluster.Family) *Port {
	i := slices.IndexFunc(before.Ports, func(o *Port) bool { return o.Protocol == p.Protocol && o.Port == p.Port })
	if i < 0 {
		return nil
	}
	old := before.Ports[i]
	left := *old
	if old.ClusterIP != p.ClusterIP {
		left.ClusterIP = netip.Addr{}
	}
	if old.NodePort != p.NodePort {
		left.NodePort = 0
	}
	left.ExternalIPs = common(old.ExternalIPs, p.ExternalIPs)
	left.LoadBalancerIPs = common(old.LoadBalancerIPs, p.LoadBalancerIPs)
	if old.AllowSelf != p.AllowSelf || !slices.Equal(old.AllowedSources, p.AllowedSources) {
		left.LoadBalancerIPs = nil
	}
	alive := map[netip.AddrPort]bool{}
	for _, k := range collect(p.Service, cluster.ServicePort{Name: p.Name.Port, Protocol: p.Protocol}, f) {
		alive[k.at] = k.Ready || k.Serving
	}
	gone := func(b Backend) bool { return !before.Whole && !alive[b.Addr] }
	left.Cluster = slices.DeleteFunc(slices.Clone(old.Cluster), gone)
	left.Local = slices.DeleteFunc(slices.Clone(old.Local), gone)
	if len(left.Local) == 0 {
		left.Internal, left.External = withoutLocal(old.Internal), withoutLocal(old.External)
	}
	switch {
	case !left.ClusterIP.IsValid() && !left.FromOutside(), len(left.Cluster) == 0 && len(old.Cluster) > 0:
		return nil
	case left.ClusterIP == old.ClusterIP && left.NodePort == old.NodePort && len(left.ExternalIPs) == len(old.ExternalIPs) &&
		len(left.LoadBalancerIPs) == len(old.LoadBalancerIPs) && len(left.Cluster) == len(old.Cluster) && len(left.Local) == len(old.Local):
		return old // the same pointer, so that its rules need not be rendered again
	}
	return &left
}

// withoutLocal is what becomes of a verdict when no endpoint is left on this node.
func withoutLocal(v Verdict) Verdict {
	if v == ToLocal {
		return Drop
	}
	return v
}

func common(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool { return !slices.Contains(b, x) })
}
