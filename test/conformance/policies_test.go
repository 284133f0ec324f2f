package conformance_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// duo is a dual-stack Service for TCP and UDP on the same port of its VIP.
func duo(n int) *corev1.Service {
	return lab.Service(fmt.Sprint("duo-", n), vips(n), lab.TCPPort("t", 80, target), lab.UDPPort("u", 80, target))
}

// internalLocal gives a Service the internalTrafficPolicy Local.
func internalLocal(svc *corev1.Service) *corev1.Service {
	policy := corev1.ServiceInternalTrafficPolicyLocal
	svc.Spec.InternalTrafficPolicy = &policy
	return svc
}

// externalLocal gives a Service the externalTrafficPolicy Local.
func externalLocal(svc *corev1.Service) *corev1.Service {
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	return svc
}

// unanswered fails the test unless an attempt gets neither an answer nor a refusal. At a node port that tells a drop from no
// rules at all: without rules the node refuses.
func unanswered(t *testing.T, ns *lab.Namespace, d lab.Dial) {
	t.Helper()
	d.Timeout = silence
	ends(t, ns, d, lab.Timeout)
}

// comesToNoAnswer waits until an attempt gets neither an answer nor a refusal.
func comesToNoAnswer(t *testing.T, ns *lab.Namespace, d lab.Dial) {
	t.Helper()
	d.Timeout = silence
	comesToEnd(t, ns, d, lab.Timeout)
}

// drops fails the test unless n1 drops what is sent to a VIP: neither an answer nor a refusal comes, and nothing passes n1 as it
// would without rules. That nothing passed is certain once a later datagram, to a port that the Service does not have, has.
func (s *stage) drops(t *testing.T, ns *lab.Namespace, d lab.Dial) {
	t.Helper()
	tap, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == d.To.Addr() && !p.Outgoing })
	ok(t, err)
	defer tap.Close()
	unanswered(t, ns, d)
	undefined := udp(d.To.Addr(), 9)
	unanswered(t, ns, undefined)
	ok(t, tap.Wait(1, soon))
	for _, p := range tap.Packets() {
		if p.Dst != undefined.To {
			t.Errorf("%s asks %s %s: passed n1: %v", ns.NetNS(), d.Proto, d.To, p)
		}
	}
}

// With internalTrafficPolicy Local, a VIP leads to the endpoints on this node only, from wherever one asks.
func TestCase22InternalTrafficPolicyLocal(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(internalLocal(duo(10)), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, d := range []lab.Dial{tcp(vip(f, 10), 80), udp(vip(f, 10), 80)} {
				sees(t, s.p2.Namespace, d, saw(s.p2.Addr(f), "p1"))
				sees(t, s.p1.Namespace, d, saw(s.gateway(f), "p1"))
				sees(t, s.n1.Namespace, d, s.masqueraded(f, "p1"))
				sees(t, s.c.Namespace, d, s.masqueraded(f, "p1"))
				if have := look(s.p3.Namespace, d); len(have) != 1 || have["p3"] == "" { // of n2, where p3 is the one
					t.Errorf("p3 asks %s %s: sees %v, want itself only", d.Proto, d.To, have)
				}
			}
		})
	})
}

// Without an endpoint on this node, internalTrafficPolicy Local drops in silence; only a datagram of the node's own is told.
func TestCase23InternalLocalWithoutLocal(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := internalLocal(duo(10))
		s.put(svc, lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.n1.Namespace, s.c.Namespace} {
				s.drops(t, ns, tcp(vip(f, 10), 80))
			}
			s.drops(t, s.p2.Namespace, udp(vip(f, 10), 80))
			s.drops(t, s.c.Namespace, udp(vip(f, 10), 80))
			ends(t, s.n1.Namespace, udp(vip(f, 10), 80), lab.Denied)
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			comesToSee(t, s.c.Namespace, udp(vip(f, 10), 80), s.masqueraded(f, "p1"))
		})
		s.cluster.SetEndpoints(svc, lab.NotReady(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.n1.Namespace, udp(vip(f, 10), 80), lab.Denied)
			comesToNoAnswer(t, s.p2.Namespace, tcp(vip(f, 10), 80))
			s.drops(t, s.p2.Namespace, tcp(vip(f, 10), 80))
		})
	})
}

