package conformance_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// senderPort is the port that all of a sender's datagrams come from, as those of a resolver or a phone do.
const senderPort = 5060

// reachable is duo with a node port and a load balancer IP: three ways to one UDP port.
func reachable(n int) *corev1.Service {
	svc := balanced(n)
	svc.Spec.Ports[1].NodePort = port
	return svc
}

// A way is a client, and an address at which it asks a Service over UDP, always from the same port.
type way struct {
	name string
	from *lab.Namespace
	dial lab.Dial
}

// ways are how pods, the node and outside clients come to reachable(n). Each has a port of its own.
func (s *stage) ways(f cluster.Family, n int) []way {
	list := []way{
		{"pod to ClusterIP", s.p2.Namespace, udp(vip(f, n), 80)},
		{"node to ClusterIP", s.n1.Namespace, udp(vip(f, n), 80)},
		{"outside to node port", s.c.Namespace, udp(s.n1.Addr(f), port)},
		{"outside to load balancer IP", s.c.Namespace, udp(balancer(f, n), 80)},
	}
	for i := range list {
		list[i].dial.From = netip.AddrPortFrom(netip.Addr{}, senderPort+uint16(i))
	}
	return list
}

// asks sends a datagram out of an open socket, and returns who answered.
func asks(c *lab.Conn) (string, error) {
	answer, err := c.Ask("?", silence)
	name, _, _ := strings.Cut(answer, " ")
	return name, err
}

// answered fails the test unless a socket that has asked before is answered by somebody.
func answered(t *testing.T, w way, c *lab.Conn, want string) {
	t.Helper()
	if name, err := asks(c); err != nil || name != want {
		t.Errorf("%s: answered by %q, %v, want %s", w.name, name, err, want)
	}
}

// comesToBeAnswered waits until a socket that has asked before is answered by somebody.
func comesToBeAnswered(t *testing.T, w way, c *lab.Conn, want string) {
	t.Helper()
	start := time.Now()
	ok(t, lab.Eventually(soon, func() error {
		if name, err := asks(c); err != nil || name != want {
			return fmt.Errorf("%s: answered by %q, %v, want %s", w.name, name, err, want)
		}
		return nil
	}))
	t.Logf("%s: %s after %v", w.name, want, time.Since(start).Round(time.Millisecond))
}

// opens asks for the first time, and keeps the socket. It ends the test unless somebody of the name answers.
func opens(t *testing.T, w way, want string) *lab.Conn {
	t.Helper()
	c, r := w.from.Open(w.dial)
	ok(t, r.Expect(lab.OK))
	if r.Name != want {
		t.Fatalf("%s: answered by %s, want %s", w.name, r.Name, want)
	}
	return c
}

// eachWay prepares a part of a case for both families; a failure ends the case.
func (s *stage) eachWay(n int, run func(cluster.Family, way)) {
	for _, f := range cluster.Families {
		for _, w := range s.ways(f, n) {
			run(f, w)
		}
	}
}

// onWays runs a part of a case for each family, with all of its ways at once.
func (s *stage) onWays(t *testing.T, n int, run func(*testing.T, cluster.Family, []way)) {
	t.Helper()
	onFamilies(t, func(t *testing.T, f cluster.Family) { run(t, f, s.ways(f, n)) })
}

// A UDP flow goes to the endpoint that it began with: while that serves, although it is shutting down and new flows go elsewhere; when
// it is gone, the same flow goes on to another.
func TestCase58FlowsMoveWithTheirEndpoint(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := reachable(10)
		s.put(svc, lab.Ready(s.p1))
		s.startOutside(t)
		conns := map[way]*lab.Conn{}
		s.eachWay(10, func(_ cluster.Family, w way) { conns[w] = opens(t, w, "p1") })
		s.cluster.SetEndpoints(svc, lab.Terminating(s.p1), lab.Ready(s.p3))
		s.write(t)
		s.onWays(t, 10, func(t *testing.T, f cluster.Family, ways []way) {
			for _, w := range ways {
				fresh := w.dial
				fresh.From = netip.AddrPort{}
				ok(t, lab.Eventually(soon, func() error {
					r := w.from.Ask(fresh)
					if r.Name != "p3" {
						return fmt.Errorf("%s: %v, want p3", w.name, r)
					}
					return nil
				}))
				answered(t, w, conns[w], "p1")
			}
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		s.onWays(t, 10, func(t *testing.T, _ cluster.Family, ways []way) {
			for _, w := range ways {
				comesToBeAnswered(t, w, conns[w], "p3")
			}
		})
	})
}

