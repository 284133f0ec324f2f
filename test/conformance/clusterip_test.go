package conformance_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A pod's connections to a VIP are spread over endpoints here and elsewhere, which see the pod's own address.
func TestCase01PodKeepsSource(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
		})
	})
}

// Three endpoints get equal shares of 600 connections.
func TestCase02EqualShares(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			// Fair rules fail such a test once in a thousand times, and twice in a row once in a million.
			if first := unfair(t, s, f); first > 0 {
				if again := unfair(t, s, f); again > 0 {
					t.Errorf("twice not equal shares: χ² is %.1f and %.1f", first, again)
				}
			}
		})
	})
}

// unfair makes 600 connections to three endpoints and returns the χ² of their shares when it is beyond what chance
// does once in a thousand times (two degrees of freedom), else zero.
func unfair(t *testing.T, s *stage, f cluster.Family) float64 {
	t.Helper()
	got := shares(t, s.c.Namespace, tcp(vip(f, 10), 80), 600)
	chi := 0.0
	for _, name := range []string{"p1", "p2", "p3"} {
		n := got[name]
		chi += float64((n-200)*(n-200)) / 200
	}
	t.Logf("600 connections: %v, χ² %.2f", got, chi)
	if chi > 13.816 {
		return chi
	}
	return 0
}

// The target port is used, not the Service's.
func TestCase03TargetPort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.p1.Namespace, "wrong", lab.TCP, 80)
		serve(t, s.p1.Namespace, "right", lab.TCP, 9000)
		s.put(lab.Service("web", vips(10), lab.TCPPort("http", 80, 9000)), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "right"))
		})
	})
}

// TCP, UDP and SCTP on the same port of a VIP go to targets of their own.
func TestCase04ProtocolsShareAPort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.p1.Namespace, "for-tcp", lab.TCP, 9001)
		serve(t, s.p1.Namespace, "for-udp", lab.UDP, 9002)
		serve(t, s.p1.Namespace, "not-for-tcp", lab.TCP, 9002)
		serve(t, s.p1.Namespace, "not-for-udp", lab.UDP, 9001)
		s.put(lab.Service("all", vips(10), lab.TCPPort("t", 53, 9001), lab.UDPPort("u", 53, 9002), sctpPort("s", 53, 9003)), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 53), saw(s.p2.Addr(f), "for-tcp"))
			sees(t, s.p2.Namespace, udp(vip(f, 10), 53), saw(s.p2.Addr(f), "for-udp"))
			checkSCTP(t, s, f)
		})
	})
}

// Other protocols on a TCP port, and a ping, are not translated: they go where packets to unknown addresses go.
func TestCase05OtherProtocols(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			a := vip(f, 10)
			s.leavesAlone(t, s.p2.Namespace, udp(a, 80))
			s.pingLeavesAlone(t, f, a)
			sees(t, s.p2.Namespace, tcp(a, 80), saw(s.p2.Addr(f), "p1"))
		})
	})
}

// A process of the node reaches a VIP; endpoints see an address of the node. The same holds for its own UDP.
func TestCase06FromTheNode(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(lab.Service("web", vips(10), lab.TCPPort("t", 80, target), lab.UDPPort("u", 80, target)), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
			sees(t, s.n1.Namespace, udp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// A client outside of the cluster that routes a VIP through the node reaches it; endpoints see the node.
func TestCase07FromOutside(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// With --masquerade-all the pods' sources are replaced too.
func TestCase08MasqueradeAll(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: []string{"--masquerade-all"}})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// Without a way to tell pods' traffic nobody's source is replaced, be it the node's or an outside client's.
func TestCase09NoDetection(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.put(web(11), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Without: []string{"--cluster-cidrs"}})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), saw(s.n1.Addr(f), "p1"))
			sees(t, s.n1.Namespace, tcp(vip(f, 11), 80), saw(s.n1.Addr(f), "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), saw(s.c.Addr(f), "p1"))
		})
	})
}

// A pod reaches itself through a VIP, and sees an address of the node.
func TestCase10Hairpin(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(lab.Service("web", vips(10), lab.TCPPort("t", 80, target), lab.UDPPort("u", 80, target)), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.gateway(f), "p1"))
			sees(t, s.p1.Namespace, udp(vip(f, 10), 80), saw(s.gateway(f), "p1"))
		})
	})
}

