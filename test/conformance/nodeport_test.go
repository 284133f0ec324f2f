package conformance_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

const port = 30080

// both is a NodePort Service for TCP and UDP on the same node port.
func both(n int) *corev1.Service {
	svc := nodePort(lab.Service("web", vips(n), lab.TCPPort("t", 80, target), lab.UDPPort("u", 80, target)), port)
	svc.Spec.Ports[1].NodePort = port
	return svc
}

// An outside client reaches all endpoints at a node port; they see the node.
func TestCase27NodePort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(both(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
			sees(t, s.c.Namespace, udp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// A node port is at every address of the node: at its secondary one, and for pods at their gateway. The node itself
// reaches it too.
func TestCase28NodePortAtEveryAddress(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(both(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			want := s.masqueraded(f, "p1", "p3")
			sees(t, s.c.Namespace, tcp(s.second(f), port), want)
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), want)
			sees(t, s.p2.Namespace, udp(s.gateway(f), port), want)
			sees(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), want)
		})
	})
}

// Where a process of the node listens on a node port, the Service answers.
func TestCase29NodePortBeforeProcess(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.TCP, port)
		serve(t, s.n1.Namespace, "process", lab.UDP, port)
		svc := both(10)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "process"))
		})
		s.put(svc, lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			comesToSee(t, s.c.Namespace, udp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			// The loopback addresses are not translated: that would need route_localnet.
			local := loopback(f)
			sees(t, s.n1.Namespace, tcp(local, port), saw(local, "process"))
		})
	})
}

// A node port without endpoints refuses at every address of the node, also where a process listens, and also on the
// loopback address.
func TestCase31NodePortWithoutEndpoints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.TCP, port)
		s.put(both(10))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			ends(t, s.c.Namespace, tcp(s.n1.Addr(f), port), lab.Refused)
			ends(t, s.c.Namespace, udp(s.n1.Addr(f), port), lab.Refused)
			ends(t, s.c.Namespace, tcp(s.second(f), port), lab.Refused)
			ends(t, s.p2.Namespace, tcp(s.gateway(f), port), lab.Refused)
			ends(t, s.n1.Namespace, tcp(s.n1.Addr(f), port), lab.Refused)
			ends(t, s.n1.Namespace, tcp(loopback(f), port), lab.Refused)
		})
		s.cluster.RemoveService(both(10))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "process"))
			comesToSee(t, s.n1.Namespace, tcp(loopback(f), port), saw(loopback(f), "process"))
		})
	})
}

func loopback(f cluster.Family) netip.Addr {
	if f == cluster.IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// With a FORWARD policy of DROP, as Docker leaves it, an outside client still reaches a remote endpoint at a node port.
func TestCase61ForwardPolicyDrop(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(both(10), lab.Ready(s.p3))
		serve(t, s.c.Namespace, "c", lab.TCP, target)
		s.start(t, lab.AgentOptions{})
		for _, f := range cluster.Families {
			_, err := s.n1.Run(lab.Tool(s.backend, f, ""), "-w", "5", "-P", "FORWARD", "DROP")
			ok(t, err)
		}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			sees(t, s.c.Namespace, udp(s.n1.Addr(f), port), s.masqueraded(f, "p3"))
			d := tcp(s.c.Addr(f), target)
			d.Timeout = silence
			ends(t, s.p2.Namespace, d, lab.Timeout) // what the policy is for
		})
	})
}
