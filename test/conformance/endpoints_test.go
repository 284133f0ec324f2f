package conformance_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// suffix makes an EndpointSlice's name one of a family.
func suffix(f cluster.Family) string { return "-" + strings.ToLower(f.String()) }

// An endpoint that is not ready gets nothing; it gets its share as soon as it is ready.
func TestCase12Readiness(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.put(svc, lab.Ready(s.p1), lab.NotReady(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
		})
	})
}

// An endpoint that is ready although it terminates, as publishNotReadyAddresses makes it, is used like any other.
func TestCase13ReadyWhileTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		published := lab.Terminating(s.p1)
		published.Ready = true
		s.put(web(10), published, lab.Ready(s.p3))
		s.put(web(11), published)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
			sees(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
		})
	})
}

// While all endpoints terminate, those that still serve are used; once there is a ready one, only that is.
func TestCase14FallbackToTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.put(svc, lab.Terminating(s.p1), lab.Gone(s.p2))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
		})
		s.cluster.SetEndpoints(svc, lab.Terminating(s.p1), lab.Gone(s.p2), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p3"))
		})
	})
}

// An endpoint that terminates and serves no more is none, even when there is no other.
func TestCase15NotServing(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Gone(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			ends(t, s.p2.Namespace, tcp(vip(f, 10), 80), lab.Refused)
		})
	})
}

// The slices of a Service are joined, and an endpoint in two of them has no double weight.
func TestCase16TwoSlices(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.cluster.SetService(svc)
		for _, f := range cluster.Families {
			s.cluster.SetSlice(lab.Slice(svc, "a"+suffix(f), f, lab.Ready(s.p1)))
			s.cluster.SetSlice(lab.Slice(svc, "b"+suffix(f), f, lab.Ready(s.p1), lab.Ready(s.p3)))
		}
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			got := shares(t, s.p2.Namespace, tcp(vip(f, 10), 80), 600)
			t.Logf("600 connections: %v", got)
			// Half of them is 300 ± 12. With double weight it would be 400, and 350 is four deviations from either.
			if got["p1"] < 250 || got["p1"] > 350 {
				t.Errorf("600 connections to two endpoints, one of them in two slices: %v", got)
			}
		})
	})
}

// The port of a slice belongs to the Service's port of the same name, and to no other.
func TestCase17PortNames(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.cluster.SetService(svc)
		for _, f := range cluster.Families {
			slice := lab.Slice(svc, suffix(f), f, lab.Ready(s.p1))
			other := "https"
			slice.Ports[0].Name = &other
			s.cluster.SetSlice(slice)
		}
		s.put(web(11), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			ends(t, s.p2.Namespace, tcp(vip(f, 10), 80), lab.Refused)
			sees(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
		})
		if notes, err := s.metrics("fairway_notes"); err != nil || len(notes) > 0 {
			t.Errorf("a name that differs is no mistake, but there are notes: %v, %v", notes, err)
		}
	})
}

// Services that are not ours to serve are not intercepted: headless ones, ExternalName, and those labelled for another
// proxy. A label that is added later takes a Service away, and its removal brings it back.
func TestCase18NotOurs(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		headless := lab.Service("headless", nil, lab.TCPPort("http", target, target))
		headless.Spec.ClusterIP, headless.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
		s.cluster.SetService(headless)
		for _, f := range cluster.Families {
			s.cluster.SetSlice(lab.Slice(headless, suffix(f), f, lab.Ready(s.p1)))
		}
		named := web(11)
		named.Spec.Type, named.Spec.ExternalName = corev1.ServiceTypeExternalName, "db.example.com"
		s.put(named, lab.Ready(s.p1))
		others := web(12)
		label := map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		others.Labels = label
		s.put(others, lab.Ready(s.p1))
		ours := web(13)
		s.put(ours, lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, name := range []string{"headless", "web-11", "web-12"} {
				if found := lines(s.save(t, f), "default/"+name); len(found) > 0 {
					t.Errorf("rules of %s: %v", name, found)
				}
			}
			// A headless Service is a name for the pods themselves.
			sees(t, s.p2.Namespace, tcp(s.p1.Addr(f), target), saw(s.p2.Addr(f), "p1"))
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 11), 80))
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 12), 80))
			sees(t, s.p2.Namespace, tcp(vip(f, 13), 80), saw(s.p2.Addr(f), "p1"))
		})
		ours.Labels = label
		s.cluster.SetService(ours)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			d := tcp(vip(f, 13), 80)
			d.Timeout = silence
			comesToEnd(t, s.p2.Namespace, d, lab.Timeout)
			s.leavesAlone(t, s.p2.Namespace, d)
			if found := lines(s.save(t, f), "default/web-13"); len(found) > 0 {
				t.Errorf("rules that stayed: %v", found)
			}
		})
		ours.Labels = nil
		s.cluster.SetService(ours)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 13), 80), saw(s.p2.Addr(f), "p1"))
		})
	})
}

// A connection outlives its endpoint's removal from the Service for as long as the process lives; new ones go elsewhere.
func TestCase20LongSession(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.put(svc, lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		conns := map[cluster.Family][]*lab.Conn{}
		for _, f := range cluster.Families {
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.c.Namespace, s.n1.Namespace} {
				conn, r := ns.Open(tcp(vip(f, 10), 80))
				ok(t, r.Expect(lab.OK))
				conns[f] = append(conns[f], conn)
			}
		}
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p3"))
			for i, conn := range conns[f] {
				for _, line := range []string{"still there?", "and now?"} {
					if got, err := conn.Ask(line, 5*time.Second); err != nil || got != line {
						t.Errorf("session %d: asked %q: %q, %v", i, line, got, err)
					}
				}
			}
		})
		s.cluster.RemoveService(svc)
		s.cluster.RemoveEndpoints(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.p2.Namespace, tcp(vip(f, 10), 80), lab.Refused)
			if got, err := conns[f][0].Ask("without the Service?", 5*time.Second); err != nil {
				t.Errorf("a session after the Service is gone: %q, %v", got, err)
			}
		})
	})
}

// Endpoints on addresses that no pod has, which would lead to the node itself or to a cloud's metadata service, are left
// out; a Service with no others has none.
func TestRefusedEndpoints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		bad := []lab.Endpoint{
			{Addrs: addrs("127.0.0.1", "::1"), NodeName: "n1", Ready: true, Serving: true},
			{Addrs: addrs("169.254.169.254", "fe80::1"), NodeName: "n1", Ready: true, Serving: true},
		}
		s.put(web(10), append([]lab.Endpoint{lab.Ready(s.p1)}, bad...)...)
		s.put(web(11), bad...)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			ends(t, s.p2.Namespace, tcp(vip(f, 11), 80), lab.Refused)
		})
		have, err := s.metrics("fairway_notes")
		ok(t, err)
		if want := map[string]float64{`{reason="EndpointRefused"}`: 8}; !maps.Equal(have, want) {
			t.Errorf("fairway_notes: %v, want %v", have, want)
		}
	})
}
