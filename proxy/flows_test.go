package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// dns is a Service of UDP port 53 and node port 30053, with one slice, behind an external and a load balancer IP.
func dns(endpoints ...string) *cluster.Service {
	s := slice(5353, endpoints...)
	s.Ports[0].Protocol = cluster.UDP
	svc := service("dns", s)
	svc.Ports[0].Protocol, svc.Ports[0].Port, svc.Ports[0].NodePort = cluster.UDP, 53, 30053
	svc.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
	return svc
}

// without takes the external addresses and the node port away.
func without(svc *cluster.Service) *cluster.Service {
	svc.ExternalIPs, svc.LoadBalancerIPs = nil, nil
	svc.Ports[0].NodePort = 0
	return svc
}

// web is a Service of TCP on the same addresses and ports.
func web(endpoints ...string) *cluster.Service {
	svc := service("web", slice(8080, endpoints...))
	svc.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2")
	svc.Ports[0].Port, svc.Ports[0].NodePort = 53, 30054
	return svc
}

// host has the addresses, and those of lo.
func host(addrs ...string) *cluster.Host {
	h := &cluster.Host{Links: []cluster.Link{{Name: "lo", Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")}}, {Name: "eth0"}}}
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		h.Links[1].Addrs = append(h.Links[1].Addrs, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return h
}

// flowTable plans for a node that serves every external address, and node ports everywhere.
func flowTable(services ...*cluster.Service) *proxy.Table {
	s := &cluster.Snapshot{Services: services}
	t, _ := proxy.Plan(s, cluster.IPv4, proxy.Config{NodeName: "here", Addresses: &proxy.AddressPolicy{AllExternalIPs: true}}, nil)
	t.NodePorts = proxy.NodePorts{Everywhere: true}
	return t
}

func flow(dst, answers string) proxy.Flow {
	return proxy.Flow{Dst: netip.MustParseAddrPort(dst), Answers: netip.MustParseAddrPort(answers)}
}

const (
	a, b, c  = "10.0.2.1:5353", "10.0.2.2:5353", "10.0.2.3:5353"
	vip      = "10.96.0.1:53"
	nodeIP   = "192.168.0.1"
	nodePort = nodeIP + ":30053"
	loopback = "127.0.0.1:30053"
)

// Which flows are stale at the agent's start, when nothing is known of before.
func TestStaleFlows(t *testing.T) {
	serving := []string{"10.0.2.1 ready", "10.0.2.2 serving terminating", "10.0.2.3 terminating"}
	for _, test := range []struct {
		name  string
		table *proxy.Table
		flow  proxy.Flow
		stale bool
	}{
		{"to a ready endpoint", flowTable(dns(serving...)), flow(vip, a), false},
		{"to one that terminates and serves, though another is ready", flowTable(dns(serving...)), flow(vip, b), false},
		{"to one that serves no more", flowTable(dns(serving...)), flow(vip, c), true},
		{"to one that is ready though it does not serve", flowTable(readyOnly()), flow(vip, a), false},
		{"to another port of an endpoint", flowTable(dns(serving...)), flow(vip, "10.0.2.1:53"), true},
		{"to nobody knows whom", flowTable(dns(serving...)), flow(vip, "192.0.2.1:53"), true},
		{"not translated", flowTable(dns(serving...)), flow(vip, vip), true},
		{"not translated, before host and pods part", flowTable(dns(serving...)), zoned(flow(vip, vip)), false},
		{"translated in a zone", flowTable(dns(serving...)), zoned(flow(vip, c)), true},
		{"external IP", flowTable(dns(serving...)), flow("203.0.113.1:53", a), false},
		{"external IP, stale", flowTable(dns(serving...)), flow("203.0.113.1:53", c), true},
		{"load balancer IP", flowTable(dns(serving...)), flow("198.51.100.1:53", b), false},
		{"load balancer IP, stale", flowTable(dns(serving...)), flow("198.51.100.1:53", "198.51.100.1:53"), true},
		{"other port of the VIP", flowTable(dns(serving...)), flow("10.96.0.1:54", "10.96.0.1:54"), false},
		{"straight to an endpoint", flowTable(dns(serving...)), flow(c, c), false},
		{"without endpoints", flowTable(dns()), flow(vip, a), true},
		{"without endpoints, not translated", flowTable(dns()), flow(vip, vip), true},
		{"node port", flowTable(dns(serving...)), flow(nodePort, a), false},
		{"node port, stale", flowTable(dns(serving...)), flow(nodePort, c), true},
		{"node port, answered by a process", flowTable(dns(serving...)), flow(nodePort, nodePort), true},
		{"node port without endpoints, answered by a process", flowTable(dns()), flow(nodePort, nodePort), true},
		{"passing through to the port of another machine", flowTable(dns(serving...)), flow("192.168.0.9:30053", "192.168.0.9:30053"), false},
		{"and translated by that one's rules, seen from here", flowTable(dns(serving...)), flow("192.168.0.9:30053", "10.0.9.9:53"), false},
		{"loopback is not served", flowTable(dns(serving...)), flow(loopback, loopback), false},
		{"loopback is served", localhost(flowTable(dns(serving...))), flow(loopback, loopback), true},
		{"all of loopback is served", localhost(flowTable(dns(serving...))), flow("127.1.2.3:30053", "127.1.2.3:30053"), true},
		{"other address of the node", at(flowTable(dns(serving...)), "192.168.0.2"), flow(nodePort, nodePort), false},
		{"the one address of the node", at(flowTable(dns(serving...)), nodeIP), flow(nodePort, nodePort), true},
		{"loopback among the addresses, but not wanted", at(flowTable(dns(serving...)), "127.0.0.1"), flow(loopback, loopback), false},
		{"loopback among the addresses", localhost(at(flowTable(dns(serving...)), "127.0.0.1")), flow(loopback, loopback), true},
		{"a TCP service is nobody", flowTable(web()), flow("10.96.0.2:53", a), false},
		{"a TCP node port is nobody", flowTable(web()), flow(nodeIP+":30054", a), false},
		{"endpoint on the node's own address and the node port", flowTable(onHost()), flow(nodePort, nodePort), false},
		{"a Service that is gone", ranges(flowTable()), flow("10.96.0.7:53", a), true},
		{"a Service that is gone, not translated", ranges(flowTable()), flow("10.96.0.7:53", "10.96.0.7:53"), false},
		{"a node port that is gone", flowTable(), flow(nodeIP+":30077", a), true},
		{"a node port that is gone, of another machine", flowTable(), flow("192.168.0.9:30077", a), false},
		{"a Service of another proxy", ranges(flowTable()), flow(vip, a), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := proxy.ReviewFlows(nil, test.table, host(nodeIP)).Found([]netip.AddrPort{
				netip.MustParseAddrPort("10.96.0.7:53"), netip.AddrPortFrom(netip.Addr{}, 30077)})
			if stale := r.Judge()(test.flow); !r.Owed() || stale != test.stale {
				t.Errorf("%+v: stale %v, want %v", test.flow, stale, test.stale)
			}
		})
	}
}

func zoned(f proxy.Flow) proxy.Flow {
	f.Zoned = true
	return f
}

func readyOnly() *cluster.Service {
	svc := dns("10.0.2.1 ready")
	svc.Slices[0].Endpoints[0].Serving = false
	return svc
}

func onHost() *cluster.Service {
	svc := dns(nodeIP + " ready")
	svc.Slices[0].Ports[0].Port = 30053
	return svc
}

func localhost(t *proxy.Table) *proxy.Table {
	t.NodePorts.Localhost = true
	return t
}

func at(t *proxy.Table, addr string) *proxy.Table {
	t.NodePorts = proxy.NodePorts{Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	return t
}

func ranges(t *proxy.Table) *proxy.Table {
	t.ServiceRanges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}
	return t
}

// What of a change makes a look at the flows necessary, and which are stale then.
func TestChangedFlows(t *testing.T) {
	one, two, none := []string{"10.0.2.1 ready"}, []string{"10.0.2.1 ready", "10.0.2.2 ready"}, []string(nil)
	inRange := func(s ...*cluster.Service) *proxy.Table { return ranges(flowTable(s...)) }
	own := []string{nodeIP}
	for _, test := range []struct {
		name      string
		old, now  *proxy.Table
		own, owns []string
		stale     []proxy.Flow // none: nothing is owed
		fine      []proxy.Flow
	}{
		{"nothing", inRange(dns(one...)), inRange(dns(one...)), own, own, nil, nil},
		{"an endpoint more", inRange(dns(one...)), inRange(dns(two...)), own, own, nil, nil},
		{"an endpoint less", inRange(dns(two...)), inRange(dns(one...)), own, own, []proxy.Flow{flow(vip, b), flow(nodePort, b)}, []proxy.Flow{flow(vip, a)}},
		{"another endpoint", inRange(dns("10.0.2.2 ready")), inRange(dns(one...)), own, own, []proxy.Flow{flow(vip, b)}, []proxy.Flow{flow(vip, a)}},
		{"an endpoint terminates and serves", inRange(dns(two...)), inRange(dns("10.0.2.1 ready", "10.0.2.2 serving terminating")), own, own, nil, nil},
		{"an endpoint terminates", inRange(dns(two...)), inRange(dns("10.0.2.1 ready", "10.0.2.2 terminating")), own, own, []proxy.Flow{flow(vip, b)}, nil},
		{"the last endpoint", inRange(dns(one...)), inRange(dns(none...)), own, own, []proxy.Flow{flow(vip, a), flow(vip, vip)}, nil},
		{"the first endpoint", inRange(dns(none...)), inRange(dns(one...)), own, own, []proxy.Flow{flow(vip, vip), flow(nodePort, nodePort)}, []proxy.Flow{flow(vip, a)}},
		{"a new Service", inRange(), inRange(dns(none...)), own, own, []proxy.Flow{flow(vip, vip)}, nil},
		{"a deleted Service", inRange(dns(one...)), inRange(), own, own,
			[]proxy.Flow{flow(vip, a), flow(nodePort, a), flow("203.0.113.1:53", a), flow("198.51.100.1:53", b)},
			[]proxy.Flow{flow(vip, vip), flow(nodePort, nodePort), flow("192.168.0.9:30053", a), flow("10.96.7.7:53", a)}},
		{"a deleted Service without endpoints", inRange(dns(none...)), inRange(), own, own, nil, nil},
		{"fewer addresses", inRange(dns(one...)), inRange(without(dns(one...))), own, own,
			[]proxy.Flow{flow(nodePort, a), flow("203.0.113.1:53", a)}, []proxy.Flow{flow(vip, a), flow(nodePort, nodePort)}},
		{"more addresses", inRange(without(dns(one...))), inRange(dns(one...)), own, own,
			[]proxy.Flow{flow(nodePort, nodePort), flow("203.0.113.1:53", "203.0.113.1:53")}, []proxy.Flow{flow(vip, a)}},
		{"another ClusterIP", inRange(dns(one...)), inRange(elsewhere(dns(one...))), own, own, []proxy.Flow{flow(vip, a), flow("10.96.0.9:53", "10.96.0.9:53")}, []proxy.Flow{flow(nodePort, a)}},
		{"TCP only", inRange(web(two...)), inRange(web(one...)), own, own, nil, nil},
		{"TCP comes and goes", inRange(web(two...), dns(one...)), inRange(dns(one...)), own, own, nil, nil},
		{"an address of the node", inRange(dns(one...)), inRange(dns(one...)), own, []string{nodeIP, "192.168.0.9"},
			[]proxy.Flow{flow("192.168.0.9:30053", "192.168.0.9:30053")}, []proxy.Flow{flow(nodePort, a)}},
		{"an address of the node less", inRange(dns(one...)), inRange(dns(one...)), []string{nodeIP, "192.168.0.9"}, own, nil, nil},
		{"an address of the node, no node ports", inRange(without(dns(one...))), inRange(without(dns(one...))), own, []string{nodeIP, "192.168.0.9"}, nil, nil},
		{"a link-local address of the node", inRange(dns(one...)), inRange(dns(one...)), own, []string{nodeIP, "169.254.7.7"}, nil, nil},
		{"node ports at another address", at(inRange(dns(one...)), nodeIP), at(inRange(dns(one...)), "192.168.0.2"), own, own,
			[]proxy.Flow{flow("192.168.0.2:30053", "192.168.0.2:30053")}, []proxy.Flow{flow(nodePort, nodePort)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := proxy.ReviewFlows(nil, test.old, host(test.own...)).Done()
			r := proxy.ReviewFlows(before, test.now, host(test.owns...))
			if r.Owed() != (test.stale != nil) {
				t.Fatalf("owed: %v", r.Owed())
			}
			// A review that failed is owed as it was, whatever comes after.
			later := proxy.ReviewFlows(r, test.now, host(test.owns...))
			if later.Owed() != r.Owed() {
				t.Errorf("owed later: %v", later.Owed())
			}
			for _, r := range []*proxy.FlowReview{r, later} {
				judge := r.Judge()
				for _, f := range test.stale {
					if !judge(f) {
						t.Errorf("%+v is not stale", f)
					}
				}
				for _, f := range test.fine {
					if judge(f) {
						t.Errorf("%+v is stale", f)
					}
				}
			}
			if done := proxy.ReviewFlows(r.Done(), test.now, host(test.owns...)); done.Owed() {
				t.Error("owed although it was carried out")
			}
			if !r.Done().Again().Owed() {
				t.Error("not owed again")
			}
		})
	}
}

func elsewhere(svc *cluster.Service) *cluster.Service {
	svc.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.9")}
	return svc
}

// A review that could not be carried out is not lost: what was served only meanwhile, and what has been gone since before, is
// looked for by the next.
func TestFailedReviewIsCarriedOver(t *testing.T) {
	h := host(nodeIP)
	r := proxy.ReviewFlows(nil, flowTable(dns("10.0.2.1 ready")), h).Done()
	r = proxy.ReviewFlows(r, flowTable(), h)                                          // dns is gone
	r = proxy.ReviewFlows(r, flowTable(elsewhere(without(dns("10.0.2.2 ready")))), h) // and comes elsewhere
	r = proxy.ReviewFlows(r, flowTable(elsewhere(without(dns()))), h)                 // without endpoints
	r = proxy.ReviewFlows(r, flowTable(), h)                                          // and is gone
	judge := r.Judge()
	for _, f := range []proxy.Flow{flow(vip, a), flow(nodePort, a), flow("10.96.0.9:53", b)} {
		if !r.Owed() || !judge(f) {
			t.Errorf("%+v is not stale", f)
		}
	}
	// The agent's first review includes Services that were deleted before it.
	first := proxy.ReviewFlows(nil, flowTable(), h).Found([]netip.AddrPort{netip.MustParseAddrPort(vip)})
	r = proxy.ReviewFlows(first, flowTable(web()), h)
	if !r.Owed() || !r.Judge()(flow(vip, a)) {
		t.Error("what happened before the start is forgotten")
	}
	if r = r.Done().Again(); r.Judge()(flow(vip, a)) {
		t.Error("what happened before the start is not over when it was reviewed")
	}
}

// A random walk through the states of two Services: after each step, when a review is not owed then no flow that the state before
// could have made is stale; and a flow that the rules would make now is never stale.
func TestNothingIsMissed(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	conditions := []string{"ready", "serving terminating", "terminating", ""}
	random := func(name string, n int) *cluster.Service {
		var endpoints []string
		for i := range 3 {
			if rng.IntN(3) > 0 {
				endpoints = append(endpoints, fmt.Sprintf("10.0.%d.%d %s", n, i+1, conditions[rng.IntN(len(conditions))]))
			}
		}
		svc := dns(endpoints...)
		svc.Name, svc.ClusterIPs = name, []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.96.0.", 1+rng.IntN(2)+2*n))}
		svc.Ports[0].NodePort = uint16(rng.IntN(2) * (30053 + rng.IntN(2)))
		svc.LoadBalancerIPs = svc.LoadBalancerIPs[:rng.IntN(2)]
		svc.ExternalIPs = svc.ExternalIPs[:rng.IntN(2)]
		return svc
	}
	var last *proxy.FlowReview
	var services [2]*cluster.Service
	made := map[proxy.Flow]bool{} // flows that conntrack may remember
	for range 3000 {
		i := rng.IntN(2)
		if services[i] = nil; rng.IntN(4) > 0 {
			services[i] = random([]string{"x", "y"}[i], i)
		}
		var there []*cluster.Service
		for _, svc := range services {
			if svc != nil {
				there = append(there, svc)
			}
		}
		table := flowTable(there...)
		review := proxy.ReviewFlows(last, table, host(nodeIP))
		judge := review.Judge()
		now := flowsOf(table)
		for _, f := range now {
			if judge(f) {
				t.Fatalf("%+v is stale, and would be made again", f)
			}
		}
		stale := false
		for f := range made {
			if judge(f) {
				stale = true
				delete(made, f)
			}
		}
		if stale && !review.Owed() {
			t.Fatal("a flow is stale, and no review owed")
		}
		for f := range made {
			if !allowed(table, f) {
				t.Fatalf("%+v is left over", f)
			}
		}
		for _, f := range now {
			made[f] = true
		}
		last = review.Done()
	}
}

// places are where a port is served.
func places(p *proxy.Port) (list []netip.AddrPort) {
	for _, a := range append(append([]netip.Addr{}, p.ExternalIPs...), p.LoadBalancerIPs...) {
		list = append(list, netip.AddrPortFrom(a, p.Port))
	}
	if p.ClusterIP.IsValid() {
		list = append(list, netip.AddrPortFrom(p.ClusterIP, p.Port))
	}
	if p.NodePort != 0 {
		list = append(list, netip.AddrPortFrom(netip.MustParseAddr(nodeIP), p.NodePort))
	}
	return list
}

// flowsOf lists the flows that the rules of a Table make.
func flowsOf(t *proxy.Table) (list []proxy.Flow) {
	for _, p := range t.Ports {
		for _, at := range places(p) {
			for _, b := range p.Cluster {
				list = append(list, proxy.Flow{Dst: at, Answers: b.Addr})
			}
		}
	}
	return list
}

// allowed tells whether a flow may go on: there is a port that is served there by that endpoint.
func allowed(t *proxy.Table, f proxy.Flow) bool {
	for _, p := range t.Ports {
		for _, at := range places(p) {
			for _, s := range p.Serving {
				if at == f.Dst && s == f.Answers {
					return true
				}
			}
		}
	}
	return false
}

// BenchmarkReviewFlows is what it costs to find out, after a change of TCP, that no flow has to be looked at.
func BenchmarkReviewFlows(b *testing.B) {
	var services []*cluster.Service
	for i := range 10_000 {
		svc := service(fmt.Sprintf("web-%05d", i), slice(8080, "10.0.2.1 ready"))
		svc.ClusterIPs[0] = netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		services = append(services, svc)
	}
	s := &cluster.Snapshot{Services: services}
	old, _ := proxy.Plan(s, cluster.IPv4, proxy.Config{}, nil)
	changed := append([]*cluster.Service{}, services...)
	changed[5000] = service(services[5000].Name, slice(8080, "10.0.2.2 ready"))
	now, _ := proxy.Plan(&cluster.Snapshot{Services: changed}, cluster.IPv4, proxy.Config{}, old)
	last := proxy.ReviewFlows(nil, old, host(nodeIP)).Done()
	for b.Loop() {
		if proxy.ReviewFlows(last, now, host(nodeIP)).Owed() {
			b.Fatal("a change of TCP concerns UDP flows")
		}
	}
}
