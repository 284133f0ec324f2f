package takeover

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

// patience bounds what a busy machine may take.
const patience = time.Minute

// TestRunningKubeProxy: fairway starts beside a running kube-proxy, kube-proxy stops, what it left is removed; and the same
// the other way round. No connection and no datagram fails, and each time the chains are exactly those of who is left.
func TestRunningKubeProxy(t *testing.T) {
	w := newWorld(t)
	t.Run("nothing there", w.planOnEmptyNode)
	for _, m := range []mode{legacy, nft} {
		t.Run(m.name, func(t *testing.T) { w.thereAndBack(t, m) })
	}
	t.Run("other iptables", w.fromOtherBackend)
	t.Run(nftables.name, w.fromNFTables)
}

func (w *world) thereAndBack(t *testing.T, m mode) {
	kubeProxy := w.startKubeProxy(t, m.node, m)
	alone := w.startKubeProxy(t, freshName(m.node), m)
	w.works(t, m)
	w.likeKubeProxyAlone(t, m, "before")
	w.planned(t, m, fmt.Sprintf("pid %d in iptables mode (by --proxy-mode)", kubeProxy.PID()), "replace KUBE-SERVICES", "remove KUBE-SEP-", "add KUBE-SVC-10.96.0.",
		"fairway takeover: remove 3 IPv6 chains by which kube-proxy notices a flush from iptables-"+m.name)

	load := w.traffic(t, m)
	agent := w.startAgent(t, m)
	w.hasRulesOfFairway(t, m)
	w.churn(t, m)
	w.peaceful(t, m)
	load.check(t, "fairway beside kube-proxy")
	w.refused(t, m, fmt.Sprintf("kube-proxy still runs: pid %d", kubeProxy.PID()))
	end(t, kubeProxy)
	ok(t, agent.WaitReady(patience))
	w.succeeds(t, m, "takeover")
	w.likeRendered(t, m, "taken over")
	w.succeeds(t, m, "takeover")
	w.refused(t, m, "an agent of fairway still runs", "--back")
	load.end(t, "taken over")

	load = w.traffic(t, m)
	kubeProxy = w.startKubeProxy(t, m.node, m)
	w.hasCanaries(t, m)
	w.churn(t, m)
	w.peaceful(t, m)
	load.check(t, "kube-proxy beside fairway")
	ok(t, agent.Stop(soon))
	w.succeeds(t, m, "takeover", "--back")
	w.likeKubeProxyAlone(t, m, "given back")
	load.end(t, "given back")
	end(t, kubeProxy)
	end(t, alone)
	w.refused(t, m, "no kube-proxy runs", "--back")
	w.refused(t, m, "/readyz does not say that fairway's rules are in the kernel")
}

// fromOtherBackend: besides the rules of kube-proxy in one iptables there are those that an earlier one left in the other, and act.
func (w *world) fromOtherBackend(t *testing.T) {
	m := nft
	earlier := m
	earlier.backend = lab.Legacy
	kubeProxy := w.startKubeProxy(t, m.node, earlier)
	for _, f := range cluster.Families {
		ok(t, lab.Eventually(patience, func() error {
			if rules := strings.Join(w.kubeRules(t, m.node, earlier.backend, f), "\n"); !strings.Contains(rules, "-j DNAT") {
				return fmt.Errorf("%s: kube-proxy has not written its rules", f)
			}
			return nil
		}))
	}
	w.works(t, m)
	end(t, kubeProxy)
	_, err := w.Node(m.node).Run("iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT") // kubelet's
	ok(t, err)

	load := w.traffic(t, m)
	agent, err := w.Node(m.node).StartAgent(lab.AgentOptions{Flags: append([]string{"--kubeconfig=" + w.cp.Kubeconfig}, fast...)})
	ok(t, err)
	ok(t, agent.WaitReady(patience))
	if log := agent.Output(); !strings.Contains(log, "iptables-legacy holds") {
		t.Error("the agent's log does not name what is in the other iptables")
	}
	w.succeeds(t, m, "takeover")
	w.likeRendered(t, m, "taken over")
	for _, f := range cluster.Families {
		if left := withoutShared(w.kubeRules(t, m.node, earlier.backend, f)); len(left) > 0 {
			t.Errorf("taken over, the other iptables has for %s\n%s", f, strings.Join(left, "\n"))
		}
	}
	load.end(t, "taken over")
	ok(t, agent.Stop(soon))
}

