package conformance_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// externalRanges lets the agent serve what external gives.
const externalRanges = "--external-ip-ranges=203.0.113.0/25,2001:db8:e::/120"

// external is an address for spec.externalIPs, in externalRanges for n below 128.
func external(f cluster.Family, n int) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:e::%x", n<<1)) // 128 is the first beyond the /120
	}
	return netip.MustParseAddr(fmt.Sprint("203.0.113.", n))
}

// balancer is an address as load balancers give it.
func balancer(f cluster.Family, n int) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprint("2001:db8:b::", n))
	}
	return netip.MustParseAddr(fmt.Sprint("198.51.100.", n))
}

// inBoth returns an address of each family.
func inBoth(of func(cluster.Family, int) netip.Addr, n int) []netip.Addr {
	return []netip.Addr{of(cluster.IPv4, n), of(cluster.IPv6, n)}
}

// withExternal gives a Service externalIPs.
func withExternal(svc *corev1.Service, list ...netip.Addr) *corev1.Service {
	for _, a := range list {
		svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, a.String())
	}
	return svc
}

// withBalancer makes a Service one of type LoadBalancer that has its addresses.
func withBalancer(svc *corev1.Service, list ...netip.Addr) *corev1.Service {
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, a := range list {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
	}
	return svc
}

// balanced is duo behind the load balancer addresses of the same number.
func balanced(n int) *corev1.Service { return withBalancer(duo(n), inBoth(balancer, n)...) }

// only gives a Service loadBalancerSourceRanges: single addresses.
func only(svc *corev1.Service, list ...netip.Addr) *corev1.Service {
	for _, a := range list {
		svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return svc
}

// client is the address of c that source ranges let in, in both families.
func (s *stage) client() []netip.Addr {
	return []netip.Addr{s.c.Addr(cluster.IPv4), s.c.Addr(cluster.IPv6)}
}

// denied asks from another address of c.
func (s *stage) denied(d lab.Dial) lab.Dial {
	d.From = netip.AddrPortFrom(s.c.Addr(cluster.FamilyOf(d.To.Addr())).Next(), 0)
	return d
}

// startOutside is start for Services with addresses outside of the cluster: the agents serve external's.
func (s *stage) startOutside(t *testing.T, flags ...string) {
	t.Helper()
	s.routeOutside(t)
	s.start(t, lab.AgentOptions{Flags: append([]string{externalRanges}, flags...)})
}

// routeOutside makes c send to n1 what is for external's and balancer's addresses.
func (s *stage) routeOutside(t *testing.T) {
	t.Helper()
	for _, f := range cluster.Families {
		bits := map[cluster.Family]int{cluster.IPv4: 24, cluster.IPv6: 64}[f]
		for _, a := range []netip.Addr{external(f, 0), balancer(f, 0)} {
			ok(t, s.c.AddRoute(lab.Route{Dst: netip.PrefixFrom(a, bits), Via: s.n1.Addr(f)}))
		}
	}
}

// afresh asks from a port that the kernel chooses for nobody: what conntrack remembers of a datagram that was answered, or
// of a SYN that was not, holds for whoever has the same port next.
func afresh(d lab.Dial) lab.Dial {
	d.From = netip.AddrPortFrom(d.From.Addr(), 20000)
	return d
}

// own puts an address on n1. The kernel makes an IPv6 address the node's own a moment later.
func (s *stage) own(t *testing.T, a netip.Addr) {
	t.Helper()
	add := []string{"address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo"}
	if a.Is6() {
		add = append(add, "nodad")
	}
	out, err := s.n1.Run("ip", add...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ok(t, lab.Eventually(soon, func() error {
		if out, err = s.n1.Run("ip", "route", "get", a.String()); err == nil && !strings.HasPrefix(out, "local ") {
			err = fmt.Errorf("%s is not an address of n1: %s", a, out)
		}
		return err
	}))
}

// both80 are the two ways to ask duo at an address.
func both80(a netip.Addr) []lab.Dial { return []lab.Dial{tcp(a, 80), udp(a, 80)} }

// masquerades fails the test unless everybody reaches the endpoints at an address and is seen as n1.
func (s *stage) masquerades(t *testing.T, a netip.Addr, names ...string) {
	t.Helper()
	want := s.masqueraded(cluster.FamilyOf(a), names...)
	for _, d := range both80(a) {
		for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.p1.Namespace, s.n1.Namespace} {
			sees(t, ns, d, want)
		}
	}
}

// refuses fails the test unless everybody is told that there is nobody at an address, and nothing of it passes n1.
func (s *stage) refuses(t *testing.T, a netip.Addr) {
	t.Helper()
	tap, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == a && !p.Outgoing })
	ok(t, err)
	defer tap.Close()
	for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace} {
		ends(t, ns, tcp(a, 80), lab.Refused)
		ends(t, ns, afresh(udp(a, 80)), lab.Refused)
	}
	ends(t, s.n1.Namespace, tcp(a, 80), lab.Refused)
	ends(t, s.n1.Namespace, afresh(udp(a, 80)), lab.Denied)
	// A later datagram, to a port that the Service does not have, shows that the tap has seen what there was.
	undefined := udp(a, 9)
	unanswered(t, s.n1.Namespace, undefined)
	ok(t, tap.Wait(1, soon))
	for _, p := range tap.Packets() {
		if p.Dst != undefined.To {
			t.Errorf("passed n1: %v", p)
		}
	}
}

