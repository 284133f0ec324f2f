package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, ns *lab.Namespace, s lab.Server) *lab.Listener {
	t.Helper()
	l, err := ns.Serve(s)
	ok(t, err)
	return l
}

// answers fails the test unless the given server answers and saw the client's address from.
func answers(t *testing.T, ns *lab.Namespace, d lab.Dial, name string, from netip.Addr) {
	t.Helper()
	r := ns.Ask(d)
	if r.Outcome != lab.OK || r.Name != name || r.Seen.Addr() != from {
		t.Errorf("%s %s %s: %v; want %s to see %s", ns.NetNS(), d.Proto, d.To, r, name, from)
	}
}

func TestConformanceTopology(t *testing.T) {
	t.Parallel()
	start := time.Now()
	l := lab.ForTest(t, lab.Conformance())
	t.Logf("built in %v", time.Since(start).Round(time.Millisecond))
	n1, n2, p1, p2, p3, c := l.Node("n1"), l.Node("n2"), l.Pod("p1"), l.Pod("p2"), l.Pod("p3"), l.Client("c")
	for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
		for name, ns := range map[string]*lab.Namespace{"n2": n2.Namespace, "p1": p1.Namespace, "p3": p3.Namespace} {
			serve(t, ns, lab.Server{Name: name, Proto: proto, Port: 8080})
		}
		for _, f := range cluster.Families {
			to := func(a netip.Addr) lab.Dial { return lab.Dial{Proto: proto, To: at(a, 8080)} }
			answers(t, p2.Namespace, to(p1.Addr(f)), "p1", p2.Addr(f))
			answers(t, n1.Namespace, to(p1.Addr(f)), "p1", n1gateway(f))
			answers(t, n1.Namespace, to(n2.Addr(f)), "n2", n1.Addr(f))
			answers(t, c.Namespace, to(n2.Addr(f)), "n2", c.Addr(f))
			if r := p1.Ask(lab.Dial{Proto: proto, To: at(p3.Addr(f), 8080), Timeout: 100 * time.Millisecond}); r.Outcome != lab.Timeout {
				t.Errorf("pod to pod across nodes without a route: %v", r)
			}
		}
	}
	for i, f := range cluster.Families {
		ok(t, n1.AddRoute(lab.Route{Dst: n2.PodCIDRs[i], Via: n2.Addr(f)}))
		ok(t, n2.AddRoute(lab.Route{Dst: n1.PodCIDRs[i], Via: n1.Addr(f)}))
		answers(t, p1.Namespace, lab.Dial{Proto: lab.TCP, To: at(p3.Addr(f), 8080)}, "p3", p1.Addr(f))
		answers(t, p1.Namespace, lab.Dial{Proto: lab.UDP, To: at(p3.Addr(f), 8080)}, "p3", p1.Addr(f))
		ok(t, n1.DeleteRoute(n2.PodCIDRs[i]))
		if r := p1.Ask(lab.Dial{Proto: lab.TCP, To: at(p3.Addr(f), 8080), Timeout: 100 * time.Millisecond}); r.Outcome != lab.Timeout {
			t.Errorf("after the route is gone: %v", r)
		}
	}
}

func n1gateway(f cluster.Family) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr("fd00:10:244:1::1")
	}
	return netip.MustParseAddr("10.244.1.1")
}