// fromNFTables: kube-proxy in nftables mode has tables of its own, which stay when it stops. A connection is translated by whose
// table was made later, here fairway's, and by fairway's alone when the tables of kube-proxy have gone.
func (w *world) fromNFTables(t *testing.T) {
	m := nftables
	kubeProxy := w.startKubeProxy(t, m.node, m)
	w.works(t, m)
	w.planned(t, m, fmt.Sprintf("pid %d in nftables mode", kubeProxy.PID()), "add KUBE-SERVICES",
		"fairway takeover: remove the nftables table ip kube-proxy", "fairway takeover: remove the nftables table ip6 kube-proxy")

	load := w.traffic(t, m)
	agent := w.startAgent(t, m)
	w.hasRulesOfFairway(t, m)
	load.check(t, "fairway beside kube-proxy")
	for _, f := range cluster.Families {
		translates(t, w.Node(m.node), f)
	}
	w.refused(t, m, fmt.Sprintf("kube-proxy still runs: pid %d in nftables mode", kubeProxy.PID()))
	end(t, kubeProxy)
	ok(t, agent.WaitReady(patience))
	if tables := w.nftTables(t, m); !strings.Contains(tables, "table ip kube-proxy") || !strings.Contains(tables, "table ip6 kube-proxy") {
		t.Errorf("before the takeover the tables are\n%s", tables)
	}
	w.succeeds(t, m, "takeover")
	if tables := w.nftTables(t, m); strings.Contains(tables, "kube-proxy") {
		t.Errorf("after the takeover the tables are\n%s", tables)
	}
	w.likeRendered(t, m, "taken over")
	load.end(t, "taken over")
	if log := agent.Output(); !strings.Contains(log, "nftables table ip kube-proxy") {
		t.Error("the agent's log does not name the table of kube-proxy")
	}

	// The way back: kube-proxy removes the rules of iptables before it makes its own, and the agent puts them back for as long as it
	// runs. What fails in between is kube-proxy's doing, so it is only told.
	load = w.traffic(t, m)
	kubeProxy = w.startKubeProxy(t, m.node, m)
	ok(t, lab.Eventually(patience, func() error {
		if tables := w.nftTables(t, m); !strings.Contains(tables, "table ip6 kube-proxy") {
			return fmt.Errorf("kube-proxy has made no tables: %s", tables)
		}
		return nil
	}))
	ok(t, agent.Stop(soon))
	w.refused(t, m, "fairway cleanup removes fairway's", "--back")
	w.works(t, m)
	load.tell(t, "kube-proxy beside fairway, then alone")
	load = w.traffic(t, m)
	w.succeeds(t, m, "cleanup")
	for _, f := range cluster.Families {
		if left := withoutShared(w.kubeRules(t, m.node, m.backend, f)); len(left) > 0 {
			t.Errorf("given back, %s has\n%s", f, strings.Join(left, "\n"))
		}
	}
	load.end(t, "given back")
	end(t, kubeProxy)
}

// planOnEmptyNode: where nothing was, looking makes nothing either.
func (w *world) planOnEmptyNode(t *testing.T) {
	m := nftables
	m.node = freshName(nftablesNode)
	w.planned(t, m, "No kube-proxy runs here", "add KUBE-SERVICES", "There is nothing left for fairway takeover to remove")
}

