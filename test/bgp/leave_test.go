package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

const dnsPort = 53

var dnsIP, dnsIP6 = addr("10.96.0.40"), addr("fd00:10:96::40")

func udp(a netip.Addr, port uint16) lab.Dial {
	d := tcp(a, port)
	d.Proto = lab.UDP
	return d
}

// A loss is what somebody outside lost: datagrams, each a flow of its own, that were not answered. (A TCP connection that is under way
// when the router takes another way can break whatever the nodes do.)
type loss struct {
	sent, lost int
	// gap is the longest time without an answer.
	gap time.Duration
}

// String is a row of docs/bgp.md's table.
func (l loss) String() string {
	return fmt.Sprintf("%d of %d lost, longest gap %d ms", l.lost, l.sent, l.gap.Milliseconds())
}

// lossOf adds up what probers saw, and ends them.
func lossOf(probers ...*lab.Prober) (l loss) {
	for _, p := range probers {
		r := p.Stop()
		l.sent, l.lost, l.gap = l.sent+r.Attempts, l.lost+r.Failed(), max(l.gap, r.LongestOutage)
	}
	return l
}

// probe asks addresses all the time from outside.
func (r *rig) probe(asks ...lab.Dial) (probers []*lab.Prober) {
	r.Helper()
	for _, a := range asks {
		a.Timeout = 10 * time.Second // a lost datagram takes as long to be known as lost
		p, err := r.outside.Probe(lab.ProbeConfig{Dial: a, Rate: 100, NewFlows: true})
		r.ok(err)
		probers = append(probers, p)
	}
	return probers
}

// during returns what is lost at the addresses while something is done.
func (r *rig) during(what string, do func(), asks ...lab.Dial) loss {
	r.Helper()
	probers := r.probe(asks...)
	time.Sleep(500 * time.Millisecond)
	do()
	time.Sleep(500 * time.Millisecond)
	l := lossOf(probers...)
	r.Logf("%s: %s", what, l)
	return l
}

// via is nil when the gateway's kernel sends the service ranges to these nodes and no other.
func (r *rig) via(nodes ...*lab.Node) error {
	for i, f := range cluster.Families {
		flag := map[cluster.Family]string{cluster.IPv4: "-4", cluster.IPv6: "-6"}[f]
		out, err := r.lab.Router().Run("ip", flag, "route", "show", r.lab.Topology.ServiceCIDRs[i].String())
		if err != nil {
			return err
		}
		if n := strings.Count(out, "via "); n != len(nodes) {
			return fmt.Errorf("the service range goes to %d nodes, expected %d: %s", n, len(nodes), out)
		}
		for _, n := range nodes {
			if !strings.Contains(out, "via "+n.Addr(f).String()+" ") {
				return fmt.Errorf("the service range does not go to %s: %s", n.Name, out)
			}
		}
	}
	return nil
}

// deaf has a node drop packets to a destination of each family; "" for all, and all that it sends, as if it were off. The
// function that is returned ends that.
func (r *rig) deaf(n *lab.Node, to ...string) (end func()) {
	r.Helper()
	var undo [][]string
	for i, bin := range []string{"iptables-nft", "ip6tables-nft"} {
		chains := map[string][]string{"PREROUTING": {"-j", "DROP"}, "OUTPUT": {"-j", "DROP"}}
		if len(to) > 0 {
			chains = map[string][]string{"PREROUTING": {"-d", to[i], "-j", "DROP"}}
		}
		for chain, rule := range chains {
			_, err := n.Run(bin, append([]string{"-w", "-t", "raw", "-I", chain}, rule...)...)
			r.ok(err)
			undo = append(undo, append([]string{bin, "-w", "-t", "raw", "-D", chain}, rule...))
		}
	}
	return func() {
		r.Helper()
		for _, c := range undo {
			_, err := n.Run(c[0], c[1:]...)
			r.ok(err)
		}
	}
}

// changeNode changes a Node object.
func (r *rig) changeNode(i int, change func(*corev1.Node)) {
	r.Helper()
	n := lab.NodeObject(r.lab.Topology.Nodes[i])
	if change != nil {
		change(n)
	}
	r.cluster.SetNode(n)
	r.ok(r.cluster.Write())
}

func annotated(n *corev1.Node) { n.Annotations = map[string]string{"fairway.dev/drain": "true"} }

