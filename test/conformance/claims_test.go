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

// everywhere are networks with all addresses of the lab.
const everywhere = "203.0.113.0/25,2001:db8:e::/120,192.168.0.0/16,10.0.0.0/8,fd00::/16"

// comesToNotes waits until so many Notes with a reason hold on n1.
func (s *stage) comesToNotes(t *testing.T, reason string, want float64) {
	t.Helper()
	ok(t, lab.Eventually(soon, func() error {
		have, err := s.metrics("fairway_notes")
		if err == nil && have[fmt.Sprintf("{reason=%q}", reason)] != want {
			err = fmt.Errorf("fairway_notes is %v, want %v of %s", have, want, reason)
		}
		return err
	}))
}

// says fails the test unless one line of n1's agent has all parts.
func (s *stage) says(t *testing.T, parts ...string) {
	t.Helper()
next:
	for line := range strings.Lines(s.agent.Output()) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		return
	}
	t.Errorf("the agent has no line with %q:\n%s", parts, s.agent.Output())
}

// keepsTheClusters claims addresses of nodes, pods and another Service, and one outside of the ranges, for a Service that is
// older than that other one. None of them is intercepted, although the agent's ranges have all but the last.
func (s *stage) keepsTheClusters(t *testing.T, flag string, claim func(*corev1.Service, ...netip.Addr) *corev1.Service) {
	t.Helper()
	const ssh = 22
	for name, ns := range map[string]*lab.Namespace{"n1-ssh": s.n1.Namespace, "n2-ssh": s.n2.Namespace, "p1-ssh": s.p1.Namespace, "p3-ssh": s.p3.Namespace} {
		serve(t, ns, name, lab.TCP, ssh)
	}
	plain := lab.Service("thief", vips(66), lab.TCPPort("ssh", ssh, target))
	thief := plain.DeepCopy()
	refused := map[cluster.Family][]netip.Addr{}
	for _, f := range cluster.Families {
		refused[f] = []netip.Addr{s.n1.Addr(f), s.n2.Addr(f), s.p1.Addr(f), s.p3.Addr(f), vip(f, 10), external(f, 200)}
		claim(thief, append(refused[f], external(f, 1))...)
	}
	s.put(thief, lab.Ready(s.p1))
	s.put(lab.Service("victim", vips(10), lab.TCPPort("ssh", ssh, target)), lab.Ready(s.p2))
	s.startOutside(t, flag+"="+everywhere)
	onFamilies(t, func(t *testing.T, f cluster.Family) {
		sees(t, s.c.Namespace, tcp(external(f, 1), ssh), s.masqueraded(f, "p1"))
		sees(t, s.c.Namespace, tcp(s.n1.Addr(f), ssh), saw(s.c.Addr(f), "n1-ssh"))
		sees(t, s.p2.Namespace, tcp(s.n1.Addr(f), ssh), saw(s.p2.Addr(f), "n1-ssh"))
		sees(t, s.p2.Namespace, tcp(s.n2.Addr(f), ssh), saw(s.p2.Addr(f), "n2-ssh"))
		sees(t, s.n1.Namespace, tcp(s.p1.Addr(f), ssh), saw(s.gateway(f), "p1-ssh"))
		sees(t, s.p2.Namespace, tcp(s.p3.Addr(f), ssh), saw(s.p2.Addr(f), "p3-ssh"))
		sees(t, s.c.Namespace, tcp(vip(f, 10), ssh), s.masqueraded(f, "p2"))
		for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.n1.Namespace} {
			s.leavesAlone(t, ns, tcp(external(f, 200), ssh))
		}
		for _, a := range refused[f] {
			s.says(t, cluster.ReasonAddressRefused, "default/thief", " "+a.String()+" ")
		}
	})
	s.comesToNotes(t, cluster.ReasonAddressRefused, float64(2*len(refused[cluster.IPv4])))
	s.cluster.SetService(plain)
	s.write(t)
	s.comesToNotes(t, cluster.ReasonAddressRefused, 0)
	onFamilies(t, func(t *testing.T, f cluster.Family) {
		sees(t, s.c.Namespace, tcp(vip(f, 66), ssh), s.masqueraded(f, "p1"))
	})
}

// No Service draws the cluster's own traffic by external IPs.
func TestExternalIPOfTheClusterIsNotIntercepted(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) { s.keepsTheClusters(t, "--external-ip-ranges", withExternal) })
}

