// Package synth makes up clusters: large even ones to measure with, and small random ones in which everything that can
// differ does. The same arguments give the same cluster. It is for tests and benchmarks only.
package synth

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// epoch is when the first object of every made-up cluster was created.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// NodeName is the node that made-up clusters are looked at from.
const NodeName = "node-000"

// Even returns a cluster of IPv4 services with the same number of endpoints each, spread over nodes. Every tenth
// service has a node port.
func Even(nodes, services, endpoints int) *cluster.Snapshot {
	s := &cluster.Snapshot{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
	for i := range nodes {
		s.Nodes = append(s.Nodes, Node(i))
	}
	for i := range services {
		svc := &cluster.Service{
			Namespace: fmt.Sprintf("ns-%02d", i%50), Name: fmt.Sprintf("service-%05d", i), UID: fmt.Sprintf("s-%d", i),
			Created: epoch.Add(time.Duration(i) * time.Second), Type: "ClusterIP",
			ClusterIPs: []netip.Addr{offset(netip.MustParseAddr("10.96.0.1"), i)},
			Ports:      []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}},
		}
		if i%10 == 0 && i/10 < 2768 {
			svc.Type = "NodePort"
			svc.Ports[0].NodePort = uint16(30000 + i/10)
		}
		slice := &cluster.EndpointSlice{Name: svc.Name + "-x", Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}}}
		for j := range endpoints {
			n := i*endpoints + j
			slice.Endpoints = append(slice.Endpoints, Endpoint(s.Nodes[n%nodes], n/nodes))
		}
		svc.Slices = []*cluster.EndpointSlice{slice}
		s.Services = append(s.Services, svc)
	}
	slices.SortFunc(s.Services, func(a, b *cluster.Service) int {
		if c := compare(a.Namespace, b.Namespace); c != 0 {
			return c
		}
		return compare(a.Name, b.Name)
	})
	return s
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Node returns the i-th node of a made-up cluster: podCIDRs 10.128.0.0/9 by /24 and fd00:10:128::/48 by /64, and
// addresses in 10.0.0.0/16 and fd00::/64.
func Node(i int) *cluster.Node {
	return &cluster.Node{
		Name: fmt.Sprintf("node-%03d", i), UID: fmt.Sprintf("n-%d", i), Created: epoch.Add(time.Duration(i) * time.Second),
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(offset(netip.MustParseAddr("10.128.0.0"), i<<8), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:128:%x::/64", i)),
		},
		InternalIPs: []netip.Addr{offset(netip.MustParseAddr("10.0.0.2"), i), offset(netip.MustParseAddr("fd00::2"), i)},
	}
}

// Endpoint returns the i-th endpoint on a node: ready, IPv4. There are 253 addresses on a node; more begin again.
func Endpoint(n *cluster.Node, i int) cluster.Endpoint {
	return cluster.Endpoint{Addr: offset(n.PodCIDRs[0].Addr(), 2+i%253), NodeName: n.Name, Ready: true, Serving: true}
}