// An external IP leads everybody to all endpoints; they see the node. Also when the node has the address itself.
func TestCase34ExternalIP(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(withExternal(duo(10), inBoth(external, 10)...), lab.Ready(s.p1), lab.Ready(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.masquerades(t, external(f, 10), "p1", "p3")
			s.leavesAlone(t, s.c.Namespace, tcp(external(f, 10), 81))
			s.own(t, external(f, 10))
			s.masquerades(t, external(f, 10), "p1", "p3")
		})
	})
}

// Without endpoints an external or load balancer IP refuses, and that at once: also the node's own processes, whose
// packets kube-proxy lets out to the router.
func TestCase35ExternalIPWithoutEndpointsIsRejectedBetterThanKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := withExternal(balanced(10), inBoth(external, 10)...)
		s.put(svc, lab.NotReady(s.p1))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.refuses(t, external(f, 10))
			s.refuses(t, balancer(f, 10))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.n1.Namespace, tcp(external(f, 10), 80), s.masqueraded(f, "p1"))
			s.masquerades(t, external(f, 10), "p1")
			s.masquerades(t, balancer(f, 10), "p1")
		})
		s.cluster.SetEndpoints(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.n1.Namespace, tcp(external(f, 10), 80), lab.Refused)
			s.refuses(t, external(f, 10))
			// On an address of the node's own, the refusal comes from INPUT, and nothing else could answer.
			s.own(t, balancer(f, 10))
			for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.n1.Namespace} {
				ends(t, ns, tcp(balancer(f, 10), 80), lab.Refused)
			}
		})
	})
}

// A load balancer IP is served like an external IP when its mode is VIP or not given. With mode Proxy, or when the load
// balancer has but a name, traffic is the load balancer's own affair.
func TestCase36LoadBalancerIP(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		vipMode, proxyMode := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy
		withMode := func(n int, mode *corev1.LoadBalancerIPMode) *corev1.Service {
			svc := balanced(n)
			for i := range svc.Status.LoadBalancer.Ingress {
				svc.Status.LoadBalancer.Ingress[i].IPMode = mode
			}
			return svc
		}
		named := balanced(13)
		named.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb.example.com"}}
		for _, svc := range []*corev1.Service{withMode(10, nil), withMode(11, &vipMode), withMode(12, &proxyMode), named} {
			s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		}
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.masquerades(t, balancer(f, 10), "p1", "p3")
			s.masquerades(t, balancer(f, 11), "p1", "p3")
			for _, n := range []int{12, 13} {
				for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.n1.Namespace} {
					s.leavesAlone(t, ns, tcp(balancer(f, n), 80))
				}
				sees(t, s.c.Namespace, tcp(vip(f, n), 80), s.masqueraded(f, "p1", "p3"))
			}
		})
	})
}

