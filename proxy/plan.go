package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// planned is what Plan made of one Service: the memo that lets an unchanged Service be taken over.
type planned struct {
	service   *cluster.Service
	ports     []*Port
	health    HealthCheck // without port when there is none
	notes     []cluster.Note
	endpoints int
}

// Plan decides what this node does with the service traffic of one family. prev is a memo and nothing else: a Service
// that kept its pointer keeps its Ports. The Notes say what was refused.
func Plan(s *cluster.Snapshot, f cluster.Family, c Config, prev *Table) (*Table, []cluster.Note) {
	node := s.Node(c.NodeName)
	here := newLocality(c.NodeName, node)
	here.ip = c.nodeIP(f, node)
	t := &Table{Family: f, Local: c.localTraffic(f, node), MasqueradeAll: c.MasqueradeAll, config: c, here: here}
	ports, portNotes := c.nodePorts(f, s)
	t.NodePorts, t.ServiceRanges, t.RejectUnknown = ports, c.serviceRanges(f, s), !c.ForwardUnknown
	t.guard = newGuard(c, s)
	t.services = make([]*planned, 0, len(s.Services))
	t.Ports = make([]*Port, 0, len(s.Services))
	var memo []*planned
	if prev != nil && prev.config == c && prev.Family == f && prev.sameLocality(here) {
		memo = prev.services
	}
	// Which addresses outside of the cluster are refused depends on the nodes and the service ranges.
	moved := prev != nil && !prev.guard.same(t.guard)
	notes := portNotes
	for _, svc := range s.Services {
		for len(memo) > 0 && memo[0].service != svc && before(memo[0].service, svc) {
			memo = memo[1:]
		}
		var p *planned
		if len(memo) > 0 && memo[0].service == svc && !(moved && len(svc.ExternalIPs)+len(svc.LoadBalancerIPs) > 0) {
			p, memo = memo[0], memo[1:]
		} else {
			p = planService(svc, f, here, t.guard)
		}
		t.services = append(t.services, p)
		t.Ports = append(t.Ports, p.ports...)
		t.Endpoints += p.endpoints
		if p.health.Port != 0 {
			t.HealthChecks = append(t.HealthChecks, p.health)
		}
		notes = append(notes, p.notes...)
	}
	notes = append(notes, t.settleHealthChecks()...)
	return t, append(notes, t.settle(prev)...)
}