func TestBareTopology(t *testing.T) {
	t.Parallel()
	start := time.Now()
	l := lab.ForTest(t, lab.Bare())
	t.Logf("built in %v", time.Since(start).Round(time.Millisecond))
	node, outside := l.Node("node2"), l.Client("outside")
	serve(t, node.Namespace, lab.Server{Name: "node2", Proto: lab.TCP, Port: 80})
	serve(t, outside.Namespace, lab.Server{Name: "outside", Proto: lab.UDP, Port: 53})
	answers(t, outside.Namespace, lab.Dial{Proto: lab.TCP, To: at(node.Addr(cluster.IPv4), 80)}, "node2", outside.Addr(cluster.IPv4))
	answers(t, node.Namespace, lab.Dial{Proto: lab.UDP, To: at(outside.Addr(cluster.IPv4), 53)}, "outside", node.Addr(cluster.IPv4))
	if r := node.Ask(lab.Dial{Proto: lab.TCP, To: at(outside.Addr(cluster.IPv4), 81)}); r.Outcome != lab.Refused {
		t.Errorf("a closed port: %v", r)
	}
	ok(t, outside.Ask(lab.Dial{Proto: lab.UDP, To: at(node.Addr(cluster.IPv4), 81)}).Expect(lab.Refused))
	if err := outside.Ask(lab.Dial{Proto: lab.TCP, To: at(node.Addr(cluster.IPv4), 80)}).Expect(lab.Refused); err == nil {
		t.Error("an answer passes for a refusal")
	}
	if r := outside.Ask(lab.Dial{Proto: lab.TCP, To: netip.MustParseAddrPort("[2001:db8::1]:80")}); r.Outcome != lab.NoRoute {
		t.Errorf("IPv6 in an IPv4 lab: %v", r)
	}
	if r := node.Ask(lab.Dial{Proto: lab.TCP, To: netip.MustParseAddrPort("10.240.0.200:80"), Timeout: 10 * time.Second}); r.Outcome != lab.Unreachable {
		t.Errorf("an address that nobody has: %v", r)
	}
}

// TestSourceAddress holds that a datagram's answer comes from the address that was asked, and From chooses the client's end.
func TestSourceAddress(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t, lab.Conformance())
	n1, c := l.Node("n1"), l.Client("c")
	for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
		serve(t, n1.Namespace, lab.Server{Name: "n1", Proto: proto, Port: 7000})
		for i, a := range n1.Addrs {
			from := c.Addrs[1]
			if a.Is6() {
				from = c.Addrs[5]
			}
			d := lab.Dial{Proto: proto, To: at(a, 7000), From: at(from, 0)}
			answers(t, c.Namespace, d, "n1", from)
			d.From = at(netip.Addr{}, uint16(4000+i))
			if r := c.Ask(d); r.Outcome != lab.OK || r.Seen.Port() != 4000+uint16(i) || r.Local != r.Seen {
				t.Errorf("%s %s from port %d: %v", proto, a, 4000+i, r)
			}
		}
	}
}

const (
	webVIP  = "10.96.0.10"
	deadVIP = "10.96.0.11"

	deadVIP6 = "fd00:10:96::11"
)

const rules6 = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d fd00:10:96::11/128 -j REJECT --reject-with icmp6-port-unreachable
COMMIT
`

// rules is a service at 10.96.0.10:80 with the endpoints p1 and p2, one at :81 with only p1, and a refused and a dropped one.
const rules = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SVC - [0:0]
-A PREROUTING -j SVC
-A OUTPUT -j SVC
-A POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 -j MASQUERADE
-A SVC -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.244.1.2:8080
-A SVC -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.3:8080
-A SVC -d 10.96.0.10/32 -p tcp -m tcp --dport 81 -j DNAT --to-destination 10.244.1.2:8080
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d 10.96.0.11/32 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -d 10.96.0.12/32 -j DROP
-A OUTPUT -d 10.96.0.11/32 -j REJECT --reject-with icmp-port-unreachable
COMMIT
`

func TestRules(t *testing.T) {
	t.Parallel()
	for _, b := range lab.Backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			l := lab.ForTest(t, lab.Conformance())
			n1, p1, p2 := l.Node("n1"), l.Pod("p1"), l.Pod("p2")
			ok(t, n1.Restore(b, cluster.IPv4, rules, false))
			ok(t, n1.Restore(b, cluster.IPv6, rules6, false))
			nat, _, _ := strings.Cut(rules, "*filter")
			have, err := n1.Save(b, cluster.IPv4, "nat")
			ok(t, err)
			if have != nat {
				t.Errorf("saved:\n%s\nloaded:\n%s", have, nat)
			}
			serve(t, p1.Namespace, lab.Server{Name: "p1", Proto: lab.TCP, Port: 8080})
			serve(t, p2.Namespace, lab.Server{Name: "p2", Proto: lab.TCP, Port: 8080})
			web := lab.Dial{Proto: lab.TCP, To: at(netip.MustParseAddr(webVIP), 80)}
			for _, ns := range []*lab.Namespace{l.Client("c").Namespace, n1.Namespace} {
				checkSpread(t, ns, web)
			}
			checkVerdicts(t, l)
		})
	}
}