// loadBalancerSourceRanges let in the clients that they name and drop the others in silence, and follow the Service.
func TestCase37SourceRanges(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(only(balanced(10), s.client()...), lab.Ready(s.p1), lab.Ready(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, d := range both80(balancer(f, 10)) {
				sees(t, s.c.Namespace, d, s.masqueraded(f, "p1", "p3"))
				s.drops(t, s.c.Namespace, s.denied(d))
			}
		})
		s.cluster.SetService(balanced(10))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.c.Namespace, s.denied(tcp(balancer(f, 10), 80)), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// Source ranges hold for pods too.
func TestCase38SourceRangesAndPods(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(only(balanced(10), s.client()...), lab.Ready(s.p1))
		s.put(only(balanced(11), append(s.client(), s.p2.Addrs...)...), lab.Ready(s.p1))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, d := range both80(balancer(f, 10)) {
				s.drops(t, s.p2.Namespace, d)
			}
			for _, d := range both80(balancer(f, 11)) {
				sees(t, s.p2.Namespace, d, s.masqueraded(f, "p1"))
				s.drops(t, s.p1.Namespace, d)
			}
		})
	})
}

// Source ranges let in the node when its address is in one. Where the node has the load balancer's address itself, that is
// what its processes send from: then it is let in as well, and only then.
func TestCase39SourceRangesAndTheNode(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(only(balanced(10), s.client()...), lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(only(balanced(11), s.n1.Addr(cluster.IPv4), s.n1.Addr(cluster.IPv6)), lab.Ready(s.p1), lab.Ready(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			closed, open := balancer(f, 10), balancer(f, 11)
			s.drops(t, s.n1.Namespace, tcp(closed, 80))
			ends(t, s.n1.Namespace, udp(closed, 80), lab.Denied)
			s.drops(t, s.c.Namespace, tcp(open, 80))
			for _, d := range both80(open) {
				sees(t, s.n1.Namespace, d, s.masqueraded(f, "p1", "p3"))
			}
			s.own(t, closed)
			s.own(t, open)
			from := func(d lab.Dial) lab.Dial {
				d.From = netip.AddrPortFrom(d.To.Addr(), 0)
				return d
			}
			unanswered(t, s.n1.Namespace, from(tcp(closed, 80)))
			ends(t, s.n1.Namespace, from(udp(closed, 80)), lab.Denied)
			unanswered(t, s.c.Namespace, s.denied(tcp(closed, 80)))
			sees(t, s.c.Namespace, tcp(closed, 80), s.masqueraded(f, "p1", "p3"))
			for _, d := range both80(open) {
				sees(t, s.n1.Namespace, from(d), s.masqueraded(f, "p1", "p3"))
			}
		})
	})
}

// Source ranges say nothing about the other ways to a Service.
func TestCase40SourceRangesElsewhere(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := only(withExternal(balanced(10), inBoth(external, 10)...), s.client()...)
		svc.Spec.Ports[0].NodePort = port
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.drops(t, s.c.Namespace, s.denied(tcp(balancer(f, 10), 80)))
			for _, d := range []lab.Dial{tcp(s.n1.Addr(f), port), tcp(external(f, 10), 80), udp(external(f, 10), 80), tcp(vip(f, 10), 80)} {
				sees(t, s.c.Namespace, s.denied(d), s.masqueraded(f, "p1", "p3"))
			}
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
			sees(t, s.p2.Namespace, tcp(external(f, 10), 80), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// A source range of all addresses opens its family. A family of which there is no range is open.
func TestCase41SourceRangesOfAll(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		all := only(balanced(10), s.client()...)
		all.Spec.LoadBalancerSourceRanges = append(all.Spec.LoadBalancerSourceRanges, "0.0.0.0/0", "::/0")
		s.put(all, lab.Ready(s.p1))
		s.put(only(balanced(11), s.c.Addr(cluster.IPv4)), lab.Ready(s.p1))
		s.put(only(balanced(12), s.c.Addr(cluster.IPv6)), lab.Ready(s.p1))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			open, closed := balancer(f, 11), balancer(f, 12)
			if f == cluster.IPv4 {
				open, closed = closed, open
			}
			s.masquerades(t, balancer(f, 10), "p1")
			s.masquerades(t, open, "p1")
			sees(t, s.c.Namespace, s.denied(tcp(open, 80)), s.masqueraded(f, "p1"))
			s.drops(t, s.c.Namespace, s.denied(tcp(closed, 80)))
			sees(t, s.c.Namespace, tcp(closed, 80), s.masqueraded(f, "p1"))
		})
	})
}