// A sender that began before its Service existed, and goes on while that has no endpoint, reaches the endpoint once there is one.
func TestCase59SenderBeforeEndpoint(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := reachable(10)
		s.startOutside(t)
		probers := map[way]*lab.Prober{}
		s.eachWay(10, func(_ cluster.Family, w way) {
			p, err := w.from.Probe(lab.ProbeConfig{Dial: w.dial, Rate: 100})
			ok(t, err)
			probers[w] = p
		})
		// To the node port and the load balancer IP, conntrack knows flows that nothing translates.
		for _, f := range cluster.Families {
			ok(t, lab.Eventually(soon, func() error {
				for _, at := range []netip.AddrPort{netip.AddrPortFrom(s.n1.Addr(f), port), netip.AddrPortFrom(balancer(f, 10), 80)} {
					if len(s.flows(t, f, func(e entry) bool { return e.to == at && e.answers == at })) == 0 {
						return fmt.Errorf("no flow to %s yet", at)
					}
				}
				return nil
			}))
		}
		s.put(svc)
		s.write(t)
		for w, p := range probers {
			want := lab.Refused
			if w.from == s.n1.Namespace {
				want = lab.Denied
			}
			ok(t, lab.Eventually(soon, func() error {
				if r := p.Report(); r.Failures[want] == 0 {
					return fmt.Errorf("%s, without endpoints: %v, want %s", w.name, r, want)
				}
				return nil
			}))
		}
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1))
		s.write(t)
		for w, p := range probers {
			ok(t, lab.Eventually(soon, func() error {
				if r := p.Report(); r.Names["p1"] == 0 {
					return fmt.Errorf("%s: %v, no answer of p1", w.name, r)
				}
				return nil
			}))
			t.Logf("%s: %v", w.name, p.Stop())
		}
	})
}

// A host's process that answered at the port before the Service had it gives way to the Service, also for a flow that is under way.
func TestCase59ProcessBeforeNodePort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.UDP, port)
		s.startOutside(t)
		conns := map[cluster.Family]*lab.Conn{}
		for _, f := range cluster.Families {
			conns[f] = opens(t, s.ways(f, 10)[2], "process")
		}
		s.put(reachable(10), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			// Nobody asks meanwhile: an answer of the process that is under way when the flow ends would begin one of its own.
			at := netip.AddrPortFrom(s.n1.Addr(f), port)
			ok(t, lab.Eventually(soon, func() error {
				if n := len(s.flows(t, f, func(e entry) bool { return e.to == at && e.answers == at })); n > 0 {
					return fmt.Errorf("%d flows to %s are not ended", n, at)
				}
				return nil
			}))
			comesToBeAnswered(t, s.ways(f, 10)[2], conns[f], "p3")
		})
		s.cluster.RemoveService(reachable(10))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToBeAnswered(t, s.ways(f, 10)[2], conns[f], "process")
		})
	})
}

// When a Service loses its last endpoint, senders that go on are rejected and do not reach the pod that is none any more, even though
// nobody has ever answered them. kube-proxy leaves such flows as they are (kubernetes#139628).
func TestCase60ScaledToZeroIsRejectedUnlikeKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := reachable(10)
		svc.Spec.Ports[1].TargetPort.IntVal = deaf
		s.put(svc, lab.Ready(s.p1))
		listens(t, s.p1.Namespace)
		s.startOutside(t)
		probers := map[way]*lab.Prober{}
		s.eachWay(10, func(_ cluster.Family, w way) {
			w.dial.Timeout = silence
			p, err := w.from.Probe(lab.ProbeConfig{Dial: w.dial, Rate: 100})
			ok(t, err)
			probers[w] = p
		})
		arrived, err := s.p1.Capture("eth0", toDeaf)
		ok(t, err)
		ok(t, arrived.Wait(200, soon))
		for w, p := range probers {
			if r := p.Report(); r.Failures[lab.Refused]+r.Failures[lab.Denied] > 0 {
				t.Fatalf("%s, with an endpoint: %v", w.name, r)
			}
		}
		s.cluster.SetEndpoints(svc)
		s.write(t)
		refused := func(r lab.Report) int { return r.Failures[lab.Refused] + r.Failures[lab.Denied] }
		for w, p := range probers {
			ok(t, lab.Eventually(soon, func() error {
				if r := p.Report(); refused(r) < 10 {
					return fmt.Errorf("%s, without endpoints: %v", w.name, r)
				}
				return nil
			}))
		}
		late, err := s.p1.Capture("eth0", toDeaf)
		ok(t, err)
		for w, p := range probers {
			before := refused(p.Report())
			ok(t, lab.Eventually(soon, func() error {
				if r := p.Report(); refused(r) < before+20 {
					return fmt.Errorf("%s, without endpoints: %v", w.name, r)
				}
				return nil
			}))
		}
		if n := late.Count(); n > 0 {
			t.Errorf("%d datagrams still came to the pod: %v", n, late.Packets()[0])
		}
	})
}

