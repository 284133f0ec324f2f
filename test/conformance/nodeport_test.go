package conformance_test

import (
	"fmt"
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
			// At ::1 there are no node ports.
			want := s.masqueraded(f, "p3")
			if f == cluster.IPv6 {
				want = saw(loopback(f), "process")
			}
			sees(t, s.n1.Namespace, tcp(loopback(f), port), want)
		})
	})
}

// With nodePortAddresses, node ports are at these addresses alone: elsewhere the host's own processes answer, or nobody does.
// An address that the node gets or loses counts at once.
func TestCase30NodePortAddresses(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.TCP, port)
		s.put(both(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: []string{"--nodeport-addresses=192.168.0.2/32,192.168.0.64/26,fd00:192:168::2/128,fd00:192:168::40/122"}})
		late := map[cluster.Family]netip.Addr{cluster.IPv4: netip.MustParseAddr("192.168.0.66"), cluster.IPv6: netip.MustParseAddr("fd00:192:168::66")}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
			sees(t, s.c.Namespace, tcp(s.second(f), port), saw(s.c.Addr(f), "process"))
			ends(t, s.c.Namespace, udp(s.second(f), port), lab.Refused)
			sees(t, s.p2.Namespace, tcp(s.gateway(f), port), saw(s.p2.Addr(f), "process"))
			sees(t, s.n1.Namespace, tcp(loopback(f), port), saw(loopback(f), "process"))

			length := map[cluster.Family]string{cluster.IPv4: "/24", cluster.IPv6: "/64"}[f]
			_, err := s.n1.Run("ip", "addr", "add", late[f].String()+length, "dev", "eth0", "nodad", "valid_lft", "forever", "preferred_lft", "0") // not a source
			ok(t, err)
			comesToSee(t, s.c.Namespace, tcp(late[f], port), s.masqueraded(f, "p1", "p3"))
			_, err = s.n1.Run("ip", "addr", "del", late[f].String()+length, "dev", "eth0")
			ok(t, err)
			ok(t, lab.Eventually(soon, func() error {
				if found := lines(s.save(t, f), late[f].String()); len(found) > 0 {
					return fmt.Errorf("there are rules for an address that is gone: %v", found)
				}
				return nil
			}))
		})
	})
}

// nodePortAddresses primary means the addresses of the Node.
func TestCase30Primary(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(both(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: []string{"--nodeport-addresses=primary"}})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
			ends(t, s.c.Namespace, tcp(s.second(f), port), lab.Refused)
			ends(t, s.n1.Namespace, tcp(loopback(f), port), lab.Refused)
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

// A process of the node reaches an IPv4 node port at 127.0.0.1; with localhostNodePorts off it does not, and at ::1 it never does.
func TestCase32Localhost(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(both(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(externalLocal(nodePort(web(11), port+1)), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		local4, local6 := loopback(cluster.IPv4), loopback(cluster.IPv6)
		for _, d := range []lab.Dial{tcp(local4, port), udp(local4, port), tcp(netip.MustParseAddr("127.9.9.9"), port)} {
			sees(t, s.n1.Namespace, d, s.masqueraded(cluster.IPv4, "p1", "p3"))
		}
		sees(t, s.n1.Namespace, tcp(local4, port+1), s.masqueraded(cluster.IPv4, "p3"))
		ends(t, s.n1.Namespace, tcp(local6, port), lab.Refused)
		ok(t, s.agent.Stop(soon))
		s.startOn(t, lab.AgentOptions{Flags: []string{"--iptables-localhost-nodeports=false"}}, s.n1)
		ends(t, s.n1.Namespace, tcp(local4, port), lab.Refused)
		sees(t, s.c.Namespace, tcp(s.n1.Addr(cluster.IPv4), port), s.masqueraded(cluster.IPv4, "p1", "p3"))
	})
}

// A neighbour that sends to 127.0.0.1 on the link never gets to what the node serves there for itself. Without the rule in
// KUBE-FIREWALL it would, with the route_localnet that node ports at 127.0.0.1 need (CVE-2020-8558).
func TestCase33NeighbourToLoopback(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.n1.Namespace, "process", lab.TCP, target)
		local := loopback(cluster.IPv4)
		for _, args := range [][]string{
			{"addr", "del", "127.0.0.1/8", "dev", "lo"},
			{"route", "add", "127.0.0.1/32", "via", s.n1.Addr(cluster.IPv4).String(), "src", s.c.Addr(cluster.IPv4).String()},
		} {
			_, err := s.c.Run("ip", args...)
			ok(t, err)
		}
		ok(t, s.c.Sysctl("net.ipv4.conf.all.route_localnet", "1"))
		d := tcp(local, target)
		d.From = netip.AddrPortFrom(s.c.Addr(cluster.IPv4), 0)
		ok(t, s.n1.Sysctl("net.ipv4.conf.all.route_localnet", "1"))
		sees(t, s.c.Namespace, d, saw(s.c.Addr(cluster.IPv4), "process")) // this is what the rule is for
		s.put(both(10), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		d.Timeout = silence
		ends(t, s.c.Namespace, d, lab.Timeout)
		sees(t, s.n1.Namespace, tcp(local, target), saw(local, "process"))
		sees(t, s.n1.Namespace, tcp(local, port), s.masqueraded(cluster.IPv4, "p1"))
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