func checkSpread(t *testing.T, ns *lab.Namespace, web lab.Dial) {
	t.Helper()
	start := time.Now()
	got := ns.Spread(web, 600)
	t.Logf("600 connections from %s: %v in %v", ns.NetNS(), got, time.Since(start).Round(time.Millisecond))
	// A fair coin leaves 200..400 of 600 once in 10^15.
	if got["p1"]+got["p2"] != 600 || got["p1"] < 200 || got["p2"] < 200 {
		t.Errorf("spread: %v", got)
	}
}

func checkVerdicts(t *testing.T, l *lab.Lab) {
	t.Helper()
	p1, p2, n1 := l.Pod("p1"), l.Pod("p2"), l.Node("n1")
	dead, dropped := netip.MustParseAddr(deadVIP), netip.MustParseAddr("10.96.0.12")
	for i := range 20 { // more than ICMP rate limiting would allow
		for _, to := range []netip.Addr{dead, netip.MustParseAddr(deadVIP6)} {
			// Within the second after which TCP repeats a SYN.
			r := p2.Ask(lab.Dial{Proto: lab.TCP, To: at(to, 80), Timeout: 900 * time.Millisecond})
			if r.Outcome != lab.Refused {
				t.Fatalf("rejected from a pod, number %d: %v", i, r)
			}
		}
	}
	for _, want := range []struct {
		from    *lab.Namespace
		proto   lab.Proto
		to      netip.Addr
		outcome lab.Outcome
	}{
		{p2.Namespace, lab.UDP, dead, lab.Refused},
		{p2.Namespace, lab.UDP, netip.MustParseAddr(deadVIP6), lab.Refused},
		{n1.Namespace, lab.TCP, dead, lab.Refused},
		{n1.Namespace, lab.UDP, dead, lab.Denied},
		{p2.Namespace, lab.TCP, dropped, lab.Timeout},
		{p2.Namespace, lab.UDP, dropped, lab.Timeout},
	} {
		r := want.from.Ask(lab.Dial{Proto: want.proto, To: at(want.to, 80), Timeout: 400 * time.Millisecond})
		if r.Outcome != want.outcome {
			t.Errorf("%s %s %s: %v, want %s", want.from.NetNS(), want.proto, want.to, r, want.outcome)
		}
	}
	answers(t, p1.Namespace, lab.Dial{Proto: lab.TCP, To: at(netip.MustParseAddr(webVIP), 81)}, "p1", n1gateway(cluster.IPv4))
}

// TestHairpinMode shows what the topology's hairpin mode is for.
func TestHairpinMode(t *testing.T) {
	t.Parallel()
	topology := lab.Conformance()
	topology.NoHairpin = true
	l := lab.ForTest(t, topology)
	n1, p1 := l.Node("n1"), l.Pod("p1")
	ok(t, n1.Restore(lab.NFT, cluster.IPv4, rules, false))
	serve(t, p1.Namespace, lab.Server{Name: "p1", Proto: lab.TCP, Port: 8080})
	value, err := n1.ReadSysctl("net.bridge.bridge-nf-call-iptables")
	if err != nil || value != "1" {
		t.Skipf("this kernel has no bridge netfilter: %q, %v", value, err)
	}
	d := lab.Dial{Proto: lab.TCP, To: at(netip.MustParseAddr(webVIP), 81), Timeout: 400 * time.Millisecond}
	if r := p1.Ask(d); r.Outcome != lab.Timeout {
		t.Errorf("a pod to itself without hairpin mode: %v", r)
	}
}