// deaf is a port at which a pod listens and never answers.
const deaf = 9999

func toDeaf(p lab.Packet) bool { return p.Dst.Port() == deaf && !p.Outgoing }

// listens opens the deaf port.
func listens(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	ok(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0), unix.Bind(fd, &unix.SockaddrInet6{Port: deaf}))
	}))
}

// A deleted Service's flows end, at each of its addresses, so that nothing comes to an address that is another pod's by now.
// kube-proxy leaves them (kubernetes#141371). Those of other Services go on.
func TestDeletedServiceEndsItsFlowsUnlikeKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		other := withBalancer(duo(11), inBoth(balancer, 11)...)
		s.put(reachable(10), lab.Ready(s.p1))
		s.put(other, lab.Ready(s.p1))
		s.startOutside(t)
		conns := map[way]*lab.Conn{}
		stays := map[cluster.Family]*lab.Conn{}
		s.eachWay(10, func(_ cluster.Family, w way) { conns[w] = opens(t, w, "p1") })
		for _, f := range cluster.Families {
			stays[f] = opens(t, way{"the other Service", s.p2.Namespace, udp(vip(f, 11), 80)}, "p1")
		}
		s.cluster.RemoveService(reachable(10))
		s.cluster.RemoveEndpoints(reachable(10))
		s.write(t)
		s.onWays(t, 10, func(t *testing.T, f cluster.Family, ways []way) {
			for _, w := range ways {
				ok(t, lab.Eventually(soon, func() error {
					if name, err := asks(conns[w]); err == nil {
						return fmt.Errorf("%s: still answered by %s", w.name, name)
					}
					return nil
				}))
			}
			answered(t, way{name: "the other Service"}, stays[f], "p1")
		})
	})
}

// An entry is what conntrack of n1 knows of a UDP flow.
type entry struct {
	from, to, answers netip.AddrPort
	// since is when the kernel made the entry, in nanoseconds; one that was deleted and made again has another.
	since uint64
}

// flows returns the UDP entries of n1 in a family that are of interest.
func (s *stage) flows(t *testing.T, f cluster.Family, of func(entry) bool) (list []entry) {
	t.Helper()
	af := map[cluster.Family]netlink.InetFamily{cluster.IPv4: unix.AF_INET, cluster.IPv6: unix.AF_INET6}[f]
	var all []*netlink.ConntrackFlow
	ok(t, s.n1.Do(func() (err error) {
		all, err = netlink.ConntrackTableList(netlink.ConntrackTable, af)
		return err
	}))
	end := func(ip []byte, port uint16) netip.AddrPort {
		a, _ := netip.AddrFromSlice(ip)
		return netip.AddrPortFrom(a.Unmap(), port)
	}
	for _, c := range all {
		e := entry{end(c.Forward.SrcIP, c.Forward.SrcPort), end(c.Forward.DstIP, c.Forward.DstPort), end(c.Reverse.SrcIP, c.Reverse.SrcPort), c.TimeStart}
		if c.Forward.Protocol == unix.IPPROTO_UDP && of(e) {
			list = append(list, e)
		}
	}
	return list
}

// startAlone starts the agent of n1 alone; n2 has the route to the pods of n1 that its agent would make.
func (s *stage) startAlone(t *testing.T) {
	t.Helper()
	s.routeOutside(t)
	for _, p := range s.n1.PodCIDRs {
		ok(t, s.n2.AddRoute(lab.Route{Dst: p, Via: s.n1.Addr(cluster.FamilyOf(p.Addr()))}))
	}
	s.startOn(t, lab.AgentOptions{}, s.n1)
}

