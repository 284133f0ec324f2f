package conformance_test

import (
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// With BridgeInterface, what comes through the pods' bridge keeps its source, and everything else is masqueraded.
func TestDetectBridgeInterface(t *testing.T) {
	detectsPods(t, "--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0")
}

// With InterfaceNamePrefix, so does what comes through an interface whose name begins in a certain way.
func TestDetectInterfaceNamePrefix(t *testing.T) {
	detectsPods(t, "--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cni")
}

func detectsPods(t *testing.T, flags ...string) {
	t.Helper()
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: flags})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
			sees(t, s.n1.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1", "p3"))
		})
	})
}

// The prefix is what decides: with that of the node's own link, outside clients count as pods, and pods do not.
func TestDetectOtherPrefix(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{Flags: []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=eth"}})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.c.Namespace, tcp(vip(f, 10), 80), saw(s.c.Addr(f), "p1"))
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1"))
		})
	})
}

// With ClusterCIDR, another node's pod that comes through n1 keeps its source; with NodeCIDR only n1's own pods do.
func TestDetectNodeCIDR(t *testing.T) {
	for mode, foreignKept := range map[string]bool{"ClusterCIDR": true, "NodeCIDR": false} {
		t.Run(mode, func(t *testing.T) {
			onBackends(t, func(t *testing.T, s *stage) {
				s.put(web(10), lab.Ready(s.p1))
				s.startOn(t, lab.AgentOptions{Flags: []string{"--detect-local-mode=" + mode}}, s.n1)
				for i, f := range cluster.Families {
					for _, dst := range []netip.Prefix{s.Topology.ServiceCIDRs[i], s.n1.PodCIDRs[i]} {
						ok(t, s.n2.AddRoute(lab.Route{Dst: dst, Via: s.n1.Addr(f)}))
					}
				}
				onFamilies(t, func(t *testing.T, f cluster.Family) {
					want := s.masqueraded(f, "p1")
					if foreignKept {
						want = saw(s.p3.Addr(f), "p1")
					}
					sees(t, s.p3.Namespace, tcp(vip(f, 10), 80), want)
					sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
					sees(t, s.c.Namespace, tcp(vip(f, 10), 80), s.masqueraded(f, "p1"))
				})
			})
		})
	}
}