func TestCapture(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t, lab.Conformance())
	n1, p2 := l.Node("n1"), l.Pod("p2")
	for _, vip := range []string{"10.96.0.99", "fd00:10:96::99"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(vip), 999)
		tap, err := l.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst == to })
		ok(t, err)
		for range 5 {
			if r := n1.Ask(lab.Dial{Proto: lab.UDP, To: to, Timeout: 250 * time.Millisecond}); r.Outcome != lab.Timeout {
				t.Errorf("the router answered: %v", r)
			}
		}
		p2.Ask(lab.Dial{Proto: lab.TCP, To: to, Timeout: 250 * time.Millisecond})
		ok(t, tap.Wait(6, 5*time.Second))
		ok(t, tap.Close())
		packets := tap.Packets()
		if len(packets) != 6 {
			t.Fatalf("captured %v", packets)
		}
		if p := packets[5]; p.TCPFlags != 0x02 || p.Protocol != unix.IPPROTO_TCP || p.Outgoing {
			t.Errorf("the last is no incoming SYN: %v", p)
		}
		if p := packets[0]; p.Protocol != unix.IPPROTO_UDP || p.Src.Addr() != n1.Addr(cluster.FamilyOf(to.Addr())) {
			t.Errorf("the first is no datagram of n1: %v", p)
		}
	}
}

func TestProberSeesOutage(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t, lab.Conformance())
	p1, n2 := l.Pod("p1"), l.Node("n2")
	for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
		t.Run(proto.String(), func(t *testing.T) {
			server := lab.Server{Name: "first", Proto: proto, Port: 9000}
			first := serve(t, n2.Namespace, server)
			ok(t, l.Node("n1").AddRoute(lab.Route{Dst: n2.PodCIDRs[0], Via: n2.Addr(cluster.IPv4)}))
			ok(t, n2.AddRoute(lab.Route{Dst: l.Node("n1").PodCIDRs[0], Via: l.Node("n1").Addr(cluster.IPv4)}))
			p, err := p1.Probe(lab.ProbeConfig{Dial: lab.Dial{
				Proto: proto, To: at(n2.Addr(cluster.IPv4), 9000), From: at(netip.Addr{}, fixedPort(proto)),
			}, Rate: 500})
			ok(t, err)
			waitServed(t, first, 50)
			before := time.Now()
			ok(t, first.Close())
			time.Sleep(200 * time.Millisecond) // the outage
			server.Name = "second"
			second := serve(t, n2.Namespace, server)
			waitServed(t, second, 50)
			r := p.Stop()
			t.Log(r)
			checkOutage(t, r, before)
		})
	}
}

// fixedPort is the source port of a UDP prober; new TCP connections have one each.
func fixedPort(proto lab.Proto) uint16 {
	if proto == lab.UDP {
		return 5353
	}
	return 0
}

func checkOutage(t *testing.T, r lab.Report, before time.Time) {
	t.Helper()
	if r.Names["first"] < 40 || r.Names["second"] < 40 { // 50 were served; the last may have been cut off
		t.Errorf("answers: %v", r.Names)
	}
	if r.Attempts != r.Failed()+r.Names["first"]+r.Names["second"] {
		t.Errorf("%d attempts, but %v and %v", r.Attempts, r.Failures, r.Names)
	}
	if r.Failures[lab.Refused] == 0 || r.LongestOutage < 150*time.Millisecond {
		t.Errorf("the outage was not seen: %v", r)
	}
	if r.FirstFailure.Before(before.Add(-time.Second)) || r.LastFailure.Before(r.FirstFailure) || !r.Last["second"].After(r.Last["first"]) {
		t.Errorf("times: %v to %v; %v", r.FirstFailure, r.LastFailure, r.Last)
	}
}

func waitServed(t *testing.T, l *lab.Listener, n int) {
	t.Helper()
	ok(t, lab.Eventually(10*time.Second, func() error {
		if have := l.Served(); have < n {
			return fmt.Errorf("served %d, want %d", have, n)
		}
		return nil
	}))
}