// passing makes c's packets to n2 take the way through n1, where a process on n2 answers at a port, and returns an open flow to it. The
// node n2 has no agent.
func (s *stage) passing(t *testing.T, f cluster.Family) *lab.Conn {
	t.Helper()
	to := s.n2.Addr(f)
	ok(t, s.c.AddRoute(lab.Route{Dst: netip.PrefixFrom(to, to.BitLen()), Via: s.n1.Addr(f)}))
	return opens(t, way{"outside through n1 to n2", s.c.Namespace, udp(to, port)}, "far-process")
}

// since returns when n1 saw the one flow to a place first.
func (s *stage) since(t *testing.T, f cluster.Family, to netip.AddrPort) uint64 {
	t.Helper()
	list := s.flows(t, f, func(e entry) bool { return e.to == to })
	if len(list) != 1 || list[0].since == 0 {
		t.Fatalf("flows to %s: %v, want one, with its time", to, list)
	}
	return list[0].since
}

// What passes through the node to the same port of another machine is no flow of the Service and stays, while flows to the node port are
// ended. kube-proxy deletes it, as it looks at the port alone.
func TestPassingFlowIsLeftAloneUnlikeKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n2.Namespace, "far-process", lab.UDP, port)
		ok(t, s.n1.Sysctl("net.netfilter.nf_conntrack_timestamp", "1"))
		svc := reachable(10)
		s.put(svc, lab.Ready(s.p1))
		s.startAlone(t)
		passing, ours, since := map[cluster.Family]*lab.Conn{}, map[cluster.Family]*lab.Conn{}, map[cluster.Family]uint64{}
		for _, f := range cluster.Families {
			passing[f] = s.passing(t, f)
			ours[f] = opens(t, s.ways(f, 10)[2], "p1")
			since[f] = s.since(t, f, netip.AddrPortFrom(s.n2.Addr(f), port))
		}
		s.cluster.SetEndpoints(svc, lab.Ready(s.p2))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToBeAnswered(t, s.ways(f, 10)[2], ours[f], "p2")
			answered(t, way{name: "passing"}, passing[f], "far-process")
			if now := s.since(t, f, netip.AddrPortFrom(s.n2.Addr(f), port)); now != since[f] {
				t.Errorf("the flow that passes through was deleted: it is of %d, and was of %d", now, since[f])
			}
		})
	})
}

// An agent that starts with nothing changed looks at the flows and deletes none: of Services, of the node's own processes, passing ones,
// untranslated ones that only seem to be a Service's, and those of another proxy's Services in the service range. The kernel
// tells of no flow that ended (conntrack -E).
func TestRestartDeletesNoFlow(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n2.Namespace, "far-process", lab.UDP, port)
		serve(t, s.n1.Namespace, "process", lab.UDP, target)
		ok(t, s.n1.Sysctl("net.netfilter.nf_conntrack_timestamp", "1"))
		svc := externalLocal(reachable(10))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3), lab.Terminating(s.p2))
		s.put(duo(11))
		s.startAlone(t)
		for _, f := range cluster.Families {
			s.passing(t, f)
			ways := s.ways(f, 10)
			others := netip.AddrPortFrom(vip(f, 200), port)
			_, err := s.n1.Run(lab.Tool(s.backend, f, ""), "-w", "5", "-t", "nat", "-A", "PREROUTING", "-d", others.Addr().String(), "-p", "udp",
				"-m", "udp", "--dport", fmt.Sprint(port), "-j", "DNAT", "--to-destination", netip.AddrPortFrom(s.p1.Addr(f), target).String())
			ok(t, err)
			ways = append(ways, way{"another proxy's", s.p2.Namespace, lab.Dial{Proto: lab.UDP, To: others, From: netip.AddrPortFrom(netip.Addr{}, senderPort+99)}})
			for i, to := range []netip.AddrPort{netip.AddrPortFrom(s.n1.Addr(f), target), netip.AddrPortFrom(loopback(f), target), netip.AddrPortFrom(s.p1.Addr(f), target)} {
				ways = append(ways, way{"straight", s.n1.Namespace, lab.Dial{Proto: lab.UDP, To: to, From: netip.AddrPortFrom(netip.Addr{}, senderPort+100+uint16(i))}})
			}
			for _, w := range ways {
				_, r := w.from.Open(w.dial)
				ok(t, r.Expect(lab.OK))
			}
		}
		everything := func(entry) bool { return true }
		events, err := s.n1.Start(lab.Command{Path: "conntrack", Args: []string{"-E", "-e", "DESTROY", "-p", "udp"}})
		ok(t, err)
		defer func() {
			if said := events.Output(); strings.Contains(said, "[DESTROY]") || events.State() != "running" {
				t.Errorf("conntrack -E (%s) tells:\n%s", events.State(), said)
			}
		}()
		for range 3 {
			before := map[cluster.Family][]entry{}
			for _, f := range cluster.Families {
				before[f] = s.flows(t, f, everything)
			}
			s.agent.Kill()
			s.startOn(t, s.agent.Options, s.n1)
			s.looked(t, 0)
			for _, f := range cluster.Families {
				now := s.flows(t, f, everything)
				for _, e := range before[f] {
					found := false
					for _, n := range now {
						found = found || n == e
					}
					if !found {
						t.Errorf("the flow %v is gone", e)
					}
				}
				if len(before[f]) < 8 {
					t.Errorf("only %d flows: %v", len(before[f]), before[f])
				}
			}
		}
	})
}