// planned fails the test unless the plan says all this, in both formats as far as they have it, and has changed nothing.
func (w *world) planned(t *testing.T, m mode, says ...string) {
	t.Helper()
	before := w.kernel(t, m)
	flags := append([]string{"takeover", "--plan", "--kubeconfig=" + w.cp.Kubeconfig, "--iptables-backend=" + string(m.backend)}, w.clusterFlags(m)...)
	text, err := w.fairway(t, m, flags...)
	ok(t, err)
	t.Logf("fairway takeover --plan:\n%s", text)
	data, err := w.fairway(t, m, append(flags, "-o=json")...)
	ok(t, err)
	for _, s := range says {
		if !strings.Contains(text, s) {
			t.Errorf("the plan does not say %q", s)
		}
	}
	var p struct {
		IPTables string
		Changes  []struct{ Family, Table string }
	}
	if err := json.Unmarshal([]byte(data), &p); err != nil || p.IPTables != string(m.backend) || len(p.Changes) != 4 {
		t.Errorf("the plan as JSON: %v\n%s", err, data)
	}
	sameKernel(t, "a plan", before, w.kernel(t, m))
}

// sameKernel fails the test unless two texts of kernel are equal.
func sameKernel(t *testing.T, what, before, after string) {
	t.Helper()
	if before != after {
		b, a := slices.Sorted(strings.Lines(before)), slices.Sorted(strings.Lines(after))
		t.Errorf("%s has changed the kernel, more:\n%s\nless:\n%s", what, strings.Join(missing(a, b), ""), strings.Join(missing(b, a), ""))
	}
}

// moving is what changes with each connection: counters, and what sets remember.
var moving = regexp.MustCompile(`counter packets \d+ bytes \d+|\n\s*elements = \{[^}]*\}`)

// kernel is all of the rules of a node, of both kinds of iptables and of nftables.
func (w *world) kernel(t *testing.T, m mode) string {
	t.Helper()
	node := w.Node(m.node)
	rules, err := node.Run("nft", "list", "ruleset")
	ok(t, err)
	all := moving.ReplaceAllString(rules, "")
	for _, f := range cluster.Families {
		for _, b := range lab.Backends {
			text, err := node.Save(b, f, "")
			ok(t, err)
			all += text
		}
	}
	return all
}

// nftTables are the nftables tables of a node.
func (w *world) nftTables(t *testing.T, m mode) string {
	t.Helper()
	tables, err := w.Node(m.node).Run("nft", "list", "tables")
	ok(t, err)
	return tables
}

// succeeds runs a command of fairway.
func (w *world) succeeds(t *testing.T, m mode, args ...string) {
	t.Helper()
	out, err := w.fairway(t, m, args...)
	t.Logf("fairway %s:\n%s", strings.Join(args, " "), out)
	ok(t, err)
}

// refused fails the test unless fairway takeover with these flags refuses and says why, and changes nothing.
func (w *world) refused(t *testing.T, m mode, why string, flags ...string) {
	t.Helper()
	before := w.kernel(t, m)
	out, err := w.fairway(t, m, append([]string{"takeover"}, flags...)...)
	if err == nil || !strings.Contains(out, why) {
		t.Errorf("fairway takeover %s: %v, expected a refusal with %q:\n%s", strings.Join(flags, " "), err, why, out)
	}
	sameKernel(t, "a refused takeover", before, w.kernel(t, m))
}

// translates waits until fairway's rules have translated connections.
func translates(t *testing.T, n *lab.Node, f cluster.Family) {
	t.Helper()
	first := regexp.MustCompile(`(?m)^ *[1-9]\d* +\d+ KUBE-SVC-`)
	ok(t, lab.Eventually(patience, func() error {
		out, err := n.Run(lab.Tool(lab.NFT, f, ""), "-t", "nat", "-nvxL", "KUBE-SERVICES")
		if err == nil && !first.MatchString(out) {
			err = fmt.Errorf("%s: no connection was translated by KUBE-SERVICES:\n%s", f, out)
		}
		return err
	}))
}

// hasCanaries waits for the chain that kube-proxy makes first.
func (w *world) hasCanaries(t *testing.T, m mode) {
	t.Helper()
	for _, f := range cluster.Families {
		ok(t, lab.Eventually(patience, func() error {
			if _, found := slices.BinarySearch(w.kubeRules(t, m.node, m.backend, f), "filter :KUBE-PROXY-CANARY - [0:0]"); !found {
				return fmt.Errorf("%s: kube-proxy has no canary", f)
			}
			return nil
		}))
	}
}