// TestProberWithoutFailure holds that the harness itself loses nothing at its highest rate.
func TestProberWithoutFailure(t *testing.T) {
	l := lab.ForTest(t, lab.Bare())
	node, outside := l.Node("node1"), l.Client("outside")
	for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
		s := serve(t, node.Namespace, lab.Server{Name: "node1", Proto: proto, Port: 9000})
		p, err := outside.Probe(lab.ProbeConfig{Rate: 1000, Dial: lab.Dial{
			Proto: proto, To: at(node.Addr(cluster.IPv4), 9000), Timeout: 5 * time.Second,
		}})
		ok(t, err)
		waitServed(t, s, 1000)
		r := p.Stop()
		t.Logf("%s: %v", proto, r)
		if r.Failed() != 0 || r.Names["node1"] != r.Attempts || r.Attempts < 1000 || r.LongestOutage != 0 {
			t.Errorf("%v, names %v", r, r.Names)
		}
	}
}

func TestLongSession(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t, lab.Bare())
	pod, node := l.Pod("pod1a"), l.Node("node1")
	server := serve(t, pod.Namespace, lab.Server{Name: "pod1a", Proto: lab.TCP, Port: 80})
	c, r := node.Open(lab.Dial{Proto: lab.TCP, To: at(pod.Addr(cluster.IPv4), 80)})
	if r.Outcome != lab.OK {
		t.Fatal(r)
	}
	for i := range 3 {
		want := fmt.Sprint("line ", i)
		if got, err := c.Ask(want, time.Second); err != nil || got != want {
			t.Errorf("asked %q: %q, %v", want, got, err)
		}
	}
	ok(t, server.Close())
	if _, err := c.Ask("anybody there?", time.Second); lab.OutcomeOf(err) != lab.Reset {
		t.Errorf("after the server is gone: %v", err)
	}
	if r := node.Ask(lab.Dial{Proto: lab.TCP, To: at(pod.Addr(cluster.IPv4), 80)}); r.Outcome != lab.Refused {
		t.Errorf("a new connection: %v", r)
	}
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t, lab.Bare())
	node := l.Node("node3")
	out, err := node.Run("sh", "-c", `ip -br addr show eth0; cat /proc/sys/net/ipv4/ip_forward; echo "$XTABLES_LOCKFILE"`)
	if err != nil || !strings.Contains(out, "10.240.0.13/24") || !strings.Contains(out, "\n1\n"+node.LockFile()) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := node.Run("sh", "-c", "echo out of order; exit 3"); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("a failing command: %v", err)
	}
	stubborn, err := node.Start(lab.Command{Path: "sh", Args: []string{"-c", "trap '' TERM; echo started; while :; do sleep 0.1; done"}})
	ok(t, err)
	ok(t, lab.Eventually(10*time.Second, func() error {
		if stubborn.Output() != "started\n" {
			return fmt.Errorf("output %q", stubborn.Output())
		}
		return nil
	}))
	if err := stubborn.Stop(50 * time.Millisecond); err == nil || !strings.Contains(stubborn.State(), "killed") {
		t.Errorf("stop: %v, %s", err, stubborn.State())
	}
	polite, err := node.Start(lab.Command{Path: "sleep", Args: []string{"1000"}})
	ok(t, err)
	if err := polite.Stop(10 * time.Second); !strings.Contains(polite.State(), "terminated") {
		t.Errorf("stop: %v, %s", err, polite.State())
	}
}