// leave runs fairway leave on n1.
func (r *rig) leave() {
	r.Helper()
	out := r.fairway("leave")
	if !strings.Contains(out, "GRACEFUL_SHUTDOWN in 2 sessions") || !strings.Contains(out, "2 sessions are ended") {
		r.Errorf("fairway leave says\n%s", out)
	}
	r.eventually(startBound, func() error { return r.noted(r.n1, cluster.ReasonBGPLeft, "fairway leave --undo") })
	r.ok(r.up(r.n1, 0))
	if n := r.metric(r.n1, `fairway_bgp_peer_info{asn="64500",graceful_restart="false",last_error="",peer="192.0.2.1",state="left"}`); n != 1 {
		r.Errorf("fairway_bgp_peer_info does not say that n1 has left: %v", n)
	}
}

// undo takes that back.
func (r *rig) undo() {
	r.Helper()
	r.fairway("leave", "--undo")
}

// startFairway starts a command that talks to n1's agent.
func (r *rig) startFairway(args ...string) *lab.Process {
	r.Helper()
	bin, err := lab.AgentBinary()
	r.ok(err)
	p, err := r.n1.Start(lab.Command{Path: bin, Args: append(args, "--control-socket="+r.n1.ControlSocket())})
	r.ok(err)
	return p
}

// fairway is what such a command says.
func (r *rig) fairway(args ...string) string {
	r.Helper()
	p := r.startFairway(args...)
	<-p.Exited()
	if err := p.Err(); err != nil {
		r.Fatalf("fairway %s: %v\n%s", strings.Join(args, " "), err, p.Output())
	}
	return p.Output()
}

// shutDown does to n1 what a kubelet does when the machine shuts down: it says so, and then ends the agent.
func (r *rig) shutDown() {
	r.Helper()
	r.changeNode(0, func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: "node is shutting down"}}
	})
	r.eventually(sessionBound, func() error { return r.noted(r.n1, cluster.ReasonBGPDraining, "shutting down") })
	r.ok(r.agents[r.n1].Stop(startBound))
}

// boot has n1 return.
func (r *rig) boot() {
	r.Helper()
	r.changeNode(0, nil)
	r.restart(r.n1)
}

