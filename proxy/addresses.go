package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// An AddressPolicy says which addresses Services may claim besides their ClusterIPs. Whoever may write a Service could
// otherwise draw the traffic to any address to pods of his own (CVE-2020-8554).
type AddressPolicy struct {
	// ExternalIPs are the networks from which spec.externalIPs are served; AllExternalIPs serves them wherever they are.
	ExternalIPs    []netip.Prefix
	AllExternalIPs bool
	// LoadBalancerIPs are the networks from which status.loadBalancer.ingress is served; none means everywhere outside of
	// the cluster. AllLoadBalancerIPs serves them wherever they are.
	LoadBalancerIPs    []netip.Prefix
	AllLoadBalancerIPs bool
	// ServiceCIDRs are networks that ClusterIPs are from, besides those that the Snapshot has.
	ServiceCIDRs []netip.Prefix
}

// A guard judges the addresses that a Service claims.
type guard struct {
	policy   AddressPolicy
	nodes    []*cluster.Node
	services []netip.Prefix // that ClusterIPs are from
}

func newGuard(c Config, s *cluster.Snapshot) guard {
	g := guard{nodes: s.Nodes, services: s.ServiceCIDRs}
	if c.Addresses != nil {
		g.policy = *c.Addresses
		g.services = slices.Concat(g.policy.ServiceCIDRs, s.ServiceCIDRs)
	}
	return g
}

// same reports whether two guards of one Config judge alike.
func (g guard) same(o guard) bool {
	return slices.Equal(g.nodes, o.nodes) && slices.Equal(g.services, o.services)
}

// outside returns the Service's external and load balancer IPs of a family that may be served, with a Note for each other
// one. An address that is both counts as an external IP, like in kube-proxy.
func (g guard) outside(svc *cluster.Service, f cluster.Family) (external, balancer []netip.Addr, notes []cluster.Note) {
	pick := func(addrs []netip.Addr, refuse func(netip.Addr) string) (good []netip.Addr) {
		for _, a := range addrs {
			if cluster.FamilyOf(a) != f || slices.Contains(good, a) {
				continue
			}
			if why := refuse(a); why != "" {
				notes = append(notes, cluster.Note{Object: svc.Ref(), Reason: cluster.ReasonAddressRefused, Detail: why})
				continue
			}
			good = append(good, a)
		}
		return good
	}
	external = pick(svc.ExternalIPs, g.refuseExternal)
	balancer = pick(svc.LoadBalancerIPs, g.refuseBalancer)
	balancer = slices.DeleteFunc(balancer, func(a netip.Addr) bool { return slices.Contains(external, a) })
	return external, balancer, notes
}

func (g guard) refuseExternal(a netip.Addr) string {
	if g.policy.AllExternalIPs {
		return ""
	}
	if whose := g.part(a); whose != "" {
		return fmt.Sprintf("external IP %s is %s; right would be an address outside of the cluster", a, whose)
	}
	if len(g.policy.ExternalIPs) == 0 {
		return fmt.Sprintf("external IP %s is not served, as externalIPs.ranges of the agent's configuration is empty; right would be a network there that it is from", a)
	}
	if !within(a, g.policy.ExternalIPs) {
		return fmt.Sprintf("external IP %s is in none of externalIPs.ranges (%s)", a, prefixList(g.policy.ExternalIPs))
	}
	return ""
}

func (g guard) refuseBalancer(a netip.Addr) string {
	if g.policy.AllLoadBalancerIPs {
		return ""
	}
	if whose := g.part(a); whose != "" {
		return fmt.Sprintf("load balancer IP %s is %s; right would be an address outside of the cluster, or loadBalancerIPs.allowAll in the agent's configuration", a, whose)
	}
	if len(g.policy.LoadBalancerIPs) > 0 && !within(a, g.policy.LoadBalancerIPs) {
		return fmt.Sprintf("load balancer IP %s is in none of loadBalancerIPs.ranges (%s)", a, prefixList(g.policy.LoadBalancerIPs))
	}
	return ""
}

// part says what part of the cluster an address is; "" for none.
func (g guard) part(a netip.Addr) string {
	for _, n := range g.nodes {
		if slices.Contains(n.InternalIPs, a) || slices.Contains(n.ExternalIPs, a) {
			return "an address of node " + n.Name
		}
		if within(a, n.PodCIDRs) {
			return "in the podCIDR of node " + n.Name
		}
	}
	if within(a, g.services) {
		return "in the service range"
	}
	return ""
}

func within(a netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

func prefixList(networks []netip.Prefix) string {
	var texts []string
	for _, p := range networks {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

// allowedSources returns the networks of a family that may use the Service's load balancer IPs; nil when everybody may. A
// network of all addresses opens the family, and a family that is not mentioned is open, both as in kube-proxy.
func allowedSources(svc *cluster.Service, f cluster.Family) (list []netip.Prefix) {
	for _, p := range svc.LoadBalancerSourceRanges {
		if cluster.FamilyOf(p.Addr()) != f {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		list = append(list, p)
	}
	return list
}