// Without endpoints a load balancer IP refuses everybody, whoever its source ranges let in.
func TestCase42SourceRangesWithoutEndpoints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(only(balanced(10), s.client()...))
		s.put(only(balanced(11), s.client()...), lab.Ready(s.p1)) // there is a firewall
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.refuses(t, balancer(f, 10))
			for _, d := range both80(balancer(f, 10)) {
				ends(t, s.c.Namespace, s.denied(d), lab.Refused)
			}
			s.drops(t, s.c.Namespace, s.denied(tcp(balancer(f, 11), 80)))
		})
	})
}

// A source range may have spaces around it. When none of them can be read, nobody is let in.
func TestCase43SourceRangesWithSpaces(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		spaced := only(balanced(10), s.client()...)
		for i, r := range spaced.Spec.LoadBalancerSourceRanges {
			spaced.Spec.LoadBalancerSourceRanges[i] = " " + r + "\t"
		}
		garbled := balanced(11)
		garbled.Spec.LoadBalancerSourceRanges = []string{"192.168.0.0/33", "everybody"}
		s.put(spaced, lab.Ready(s.p1))
		s.put(garbled, lab.Ready(s.p1))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(balancer(f, 10), 80), s.masqueraded(f, "p1"))
			s.drops(t, s.c.Namespace, s.denied(tcp(balancer(f, 10), 80)))
			s.drops(t, s.c.Namespace, tcp(balancer(f, 11), 80))
		})
	})
}

// With externalTrafficPolicy Local, an external or load balancer IP leads an outside client to the endpoints of this node,
// which see the client itself. Pods reach all endpoints and are seen as themselves; so does the node.
func TestCase44To47ExternalLocalAtLoadBalancerIP(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := externalLocal(withExternal(balanced(10), inBoth(external, 10)...))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(only(externalLocal(balanced(11)), s.client()...), lab.Ready(s.p1), lab.Ready(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, d := range append(both80(balancer(f, 10)), both80(external(f, 10))...) {
				sees(t, s.c.Namespace, d, saw(s.c.Addr(f), "p1"))
				sees(t, s.p2.Namespace, d, saw(s.p2.Addr(f), "p1", "p3"))
				sees(t, s.p1.Namespace, d, view{"p1": s.gateway(f).String(), "p3": s.p1.Addr(f).String()})
				sees(t, s.n1.Namespace, d, s.masqueraded(f, "p1", "p3"))
			}
			for _, d := range both80(balancer(f, 11)) {
				sees(t, s.c.Namespace, d, saw(s.c.Addr(f), "p1"))
				s.drops(t, s.c.Namespace, s.denied(d))
				s.drops(t, s.p2.Namespace, d)
			}
		})
		// Case 45, and the other two without an endpoint on this node.
		s.cluster.SetEndpoints(svc, lab.NotReady(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.n1.Namespace, tcp(balancer(f, 10), 80), s.masqueraded(f, "p3"))
			for _, d := range append(both80(balancer(f, 10)), both80(external(f, 10))...) {
				s.drops(t, s.c.Namespace, afresh(d))
				comesToSee(t, s.p2.Namespace, d, saw(s.p2.Addr(f), "p3"))
				comesToSee(t, s.n1.Namespace, d, s.masqueraded(f, "p3"))
			}
		})
		s.cluster.SetEndpoints(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.c.Namespace, tcp(balancer(f, 10), 80), lab.Refused)
			s.refuses(t, balancer(f, 10))
			s.refuses(t, external(f, 10))
		})
	})
}

// With externalTrafficPolicy Local and nothing but a terminating endpoint elsewhere, the VIP leads there, and outside
// clients are dropped.
func TestCase49ExternalLocalOnlyRemoteTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(externalLocal(balanced(10)), lab.Terminating(s.p3))
		s.startOutside(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p3"))
			sees(t, s.p2.Namespace, udp(vip(f, 10), 80), saw(s.p2.Addr(f), "p3"))
			for _, d := range both80(balancer(f, 10)) {
				s.drops(t, s.c.Namespace, d)
				sees(t, s.p2.Namespace, d, saw(s.p2.Addr(f), "p3"))
				sees(t, s.n1.Namespace, d, s.masqueraded(f, "p3"))
			}
		})
	})
}