// Without any endpoint, internalTrafficPolicy Local refuses as any other Service does.
func TestCase24InternalLocalWithoutAny(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(internalLocal(duo(10)), lab.NotReady(s.p1), lab.Gone(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, ns := range []*lab.Namespace{s.p2.Namespace, s.n1.Namespace, s.c.Namespace} {
				ends(t, ns, tcp(vip(f, 10), 80), lab.Refused)
			}
			ends(t, s.p2.Namespace, udp(vip(f, 10), 80), lab.Refused)
			ends(t, s.c.Namespace, udp(vip(f, 10), 80), lab.Refused)
			ends(t, s.n1.Namespace, udp(vip(f, 10), 80), lab.Denied)
		})
	})
}

// With internalTrafficPolicy Local, an endpoint on this node that terminates and still serves is used although there is a
// ready one elsewhere; a ready one on this node takes its place.
func TestCase25InternalLocalTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := internalLocal(web(10))
		s.put(svc, lab.Terminating(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1"))
		})
		s.cluster.SetEndpoints(svc, lab.Terminating(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.p1.Addr(f), "p2"))
		})
	})
}

// internalTrafficPolicy Local says nothing about node ports: they lead to all endpoints, also where the VIP is dropped.
func TestCase26InternalLocalNodePort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := internalLocal(both(10))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: forwarding})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			all := s.masqueraded(f, "p1", "p3")
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), all)
			sees(t, s.c.Namespace, udp(s.n1.Addr(f), port), all)
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), all)
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), all)
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1"))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			comesToEnd(t, s.n1.Namespace, udp(vip(f, 10), 80), lab.Denied)
			s.drops(t, s.c.Namespace, tcp(vip(f, 10), 80))
		})
	})
}

// With externalTrafficPolicy Local, a node port leads an outside client to the endpoints of that node, which see the client
// itself. The VIP is not affected.
func TestCase44ExternalTrafficPolicyLocal(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(externalLocal(both(10)), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.c.Namespace, udp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.c.Namespace, tcp(s.second(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.c.Namespace, tcp(s.n2.Addr(f), port), saw(s.c.Addr(f), "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
		})
	})
}

// On a node without an endpoint, externalTrafficPolicy Local drops what comes from outside in silence, also where a process
// listens. Without any endpoint it refuses.
func TestCase45ExternalLocalWithoutLocal(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.TCP, port)
		svc := externalLocal(both(10))
		s.put(svc, lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			unanswered(t, s.c.Namespace, tcp(s.n1.Addr(f), port))
			unanswered(t, s.c.Namespace, tcp(s.second(f), port))
			unanswered(t, s.c.Namespace, udp(s.n1.Addr(f), port))
			sees(t, s.c.Namespace, tcp(s.n2.Addr(f), port), saw(s.c.Addr(f), "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p3"))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
		})
		s.cluster.SetEndpoints(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.c.Namespace, tcp(s.n1.Addr(f), port), lab.Refused)
			comesToEnd(t, s.c.Namespace, udp(s.n1.Addr(f), port), lab.Refused)
			ends(t, s.p2.Namespace, tcp(s.gateway(f), port), lab.Refused)
			ends(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), lab.Refused)
		})
	})
}