// end stops a kube-proxy, which handles no signal.
func end(t *testing.T, kubeProxy *lab.Process) {
	t.Helper()
	_ = kubeProxy.Stop(soon)
	if state := kubeProxy.State(); state != "signal: terminated" {
		t.Errorf("kube-proxy was to end, but before: %s", state)
	}
}

// likeKubeProxyAlone waits until the node's rules are those that a kube-proxy makes where nobody else was.
func (w *world) likeKubeProxyAlone(t *testing.T, m mode, when string) {
	t.Helper()
	for _, f := range cluster.Families {
		sameRules(t, fmt.Sprintf("%s, %s", when, f), func() []string { return w.kubeRules(t, m.node, m.backend, f) },
			func() []string { return w.kubeRules(t, freshName(m.node), m.backend, f) })
	}
}

// likeRendered waits until the node's rules are those that fairway renders.
func (w *world) likeRendered(t *testing.T, m mode, when string) {
	t.Helper()
	for _, f := range cluster.Families {
		want := withoutShared(w.rendered(t, m, f))
		sameRules(t, fmt.Sprintf("%s, %s", when, f), func() []string { return withoutShared(w.kubeRules(t, m.node, m.backend, f)) }, func() []string { return want })
	}
}

// withoutShared leaves out what kubelet has. KUBE-FIREWALL is kube-proxy's as well, which makes it in IPv6, too, where no rule is in it;
// nobody takes it away.
func withoutShared(lines []string) []string {
	return slices.DeleteFunc(lines, func(s string) bool {
		return strings.Contains(s, "KUBE-FIREWALL") || strings.Contains(s, "KUBE-IPTABLES-HINT")
	})
}

// hasRulesOfFairway waits for a chain that only fairway makes. Until kube-proxy has gone, it has the port of /readyz.
func (w *world) hasRulesOfFairway(t *testing.T, m mode) {
	t.Helper()
	for _, f := range cluster.Families {
		ok(t, lab.Eventually(patience, func() error {
			if rules := w.kubeRules(t, m.node, m.backend, f); !slices.ContainsFunc(rules, func(s string) bool { return strings.HasPrefix(s, "nat :KUBE-SVC-") && strings.Contains(s, "/") }) {
				return fmt.Errorf("%s: no chain is fairway's", f)
			}
			return nil
		}))
	}
}

