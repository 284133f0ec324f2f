package takeover

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// patience bounds what a busy machine may take.
const patience = time.Minute

// coexist is how long both proxies run beside each other under load, several of their periods.
const coexist = 6 * time.Second

// TestRunningKubeProxy: fairway starts beside a running kube-proxy, kube-proxy stops, what it left is removed; and the same
// the other way round. No connection and no datagram fails, and each time the chains are exactly those of who is left.
func TestRunningKubeProxy(t *testing.T) {
	w := newWorld(t)
	for _, m := range []mode{legacy, nft} {
		t.Run(m.name, func(t *testing.T) { w.thereAndBack(t, m) })
	}
}

func (w *world) thereAndBack(t *testing.T, m mode) {
	kubeProxy := w.startKubeProxy(t, m.node, m)
	alone := w.startKubeProxy(t, freshName(m.node), m)
	w.works(t, m)
	w.likeKubeProxyAlone(t, m, "before")

	load := w.traffic(t, m)
	agent := w.startAgent(t, m)
	w.hasRulesOfFairway(t, m)
	time.Sleep(coexist)
	w.peaceful(t, m)
	load.check(t, "fairway beside kube-proxy")
	end(t, kubeProxy)
	ok(t, agent.WaitReady(patience))
	out, err := w.fairway(t, m, "takeover")
	t.Logf("fairway takeover:\n%s", out)
	ok(t, err)
	w.likeRendered(t, m, "taken over")
	load.end(t, "taken over")

	load = w.traffic(t, m)
	kubeProxy = w.startKubeProxy(t, m.node, m)
	time.Sleep(coexist)
	w.peaceful(t, m)
	load.check(t, "kube-proxy beside fairway")
	ok(t, agent.Stop(soon))
	out, err = w.fairway(t, m, "takeover", "--back")
	t.Logf("fairway takeover --back:\n%s", out)
	ok(t, err)
	w.likeKubeProxyAlone(t, m, "given back")
	load.end(t, "given back")
	end(t, kubeProxy)
	end(t, alone)
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

// shared is what kubelet has as well, so that nobody may take it away: kube-proxy makes it in IPv6 too, where it has no rule.
var shared = []string{"filter :KUBE-FIREWALL - [0:0]", "filter -A INPUT -j KUBE-FIREWALL", "filter -A OUTPUT -j KUBE-FIREWALL"}

// likeRendered waits until the node's rules are those that fairway renders.
func (w *world) likeRendered(t *testing.T, m mode, when string) {
	t.Helper()
	for _, f := range cluster.Families {
		want := append(w.rendered(t, m, f), shared...)
		slices.Sort(want)
		want = slices.Compact(want)
		sameRules(t, fmt.Sprintf("%s, %s", when, f), func() []string { return w.kubeRules(t, m.node, m.backend, f) }, func() []string { return want })
	}
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

// peaceful fails the test when the rules go on changing while both proxies run and the cluster stays as it is.
func (w *world) peaceful(t *testing.T, m mode) {
	t.Helper()
	for _, f := range cluster.Families {
		before := w.kubeRules(t, m.node, m.backend, f)
		time.Sleep(2 * time.Second)
		after := w.kubeRules(t, m.node, m.backend, f)
		if more, less := missing(after, before), missing(before, after); len(more)+len(less) > 0 {
			t.Errorf("%s: rules change while nothing does, more:\n%s\nless:\n%s", f, strings.Join(more, "\n"), strings.Join(less, "\n"))
		}
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
		add("pod with affinity", pod, lab.TCP, vip(f, stickyIP), 80, 1, 1)
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
	start   time.Time
}

func (w *world) traffic(t *testing.T, m mode) *traffic {
	t.Helper()
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
	l.start = time.Now()
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
	for i, p := range l.probes {
		r := l.probers[i].Stop()
		t.Logf("%s, %s: %v %v", when, p.name, r, r.Names)
	}
	l.check(t, when)
	l.astray.Close()
}

func (l *traffic) judge(t *testing.T, when string, p probe, r lab.Report) {
	t.Helper()
	failed := r.Failed()
	if p.most == 0 {
		failed = r.Attempts - r.Failures[lab.Refused]
	}
	if failed > 0 || r.Attempts < p.rate || len(r.Names) < p.names || len(r.Names) > p.most {
		t.Errorf("%s, %s: %d went wrong, from %s to %s after the start: %v, answers %v", when, p.name, failed,
			r.FirstFailure.Sub(l.start), r.LastFailure.Sub(l.start), r, r.Names)
	}
}