// looked fails the test unless the agent on n1 has looked at the flows since it started, and deleted so many of each family.
func (s *stage) looked(t *testing.T, deleted float64) {
	t.Helper()
	looks, err := s.metrics("kubeproxy_conntrack_reconciler_sync_duration_seconds_count")
	ok(t, err)
	counts, err := s.metrics("kubeproxy_conntrack_reconciler_deleted_entries_total")
	ok(t, err)
	for _, f := range cluster.Families {
		label := fmt.Sprintf("{ip_family=%q}", f)
		if looks[label] == 0 || counts[label] != deleted {
			t.Errorf("%s: looked %v times, deleted %v flows, want %v", f, looks[label], counts[label], deleted)
		}
	}
}

// What changed while no agent ran is made up for at the start: endpoints and whole Services that are gone.
func TestStartEndsFlowsOfBefore(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc, doomed := reachable(10), duo(11)
		s.put(svc, lab.Ready(s.p1))
		s.put(doomed, lab.Ready(s.p1))
		s.startAlone(t)
		moved, ended := map[way]*lab.Conn{}, map[cluster.Family]*lab.Conn{}
		s.eachWay(10, func(_ cluster.Family, w way) { moved[w] = opens(t, w, "p1") })
		for _, f := range cluster.Families {
			ended[f] = opens(t, way{"the deleted Service", s.p2.Namespace, udp(vip(f, 11), 80)}, "p1")
		}
		s.agent.Kill()
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.cluster.RemoveService(doomed)
		s.startOn(t, s.agent.Options, s.n1)
		s.looked(t, 5)
		s.onWays(t, 10, func(t *testing.T, f cluster.Family, ways []way) {
			for _, w := range ways {
				comesToBeAnswered(t, w, moved[w], "p3")
			}
			if name, err := asks(ended[f]); err == nil {
				t.Errorf("the deleted Service's flow still reaches %s", name)
			}
		})
	})
}

// Flows that found no rules, because somebody flushed them, are translated when the rules are back.
func TestFlushedRulesLeaveNoFlowBehind(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.UDP, port)
		s.put(reachable(10), lab.Ready(s.p1))
		s.startOutside(t, "--iptables-sync-period=1s")
		const deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total"
		before, err := s.metrics(deleted)
		ok(t, err)
		ok(t, s.agent.Signal(unix.SIGSTOP)) // or it may be faster than the flows
		for _, f := range cluster.Families {
			_, err := s.n1.Run(lab.Tool(s.backend, f, ""), "-w", "5", "-t", "nat", "-F")
			ok(t, err)
		}
		conns := map[cluster.Family]*lab.Conn{}
		for _, f := range cluster.Families {
			conns[f] = opens(t, s.ways(f, 10)[2], "process")
		}
		ok(t, s.agent.Signal(unix.SIGCONT))
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			start := time.Now()
			label := fmt.Sprintf("{ip_family=%q}", f)
			// Nothing is asked meanwhile: an answer that is under way when its flow ends begins another one, from the program.
			ok(t, lab.Eventually(soon, func() error {
				if now, err := s.metrics(deleted); err != nil || now[label] <= before[label] {
					return fmt.Errorf("%v flows have ended, %v before: %v", now[label], before[label], err)
				}
				return nil
			}))
			if name, err := asks(conns[f]); err != nil || name != "p1" {
				t.Errorf("answered by %q, %v, want p1", name, err)
			}
			t.Logf("p1 after %v", time.Since(start).Round(time.Millisecond))
		})
	})
}