// TestDrainAndLeave: a gateway sends what is for Services to two nodes. A node that drains gets none of it any more, and whoever
// is outside loses nothing, whatever becomes of the node's rules; its pods are reached all the time. A node that leaves can be switched
// off. Without either, packets are lost.
func TestDrainAndLeave(t *testing.T) {
	for _, gw := range []struct {
		name  string
		start func(*testing.T, *lab.Namespace, string) *gateway
		block string
		// shutdown is how the daemon shows the community GRACEFUL_SHUTDOWN.
		shutdown string
		// said is where it tells why sessions ended, and ceased what it says of one that the node has ended.
		said   func(*gateway) (string, error)
		ceased string
		// leave has n1 leave, back brings it back.
		leave, back func(*rig)
	}{
		{"BIRD", startBIRD, "bird", "(65535,0)", func(g *gateway) (string, error) { return g.procs[0].Output(), nil }, "Received: Administrative shutdown", (*rig).leave, (*rig).undo},
		{"FRR", startFRR, "frr", "graceful-shutdown", func(g *gateway) (string, error) {
			return g.ns.Run("vtysh", "--vty_socket", g.dir, "-c", "show bgp neighbors 192.0.2.11")
		}, "Cease/Administrative Shutdown", (*rig).shutDown, (*rig).boot},
	} {
		t.Run(gw.name, func(t *testing.T) {
			r := newRig(t)
			router := r.lab.Router()
			dns := lab.Service("dns", []netip.Addr{dnsIP, dnsIP6}, lab.UDPPort("", dnsPort, targetPort))
			for _, p := range []*lab.Pod{r.p1, r.p2} {
				_, err := p.Serve(lab.Server{Name: p.Name, Proto: lab.UDP, Port: targetPort})
				r.ok(err)
			}
			r.cluster.SetService(dns)
			r.cluster.SetEndpoints(dns, lab.Ready(r.p1), lab.Ready(r.p2))
			r.ok(r.cluster.Write())
			// New flows are shared out, not new clients.
			r.ok(router.Sysctl("net.ipv4.fib_multipath_hash_policy", "1"))
			r.ok(router.Sysctl("net.ipv6.fib_multipath_hash_policy", "1"))
			g := gw.start(t, router, example(t, gw.block))
			configuration := strings.Replace(example(t, "yaml"), "bgp:\n", "bgp:\n  leave: {noticeTime: 2s, quietTime: 1s}\n", 1)
			r.start(configuration, r.n1, r.n2)
			r.eventually(sessionBound, func() error { return r.via(r.n1, r.n2) })
			vips := []lab.Dial{udp(dnsIP, dnsPort), udp(dnsIP6, dnsPort)}
			pods := []lab.Dial{udp(r.p1.Addrs[0], targetPort), udp(r.p1.Addrs[1], targetPort)}
			for _, a := range slices.Concat(vips, pods) {
				r.eventually(sessionBound, func() error {
					if result := r.outside.Ask(a); result.Outcome != lab.OK {
						return fmt.Errorf("%s from outside: %s", a.To, result)
					}
					return nil
				})
			}
			ranges := []string{"10.96.0.0/16", "fd00:10:96::/112"}
			broken := func() {
				end := r.deaf(r.n1, ranges...)
				time.Sleep(time.Second)
				end()
			}

			drained := r.during("drain", func() {
				r.changeNode(0, annotated)
				r.eventually(sessionBound, func() error { return g.learned(gw.shutdown) })
				r.eventually(sessionBound, func() error { return r.via(r.n2) })
				r.eventually(sessionBound, func() error { return g.learned("!" + gw.shutdown) })
				r.eventually(startBound, func() error { return r.noted(r.n1, cluster.ReasonBGPDraining, "fairway.dev/drain") })
				broken()
				r.changeNode(0, nil)
				r.eventually(sessionBound, func() error { return r.via(r.n1, r.n2) })
			}, slices.Concat(vips, pods)...)
			measured.Flow(t, drained.lost, drained.sent, drained.gap)
			if drained.lost > 0 {
				t.Error("a drain lost packets")
			}
			if r.during("no drain", broken, vips...).lost == 0 {
				t.Error("nothing is lost at a node that has rules no more and was not drained: the test sees nothing")
			}

			r.cluster.SetEndpoints(dns, lab.Ready(r.p2)) // the pods have been moved
			r.changeNode(0, nil)
			off := func() {
				end := r.deaf(r.n1)
				time.Sleep(2 * time.Second)
				end()
			}
			left := r.during("leave", func() {
				gw.leave(r)
				off()
			}, vips...)
			measured.Flow(t, left.lost, left.sent, left.gap)
			if left.lost > 0 {
				t.Error("a leave lost packets")
			}
			if out, err := gw.said(g); err != nil || !strings.Contains(out, gw.ceased) {
				t.Errorf("the gateway was not told the end by %q: %v\n%s", gw.ceased, err, out)
			}
			gw.back(r)
			r.eventually(sessionBound, func() error { return r.via(r.n1, r.n2) })
			if r.during("no leave", off, vips...).lost == 0 {
				t.Error("nothing is lost at a node that is off and has not left: the test sees nothing")
			}
		})
	}
}

// TestCleanupTellsPeers: an agent that has ended would come back, for all that the gateway knows, which keeps its routes. A cleanup
// has it drop them.
func TestCleanupTellsPeers(t *testing.T) {
	r := newRig(t)
	startBIRD(t, r.lab.Router(), example(t, "bird"))
	r.start(example(t, "yaml")+"stateDir: "+t.TempDir()+"\n", r.n1)
	routes := []string{"10.244.1.0/24 via 192.0.2.11", "fd00:10:244:1::/64 via 2001:db8:2::11"}
	for i, f := range cluster.Families {
		r.eventually(sessionBound, func() error { return kernelHas(r.lab.Router(), f, routes[i]) })
	}
	r.ok(r.agents[r.n1].Stop(startBound))
	time.Sleep(2 * time.Second) // that much time the gateway has for doing wrong
	for i, f := range cluster.Families {
		r.ok(kernelHas(r.lab.Router(), f, routes[i]))
	}
	bin, err := lab.AgentBinary()
	r.ok(err)
	out, err := r.n1.Run("env", "NODE_NAME=n1", bin, "cleanup", "--iptables-backend=nft", "--control-socket="+r.n1.ControlSocket(), r.agents[r.n1].Options.Flags[0])
	r.ok(err)
	if !strings.Contains(out, "BGP peers: 2 of 2 told\nroutes: ") {
		t.Errorf("fairway cleanup says\n%s", out)
	}
	for i, f := range cluster.Families { // restartTime is 2 minutes
		r.eventually(20*time.Second, func() error {
			if kernelHas(r.lab.Router(), f, routes[i]) == nil {
				return fmt.Errorf("the gateway still has %s", routes[i])
			}
			return nil
		})
	}
}