// offset returns the address n after a.
func offset(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

// Changed returns the Snapshot after one endpoint of the i-th service went elsewhere; the other objects keep their
// pointers.
func Changed(s *cluster.Snapshot, i, to int) *cluster.Snapshot {
	out := *s
	out.Services = slices.Clone(s.Services)
	svc := *s.Services[i]
	slice := *svc.Slices[0]
	slice.Endpoints = slices.Clone(slice.Endpoints)
	slice.Endpoints[0] = Endpoint(s.Nodes[1%len(s.Nodes)], to)
	svc.Slices = []*cluster.EndpointSlice{&slice}
	out.Services[i] = &svc
	return &out
}

// Random returns a small cluster in which everything differs: families, protocols, ports with and without names,
// several slices of a service,
// endpoints in every condition and on every node, with hints or without, node ports, external and load balancer IPs, policies, affinity, and contested
// addresses.
func Random(r *rand.Rand) *cluster.Snapshot {
	s := &cluster.Snapshot{}
	for i := range 1 + r.IntN(4) {
		s.Nodes = append(s.Nodes, Node(i))
	}
	for i := range r.IntN(60) {
		s.Services = append(s.Services, randomService(r, i, s.Nodes))
	}
	return s
}

func randomService(r *rand.Rand, i int, nodes []*cluster.Node) *cluster.Service {
	svc := &cluster.Service{Namespace: "default", Name: fmt.Sprintf("service-%02d", i), UID: fmt.Sprintf("s-%d", i),
		Created: epoch.Add(time.Duration(r.IntN(50)) * time.Second), Type: "ClusterIP"}
	// A small range, so that some addresses are claimed twice.
	v4 := offset(netip.MustParseAddr("10.96.0.1"), r.IntN(120)*r.IntN(7))
	v6 := offset(netip.MustParseAddr("fd00:96::1"), r.IntN(120)*r.IntN(7))
	switch r.IntN(3) {
	case 0:
		svc.ClusterIPs = []netip.Addr{v4}
	case 1:
		svc.ClusterIPs = []netip.Addr{v6}
	case 2:
		svc.ClusterIPs = []netip.Addr{v4, v6}
	}
	protocols := [...]cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP}
	for j := range 1 + r.IntN(3) {
		p := cluster.ServicePort{Name: fmt.Sprintf("p%d", j), Protocol: protocols[r.IntN(3)], Port: uint16(80 + j)}
		if r.IntN(3) == 0 {
			p.NodePort = uint16(30000 + r.IntN(200))
		}
		svc.Ports = append(svc.Ports, p)
	}
	if r.IntN(4) == 0 {
		svc.InternalTrafficPolicy = cluster.PolicyLocal
	}
	if r.IntN(3) == 0 {
		svc.ExternalTrafficPolicy = cluster.PolicyLocal
	}
	if r.IntN(5) == 0 {
		svc.Affinity = 3 * time.Hour
	}
	for range r.IntN(3) {
		svc.ExternalIPs = append(svc.ExternalIPs, offset(netip.MustParseAddr("198.51.100.1"), r.IntN(20)), offset(netip.MustParseAddr("2001:db8:1::1"), r.IntN(20)))
	}
	if r.IntN(4) == 0 {
		svc.LoadBalancerIPs = []netip.Addr{offset(netip.MustParseAddr("203.0.113.1"), r.IntN(20)), offset(netip.MustParseAddr("2001:db8:2::1"), r.IntN(20))}
		if r.IntN(2) == 0 {
			svc.HealthCheckNodePort = uint16(32000 + r.IntN(100))
			svc.LoadBalancerSourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8::/64")}
		}
	}
	if len(svc.Ports) == 1 && r.IntN(2) == 0 {
		svc.Ports[0].Name = ""
	}
	for j := range r.IntN(4) {
		svc.Slices = append(svc.Slices, randomSlice(r, svc, j, nodes))
	}
	return svc
}

func randomSlice(r *rand.Rand, svc *cluster.Service, i int, nodes []*cluster.Node) *cluster.EndpointSlice {
	slice := &cluster.EndpointSlice{Name: fmt.Sprintf("%s-%d", svc.Name, i), Family: cluster.Families[r.IntN(2)]}
	for _, p := range svc.Ports {
		if r.IntN(8) > 0 {
			slice.Ports = append(slice.Ports, cluster.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: uint16(8080 + r.IntN(3))})
		}
	}
	for range r.IntN(6) {
		n := nodes[r.IntN(len(nodes))]
		at := 0
		if slice.Family == cluster.IPv6 {
			at = 1
		}
		e := cluster.Endpoint{Addr: offset(n.PodCIDRs[at].Addr(), 2+r.IntN(8)), NodeName: n.Name,
			Ready: r.IntN(4) > 0, Serving: r.IntN(4) > 0, Terminating: r.IntN(4) == 0}
		if r.IntN(10) == 0 {
			e.NodeName = ""
		}
		if i == 0 && r.IntN(3) > 0 {
			e.ForNodes = []string{n.Name}
		}
		slice.Endpoints = append(slice.Endpoints, e)
	}
	return slice
}

// Step returns a Snapshot that differs from s in a few objects: the others keep their pointers.
func Step(r *rand.Rand, s *cluster.Snapshot) *cluster.Snapshot {
	out := *s
	out.Services = slices.Clone(s.Services)
	for range 1 + r.IntN(3) {
		i := r.IntN(60)
		at, found := slices.BinarySearchFunc(out.Services, fmt.Sprintf("service-%02d", i), func(svc *cluster.Service, name string) int { return compare(svc.Name, name) })
		switch {
		case !found:
			out.Services = slices.Insert(out.Services, at, randomService(r, i, s.Nodes))
		case r.IntN(3) == 0:
			out.Services = slices.Delete(out.Services, at, at+1)
		default:
			svc := randomService(r, i, s.Nodes)
			svc.Created = out.Services[at].Created
			out.Services[at] = svc
		}
	}
	return &out
}