// peaceful waits until the rules have not changed for a while, with both proxies running and the cluster as it is.
func (w *world) peaceful(t *testing.T, m mode) {
	t.Helper()
	all := func() (rules []string) {
		for _, f := range cluster.Families {
			rules = append(rules, w.kubeRules(t, m.node, m.backend, f)...)
		}
		return rules
	}
	err := lab.Eventually(patience, func() error {
		before := all()
		time.Sleep(3 * period)
		if after := all(); !slices.Equal(before, after) {
			return fmt.Errorf("rules go on changing: before\n%s\nand then\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A probe is something that is asked all the time.
type probe struct {
	name     string
	from     *lab.Namespace
	dial     lab.Dial
	rate     int
	newFlows bool
	// names is how many endpoints answer at least, most how many at most; 0 when everybody is refused.
	names, most int
}

// probes are asked from a pod of the node, and from outside at its node ports.
func (w *world) probes(m mode) (list []probe) {
	pod, outside := w.Pod(podName(m.node, 1)).Namespace, w.Client("c").Namespace
	for _, f := range cluster.Families {
		node := w.Node(m.node).Addr(f)
		add := func(name string, from *lab.Namespace, proto lab.Proto, to netip.Addr, port uint16, names, most int) *probe {
			list = append(list, probe{name: fmt.Sprintf("%s %s", name, f), from: from, rate: 100, newFlows: true, names: names, most: most,
				dial: lab.Dial{Proto: proto, To: netip.AddrPortFrom(to, port), Timeout: 10 * time.Second}})
			return &list[len(list)-1]
		}
		add("pod to ClusterIP, TCP", pod, lab.TCP, vip(f, webIP), 80, 3, 3).rate = 200
		add("pod to ClusterIP, UDP", pod, lab.UDP, vip(f, dnsIP), 53, 3, 3).rate = 200
		add("outside to node port, TCP", outside, lab.TCP, node, webNodePort, 3, 3).rate = 200
		add("outside to node port, UDP", outside, lab.UDP, node, dnsNodePort, 3, 3).rate = 200
		add("outside to node port, Local", outside, lab.TCP, node, localNodePort, 1, 1)
		add("pod with affinity", pod, lab.TCP, vip(f, stickyIP), 80, 1, m.stickyTo)
		add("pod to no endpoints", pod, lab.TCP, vip(f, emptyIP), 80, 0, 0)
		add("one UDP flow", pod, lab.UDP, vip(f, dnsIP), 53, 1, 1).newFlows = false
	}
	return list
}

// works waits until everything that is probed does as it should.
func (w *world) works(t *testing.T, m mode) {
	t.Helper()
	for _, p := range w.probes(m) {
		want := lab.OK
		if p.most == 0 {
			want = lab.Refused
		}
		d := p.dial
		d.Timeout = time.Second
		if err := lab.Eventually(patience, func() error { return p.from.Ask(d).Expect(want) }); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
	}
}

// A traffic is what goes on all the time.
type traffic struct {
	probes  []probe
	probers []*lab.Prober
	astray  *lab.Capture
}

func (w *world) traffic(t *testing.T, m mode) *traffic {
	t.Helper()
	// The kernel remembers for two minutes what it did not translate before there were rules, and does the same with a new
	// connection that happens to come from the same port.
	for _, f := range []string{"ipv4", "ipv6"} {
		_, err := w.Node(m.node).Run("conntrack", "-F", "-f", f)
		ok(t, err)
	}
	// A packet to a ClusterIP that no rule translates follows the node's default route.
	astray, err := w.Router().Capture("eth0", func(p lab.Packet) bool {
		return slices.ContainsFunc(w.Topology.ServiceCIDRs, func(r netip.Prefix) bool { return r.Contains(p.Dst.Addr()) })
	})
	ok(t, err)
	l := &traffic{probes: w.probes(m), astray: astray}
	for _, p := range l.probes {
		prober, err := p.from.Probe(lab.ProbeConfig{Dial: p.dial, Rate: p.rate, NewFlows: p.newFlows})
		ok(t, err)
		l.probers = append(l.probers, prober)
	}
	time.Sleep(time.Second)
	return l
}

// check fails the test when anything has failed until now.
func (l *traffic) check(t *testing.T, when string) {
	t.Helper()
	for i, p := range l.probes {
		l.judge(t, when, p, l.probers[i].Report())
	}
	if n := l.astray.Count(); n > 0 {
		t.Errorf("%s: %d packets to ClusterIPs went to the router: %v", when, n, l.astray.Packets()[:min(n, 10)])
	}
}

// end ends the traffic, and fails the test when anything has failed.
func (l *traffic) end(t *testing.T, when string) {
	t.Helper()
	l.tell(t, when)
	l.check(t, when)
}

// tell ends the traffic, and logs what has become of it.
func (l *traffic) tell(t *testing.T, when string) {
	t.Helper()
	for i, p := range l.probes {
		r := l.probers[i].Stop()
		t.Logf("%s, %s: %v %v", when, p.name, r, r.Names)
	}
	l.astray.Close()
}

func (l *traffic) judge(t *testing.T, when string, p probe, r lab.Report) {
	t.Helper()
	failed := r.Failed()
	if p.most == 0 {
		failed = r.Attempts - r.Failures[lab.Refused]
	}
	measured.Flow(t, failed, r.Attempts, r.LongestOutage)
	if failed > 0 || r.Attempts == 0 || len(r.Names) < p.names || len(r.Names) > p.most {
		t.Errorf("%s, %s: %d went wrong: %v, answers %v; the first at %s, the last at %s", when, p.name, failed, r, r.Names,
			r.FirstFailure.Format(time.StampMicro), r.LastFailure.Format(time.StampMicro))
	}
}