// Behind externalTrafficPolicy Local, a pod at a node port reaches all endpoints, with or without one on the node; they see
// the pod.
func TestCase46ExternalLocalFromPod(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := externalLocal(both(10))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			all := saw(s.p2.Addr(f), "p1", "p3")
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), all)
			sees(t, s.p2.Namespace, udp(s.gateway(f), port), all)
			sees(t, s.p2.Namespace, tcp(s.n1.Addr(f), port), all)
			// A pod that reaches itself can't see itself.
			sees(t, s.p1.Namespace, tcp(s.n1.Addr(f), port), view{"p1": s.gateway(f).String(), "p3": s.p1.Addr(f).String()})
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "p3"))
			comesToSee(t, s.p1.Namespace, udp(s.n1.Addr(f), port), saw(s.p1.Addr(f), "p3"))
			comesToNoAnswer(t, s.c.Namespace, tcp(s.n1.Addr(f), port))
		})
	})
}

// Behind externalTrafficPolicy Local, a process of the node at a node port reaches all endpoints, with or without one on the
// node; they see the node.
func TestCase47ExternalLocalFromNode(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := externalLocal(both(10))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
			sees(t, s.n1.Namespace, udp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
			sees(t, s.n1.Namespace, tcp(s.second(f), port), s.masqueraded(f, "p1", "p3"))
			// To the gateway's address the node sends from that address. It lies in the cluster CIDR, so it stays.
			sees(t, s.n1.Namespace, tcp(s.gateway(f), port), saw(s.gateway(f), "p1", "p3"))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			comesToSee(t, s.n1.Namespace, udp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			comesToNoAnswer(t, s.c.Namespace, tcp(s.n1.Addr(f), port))
		})
	})
}

// With externalTrafficPolicy Local, an endpoint on the node that terminates and still serves is used for outside clients, while
// a pod is led to the ready one elsewhere. Once it serves no more, outside clients are dropped.
func TestCase48ExternalLocalTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := externalLocal(both(10))
		s.put(svc, lab.Terminating(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.c.Namespace, udp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "p3"))
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
		})
		s.cluster.SetEndpoints(svc, lab.Gone(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToNoAnswer(t, s.c.Namespace, tcp(s.n1.Addr(f), port))
		})
	})
}

// Without a way to tell pods' traffic, a pod at a node port with externalTrafficPolicy Local counts as from outside. The
// node's own traffic can be told all the same.
func TestCase50ExternalLocalNoDetection(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := externalLocal(both(10))
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Without: []string{"--cluster-cidrs"}})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "p1"))
			sees(t, s.p2.Namespace, udp(s.gateway(f), port), saw(s.p2.Addr(f), "p1"))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
		})
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			comesToNoAnswer(t, s.p2.Namespace, tcp(s.gateway(f), port))
		})
	})
}

// Where the interface tells pods' traffic, that also decides behind policy Local: what comes through the pods' interface
// reaches all endpoints at a node port and keeps its source at a VIP; everything else, another node's pods too, is from outside.
func TestCase51PoliciesByInterface(t *testing.T) {
	for mode, flag := range map[string]string{
		"BridgeInterface":     "--pod-bridge-interface=cni0",
		"InterfaceNamePrefix": "--pod-interface-name-prefix=cni",
	} {
		t.Run(mode, func(t *testing.T) {
			onBackends(t, func(t *testing.T, s *stage) {
				s.put(externalLocal(both(10)), lab.Ready(s.p1), lab.Ready(s.p3))
				s.put(internalLocal(web(11)), lab.Ready(s.p1), lab.Ready(s.p3))
				s.start(t, lab.AgentOptions{Flags: []string{"--detect-local-mode=" + mode, flag}})
				onFamilies(t, func(t *testing.T, f cluster.Family) {
					sees(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "p1", "p3"))
					sees(t, s.p3.Namespace, tcp(s.n1.Addr(f), port), saw(s.p3.Addr(f), "p1"))
					sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
					sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
					sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
					sees(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
					sees(t, s.n1.Namespace, tcp(vip(f, 11), 80), s.masqueraded(f, "p1"))
					sees(t, s.c.Namespace, tcp(vip(f, 11), 80), s.masqueraded(f, "p1"))
				})
			})
		})
	}
}