// TestCloseLeavesNothing holds for namespaces, files and processes, also with everything in use.
func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l, err := lab.New(lab.Conformance(), lab.Options{})
	ok(t, err)
	defer l.Close()
	n1, p1 := l.Node("n1"), l.Pod("p1")
	serve(t, p1.Namespace, lab.Server{Name: "p1", Proto: lab.TCP, Port: 80})
	to := lab.Dial{Proto: lab.TCP, To: at(p1.Addr(cluster.IPv4), 80)}
	_, err = n1.Probe(lab.ProbeConfig{Dial: to})
	ok(t, err)
	_, err = n1.Capture("eth0", nil)
	ok(t, err)
	if c, r := n1.Open(to); c == nil {
		t.Fatal(r)
	}
	p, err := n1.Start(lab.Command{Path: "sleep", Args: []string{"1000"}})
	ok(t, err)
	prefix := strings.TrimSuffix(n1.NetNS(), "n1")
	if got := names(t, prefix); len(got) != 8 {
		t.Errorf("namespaces: %v", got)
	}
	start := time.Now()
	ok(t, l.Close())
	t.Logf("closed in %v", time.Since(start).Round(time.Millisecond))
	if got := names(t, prefix); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("the folder %s: %v", l.Dir, err)
	}
	if err := unix.Kill(p.PID(), 0); err != unix.ESRCH {
		t.Errorf("the process: %v", err)
	}
	if r := n1.Ask(to); r.Outcome != lab.Failed || !strings.Contains(r.Err.Error(), "closed") {
		t.Errorf("asking in a closed lab: %v", r)
	}
	ok(t, l.Close())
}

// names lists the named namespaces with a prefix.
func names(t *testing.T, prefix string) []string {
	t.Helper()
	list, err := filepath.Glob("/run/netns/" + prefix + "*")
	ok(t, err)
	return list
}

// TestInterruptedRun holds that a lab that closes on signals leaves nothing behind, and the process dies of the signal; and
// that a killed one takes its processes along, with the rest left to Sweep.
func TestInterruptedRun(t *testing.T) {
	if os.Getenv("LAB_TEST_CHILD") != "" {
		l := lab.ForTest(t, lab.Bare())
		p, err := l.Node("node1").Start(lab.Command{Path: "sleep", Args: []string{"1000"}})
		ok(t, err)
		fmt.Printf("pid %d in %s\n", p.PID(), l.Node("node1").NetNS())
		select {}
	}
	t.Parallel()
	lab.Require(t)
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		child := exec.Command(os.Args[0], "-test.run=^TestInterruptedRun$")
		child.Env = append(os.Environ(), "LAB_TEST_CHILD=1")
		stdout, err := child.StdoutPipe()
		ok(t, err)
		ok(t, child.Start())
		var pid int
		var ns string
		_, err = fmt.Fscanf(stdout, "pid %d in %s\n", &pid, &ns)
		if err != nil {
			child.Process.Kill()
			t.Fatalf("the child built nothing: %v", err)
		}
		ok(t, child.Process.Signal(sig))
		_ = child.Wait() // the status says what follows
		if status := child.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.Signal(sig) {
			t.Errorf("%v: ended by %v", sig, child.ProcessState)
		}
		ok(t, lab.Eventually(10*time.Second, func() error {
			if err := unix.Kill(pid, 0); err != unix.ESRCH {
				return fmt.Errorf("the child's process %d: %v", pid, err)
			}
			return nil
		}))
		if sig == unix.SIGKILL {
			ok(t, lab.Sweep())
		}
		if got := names(t, strings.TrimSuffix(ns, "node1")); len(got) != 0 {
			t.Errorf("%v left %v", sig, got)
		}
		dir := filepath.Join(os.TempDir(), strings.TrimSuffix(ns, "-node1"))
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%v left %s: %v", sig, dir, err)
		}
	}
}

// TestParallelLabs holds that labs with the same addresses do not see each other.
func TestParallelLabs(t *testing.T) {
	t.Parallel()
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			l := lab.ForTest(t, lab.Bare())
			name := fmt.Sprint("lab", i)
			pod, node := l.Pod("pod1a"), l.Node("node1")
			serve(t, pod.Namespace, lab.Server{Name: name, Proto: lab.TCP, Port: 80})
			got := node.Spread(lab.Dial{Proto: lab.TCP, To: at(pod.Addr(cluster.IPv4), 80)}, 100)
			if got[name] != 100 {
				t.Errorf("%v", got)
			}
		})
	}
}