// No Service draws the cluster's own traffic by load balancer IPs.
func TestLoadBalancerIPOfTheClusterIsNotIntercepted(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) { s.keepsTheClusters(t, "--load-balancer-ip-ranges", withBalancer) })
}

// External IPs are not served unless the operator allows them. When he allows all, a Service can draw the traffic to anything
// but another Service.
func TestExternalIPNeedsRanges(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n2.Namespace, "n2", lab.TCP, 80)
		svc := balanced(10)
		for _, f := range cluster.Families {
			withExternal(svc, external(f, 1), s.n2.Addr(f), vip(f, 11))
		}
		s.put(svc, lab.Ready(s.p1))
		s.put(duo(11), lab.Ready(s.p3))
		s.routeOutside(t)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.n1.Namespace} {
				s.leavesAlone(t, ns, afresh(tcp(external(f, 1), 80)))
			}
			sees(t, s.p2.Namespace, tcp(s.n2.Addr(f), 80), saw(s.p2.Addr(f), "n2"))
			s.masquerades(t, balancer(f, 10), "p1")
		})
		s.comesToNotes(t, cluster.ReasonAddressRefused, 6)

		o := s.agent.Options
		o.Flags = []string{"--allow-all-external-ips"}
		ok(t, s.agent.Stop(soon))
		s.startOn(t, o, s.n1)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.masquerades(t, external(f, 1), "p1")
			sees(t, s.p2.Namespace, tcp(s.n2.Addr(f), 80), s.masqueraded(f, "p1"))
			sees(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p3"))
		})
		s.comesToNotes(t, cluster.ReasonAddressRefused, 0)
		s.says(t, cluster.ReasonAddressConflict, "default/duo-10", "default/duo-11")
	})
}

// Of Services that claim an address and port, the oldest has it, whatever the others are called and whichever kind of address they
// claim it as. When it goes, the next one gets it, and keeps it when the first comes back.
func TestOldestServiceKeepsExternalIP(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		of := func(name string, n int, extra uint16) *corev1.Service {
			return lab.Service(name, vips(n), lab.TCPPort("http", 80, target), lab.TCPPort("extra", extra, target))
		}
		old := withExternal(of("z-old", 12, 82), inBoth(external, 1)...)
		middle := withBalancer(of("m-middle", 11, 81), inBoth(external, 1)...)
		young := withExternal(of("a-young", 10, 83), inBoth(external, 1)...)
		s.put(old, lab.Ready(s.p1))
		s.put(middle, lab.Ready(s.p2))
		s.put(young, lab.Ready(s.p3))
		s.startOutside(t)
		everybody := func(t *testing.T, f cluster.Family, number uint16, name string) {
			t.Helper()
			comesToSee(t, s.c.Namespace, tcp(external(f, 1), number), s.masqueraded(f, name))
			sees(t, s.p1.Namespace, tcp(external(f, 1), number), s.masqueraded(f, name))
			sees(t, s.n1.Namespace, tcp(external(f, 1), number), s.masqueraded(f, name))
		}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			everybody(t, f, 80, "p1")
			everybody(t, f, 81, "p2") // nobody else's
			everybody(t, f, 83, "p3")
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 11), 80), s.masqueraded(f, "p2"))
			at := netip.AddrPortFrom(external(f, 1), 80).String() + "/"
			s.says(t, cluster.ReasonAddressConflict, "default/m-middle", at, "default/z-old")
			s.says(t, cluster.ReasonAddressConflict, "default/a-young", at, "default/z-old")
		})
		s.comesToNotes(t, cluster.ReasonAddressConflict, 4)

		s.cluster.SetEndpoints(old) // what it holds it keeps: refused, not somebody else's
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.c.Namespace, tcp(external(f, 1), 80), lab.Refused)
			ends(t, s.n1.Namespace, tcp(external(f, 1), 80), lab.Refused)
		})
		s.cluster.RemoveService(old)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) { everybody(t, f, 80, "p2") })
		s.comesToNotes(t, cluster.ReasonAddressConflict, 2)
		s.put(old, lab.Ready(s.p1))
		s.write(t)
		s.comesToNotes(t, cluster.ReasonAddressConflict, 4)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			everybody(t, f, 82, "p1")
			everybody(t, f, 80, "p2")
		})
	})
}