func before(a, b *cluster.Service) bool {
	if a.Namespace != b.Namespace {
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}

// locality tells which endpoints are, or may be, on this node.
type locality struct {
	node     string
	zone     string
	podCIDRs []netip.Prefix
	ips      []netip.Addr
	// ip is the one address of the family that stands for the node.
	ip netip.Addr
}

func newLocality(name string, n *cluster.Node) locality {
	if n == nil {
		return locality{node: name}
	}
	return locality{node: name, zone: n.Zone, podCIDRs: n.PodCIDRs, ips: n.InternalIPs}
}

func (t *Table) sameLocality(l locality) bool {
	return t.here.node == l.node && t.here.zone == l.zone && t.here.ip == l.ip && slices.Equal(t.here.podCIDRs, l.podCIDRs) && slices.Equal(t.here.ips, l.ips)
}

// has errs towards yes: an endpoint without node name (a slice written by hand) may be here, and one whose slice
// names another node but whose address is ours surely is.
func (l locality) has(e *cluster.Endpoint) bool {
	if e.NodeName == "" || e.NodeName == l.node || slices.Contains(l.ips, e.Addr) {
		return true
	}
	for _, p := range l.podCIDRs {
		if p.Contains(e.Addr) {
			return true
		}
	}
	return false
}

func planService(svc *cluster.Service, f cluster.Family, here locality, check guard) *planned {
	p := &planned{service: svc}
	vip := svc.ClusterIP(f)
	if !vip.IsValid() {
		return p
	}
	external, balancer, notes := check.outside(svc, f)
	p.notes = notes
	p.health = healthCheckOf(svc, f, here)
	sources := allowedSources(svc, f)
	allowSelf := within(here.ip, sources)
	for i, sp := range svc.Ports {
		// The API allows one port of a name; only a hand-written file can have two, which would share a chain.
		if slices.ContainsFunc(svc.Ports[:i], func(o cluster.ServicePort) bool { return o.Name == sp.Name && o.Protocol == sp.Protocol }) {
			p.notes = append(p.notes, cluster.Note{Object: svc.Ref(), Reason: cluster.ReasonInvalidField,
				Detail: fmt.Sprintf("spec.ports has two %s ports named %q; the first is used, give the other a name of its own", sp.Protocol, sp.Name)})
			continue
		}
		port := &Port{
			Name:            PortName{svc.Namespace, svc.Name, sp.Name},
			Service:         svc,
			Protocol:        sp.Protocol,
			ClusterIP:       vip,
			Port:            sp.Port,
			ExternalIPs:     external,
			LoadBalancerIPs: balancer,
			NodePort:        sp.NodePort,
			AllowedSources:  sources,
			AllowSelf:       allowSelf,
			Affinity:        svc.Affinity,
		}
		all := collect(svc, sp, f)
		p.endpoints += len(all)
		port.decide(svc, all, here)
		p.ports = append(p.ports, port)
	}
	return p
}

// A known is an endpoint of a service port at one address and port.
type known struct {
	at netip.AddrPort
	*cluster.Endpoint
}

// collect merges the slices of a service port: an endpoint is one address and port, however many slices name it. They
// are ordered by the text of address and port.
func collect(svc *cluster.Service, sp cluster.ServicePort, f cluster.Family) []known {
	var all []known
	for _, slice := range svc.Slices {
		if slice.Family != f {
			continue
		}
		for _, ep := range slice.Ports {
			if ep.Name != sp.Name || ep.Protocol != sp.Protocol {
				continue
			}
			all = slices.Grow(all, len(slice.Endpoints))
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				all = append(all, known{netip.AddrPortFrom(e.Addr, ep.Port), e})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b known) int { return compareText(a.at, b.at) })
	merged := all[:0]
	for _, k := range all {
		last := len(merged) - 1
		switch {
		case last < 0 || merged[last].at != k.at:
			merged = append(merged, k)
		case better(k.Endpoint, merged[last].Endpoint):
			merged[last] = k
		}
	}
	return merged
}

// compareText compares what is written as text, as kube-proxy does to order rules: 10.0.0.10 comes before 10.0.0.9.
func compareText(a, b netip.AddrPort) int {
	var x, y [longestAddrPort]byte
	return bytes.Compare(a.AppendTo(x[:0]), b.AppendTo(y[:0]))
}

// longestAddrPort is room for the text of an IPv6 address and port, which then needs no memory of its own.
const longestAddrPort = len("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")

// better tells which of two entries for one address and port to believe. While a pod moves from one slice to
// another, both name it for a moment; the entry that lets it have traffic is the newer one. (kube-proxy prefers the
// entry that is not terminating, and is undecided between two such.)
func better(e, old *cluster.Endpoint) bool {
	if e.Terminating != old.Terminating {
		return old.Terminating
	}
	if e.Ready != old.Ready {
		return e.Ready
	}
	return e.Serving && !old.Serving
}

// decide settles what happens to the port's traffic, by the Service's policies and the endpoints that there are.
func (p *Port) decide(svc *cluster.Service, all []known, here locality) {
	if p.Protocol == cluster.UDP {
		p.Serving = serving(all)
	}
	if !slices.ContainsFunc(all, func(k known) bool { return k.Ready || k.Serving && k.Terminating }) {
		p.Internal, p.External = Reject, Reject
		return
	}
	policies := [...]cluster.TrafficPolicy{svc.InternalTrafficPolicy, svc.ExternalTrafficPolicy}
	var local []Backend
	if slices.Contains(policies[:], cluster.PolicyLocal) {
		mine := slices.DeleteFunc(slices.Clone(all), func(k known) bool { return k.NodeName != here.node })
		local = usable(mine, mine, here)
	}
	verdict := func(policy cluster.TrafficPolicy) Verdict {
		switch {
		case policy == cluster.PolicyCluster:
			return ToCluster
		case len(local) > 0:
			return ToLocal
		}
		return Drop
	}
	p.Internal, p.External = verdict(policies[0]), verdict(policies[1])
	outside := p.FromOutside()
	if p.Internal == ToLocal || outside && p.External == ToLocal {
		p.Local = local
	}
	// Behind policy Local, pods and the node itself still reach every endpoint.
	if p.Internal == ToCluster || outside {
		p.Cluster = usable(near(all, here), all, here)
	}
}

// near leaves out ready endpoints that the topology hints keep from this node. Hints count only when all ready endpoints
// have them and one is for us; those for nodes come before those for zones (KEP-2433, KEP-3015).
func near(all []known, here locality) []known {
	for _, hint := range [...]struct {
		of   func(known) []string
		want string
	}{{func(k known) []string { return k.ForNodes }, here.node}, {func(k known) []string { return k.ForZones }, here.zone}} {
		ready, hinted, ours := 0, 0, 0
		for _, k := range all {
			if !k.Ready {
				continue
			}
			ready++
			if len(hint.of(k)) > 0 {
				hinted++
			}
			if slices.Contains(hint.of(k), hint.want) {
				ours++
			}
		}
		if hint.want != "" && ours > 0 && hinted == ready {
			return slices.DeleteFunc(slices.Clone(all), func(k known) bool { return !slices.Contains(hint.of(k), hint.want) })
		}
	}
	return all
}

// usable picks the endpoints that get traffic: the ready ones among the preferred or, when there are none, those among
// the others which are shutting down and still serve (KEP-1669).
func usable(preferred, others []known, here locality) []Backend {
	pick := func(from []known, ok func(known) bool) []Backend {
		n := 0
		for _, k := range from {
			if ok(k) {
				n++
			}
		}
		picked := make([]Backend, 0, n)
		for _, k := range from {
			if ok(k) {
				picked = append(picked, Backend{Addr: k.at, Local: here.has(k.Endpoint)})
			}
		}
		return picked
	}
	if ready := pick(preferred, func(k known) bool { return k.Ready }); len(ready) > 0 {
		return ready
	}
	return pick(others, func(k known) bool { return k.Serving && k.Terminating })
}