// A connection that only works because TCP sends its first packet again counts as failed for a Prober that is asked to.
func TestProberNoRepeats(t *testing.T) {
	l := lab.ForTest(t, lab.Bare())
	from, to := l.Pod("pod1a"), l.Pod("pod1b")
	if _, err := to.Serve(lab.Server{Name: "pod1b", Proto: lab.TCP, Port: 8080}); err != nil {
		t.Fatal(err)
	}
	const loses = "*filter\n-A INPUT -p tcp --syn -m statistic --mode nth --every 2 --packet 0 -j DROP\nCOMMIT\n"
	if err := to.Restore(lab.NFT, cluster.IPv4, loses, true); err != nil {
		t.Fatal(err)
	}
	dial := lab.Dial{Proto: lab.TCP, To: at(to.Addr(cluster.IPv4), 8080), Timeout: 20 * time.Second}
	for _, strict := range []bool{false, true} {
		p, err := from.Probe(lab.ProbeConfig{Dial: dial, Rate: 20, NoRepeats: strict})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if r := p.Stop(); strict != (r.Failures[lab.Timeout] > 0) {
			t.Errorf("NoRepeats %v: %s", strict, r)
		}
	}
}

// A SYN that is only late, so that TCP sends it again, is not lost: here the neighbour's address is not known for a second or two.
func TestProberLate(t *testing.T) {
	l := lab.ForTest(t, lab.Bare())
	from, on, to := l.Pod("pod1a"), l.Node("node1"), l.Node("node2")
	serve(t, to.Namespace, lab.Server{Name: "node2", Proto: lab.TCP, Port: 8080})
	run := func(ns *lab.Namespace, command ...string) string {
		out, err := ns.Run(command[0], command[1:]...)
		ok(t, err)
		return out
	}
	run(to.Namespace, "ip", "route", "add", from.Addr(cluster.IPv4).String(), "via", on.Addr(cluster.IPv4).String())
	run(on.Namespace, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	run(on.Namespace, "sysctl", "-q", "-w", "net.ipv4.neigh.eth0.retrans_time_ms=1500") // between SYNs, which the other end answers twice a second
	run(on.Namespace, "ip", "neigh", "flush", "all")                                    // TCP sees through it when a SYN waits in its own namespace
	run(to.Namespace, "sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=8")
	p, err := from.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: at(to.Addr(cluster.IPv4), 8080), Timeout: 20 * time.Second}, Rate: 10, NoRepeats: true})
	ok(t, err)
	time.Sleep(1200 * time.Millisecond)
	run(to.Namespace, "sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=0")
	ok(t, lab.Eventually(15*time.Second, func() error {
		if p.Report().Names["node2"] == 0 {
			return fmt.Errorf("no connection is open yet: %s", p.Report())
		}
		return nil
	}))
	r := p.Stop()
	out := run(from.Namespace, "nstat", "-asz", "TcpExtTCPSynRetrans")
	_, count, _ := strings.Cut(out, "TcpExtTCPSynRetrans")
	if fields := strings.Fields(count); len(fields) == 0 || fields[0] == "0" {
		t.Errorf("TCP has sent no SYN again:\n%s", out)
	}
	if r.Failed() > 0 {
		t.Errorf("late is not lost, but %s", r)
	}
}

// The last datagram before a Prober is stopped is not lost to it.
func TestProberStops(t *testing.T) {
	l := lab.ForTest(t, lab.Bare())
	from, to := l.Pod("pod1a"), l.Pod("pod1b")
	_, err := to.Serve(lab.Server{Name: "pod1b", Proto: lab.UDP, Port: 8080})
	ok(t, err)
	for i := range 100 {
		p, err := from.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.UDP, To: at(to.Addr(cluster.IPv4), 8080), Timeout: 10 * time.Second}, Rate: 1000})
		ok(t, err)
		time.Sleep(time.Duration(i) * 100 * time.Microsecond)
		if r := p.Stop(); r.Failed() > 0 {
			t.Fatalf("prober %d: %s", i, r)
		}
	}
}