// A VIP without endpoints is refused at once, for pods by an ICMP error, and for a datagram of the node's own by EPERM.
func TestCase11NoEndpoints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := lab.Service("web", vips(10), lab.TCPPort("t", 80, target), lab.UDPPort("u", 80, target))
		s.put(svc)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.n1.Namespace, s.c.Namespace} {
				ends(t, ns, tcp(vip(f, 10), 80), lab.Refused)
			}
			ends(t, s.p2.Namespace, udp(vip(f, 10), 80), lab.Refused)
			ends(t, s.c.Namespace, udp(vip(f, 10), 80), lab.Refused)
			ends(t, s.n1.Namespace, udp(vip(f, 10), 80), lab.Denied)
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			comesToSee(t, s.p2.Namespace, udp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
		})
	})
}

// The address family of a VIP decides over its endpoints, and a Service of one family does not touch the other.
func TestCase19DualStack(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		both := web(10)
		s.cluster.SetService(both)
		s.cluster.SetSlice(lab.Slice(both, "v4", cluster.IPv4, lab.Ready(s.p1)))
		s.cluster.SetSlice(lab.Slice(both, "v6", cluster.IPv6, lab.Ready(s.p3)))
		for i := range cluster.Families {
			s.put(lab.Service(fmt.Sprint("only-", i), vips(20 + i)[i:i+1], lab.TCPPort("", 80, target)), lab.Ready(s.p1), lab.Ready(s.p3))
		}
		s.start(t, lab.AgentOptions{Flags: forwarding})
		sees(t, s.p2.Namespace, tcp(vip(cluster.IPv4, 10), 80), saw(s.p2.Addr(cluster.IPv4), "p1"))
		sees(t, s.p2.Namespace, tcp(vip(cluster.IPv6, 10), 80), saw(s.p2.Addr(cluster.IPv6), "p3"))
		sees(t, s.p2.Namespace, tcp(vip(cluster.IPv4, 20), 80), saw(s.p2.Addr(cluster.IPv4), "p1", "p3"))
		s.leavesAlone(t, s.p2.Namespace, tcp(vip(cluster.IPv6, 20), 80))
		sees(t, s.p2.Namespace, tcp(vip(cluster.IPv6, 21), 80), saw(s.p2.Addr(cluster.IPv6), "p1", "p3"))
		s.leavesAlone(t, s.p2.Namespace, tcp(vip(cluster.IPv4, 21), 80))
	})
}

// A port that a Service does not have is refused at once, over any protocol, and so is an address of the service range that no
// Service has: kube-proxy lets such packets go to the default route. An address of the range that the node itself has, as
// that of a DNS cache, is spared.
func TestCase21UndefinedPortIsRejectedBetterThanKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		own := netip.MustParseAddr("10.96.0.77")
		_, err := s.n1.Run("ip", "addr", "add", own.String()+"/32", "dev", "lo")
		ok(t, err)
		serve(t, s.n1.Namespace, "cache", lab.TCP, 53)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			astray, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == vip(f, 10) || p.Dst.Addr() == vip(f, 200) })
			ok(t, err)
			defer astray.Close()
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.n1.Namespace, s.c.Namespace} {
				for _, n := range []int{10, 200} {
					ends(t, ns, tcp(vip(f, n), 81), lab.Refused)
				}
			}
			ends(t, s.p2.Namespace, udp(vip(f, 10), 80), lab.Refused)
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			if n := astray.Count(); n > 0 {
				t.Errorf("%d packets went to the router: %v", n, astray.Packets()[0])
			}
		})
		sees(t, s.n1.Namespace, tcp(own, 53), saw(own, "cache"))
		sees(t, s.p2.Namespace, tcp(own, 53), saw(s.p2.Addr(cluster.IPv4), "cache"))
	})
}

// With unknownServices: Forward they are let through, as by kube-proxy.
func TestCase21UndefinedPortAsKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.n1.Namespace, s.c.Namespace} {
				s.leavesAlone(t, ns, tcp(vip(f, 10), 81))
			}
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
		})
	})
}
