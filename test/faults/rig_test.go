package faults

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

const (
	// startBound is how long an agent may take to become ready.
	startBound = time.Minute
	// eventBound is what proves that a repair came from an event: the audit comes every 30 s.
	eventBound = 15 * time.Second

	webPort, targetPort = 80, 8080
)

var webIPs = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")}

// topology is dual-stack with three nodes, n1 to n3 (10.240.0.11 to .13), in a node network that has room for a thousand more.
// n1 has the pods p1 and p2, n2 has p3, n3 has p4; the client c and the machine of the control plane are their neighbours.
func topology() lab.Topology {
	pfx, addr := netip.MustParsePrefix, netip.MustParseAddr
	t := lab.Topology{
		Networks: []lab.NetworkSpec{{
			Name:     "infra",
			Prefixes: []netip.Prefix{pfx("10.240.0.0/16"), pfx("fd00:240::/64")},
			Gateways: []netip.Addr{addr("10.240.0.1"), addr("fd00:240::1")},
		}},
		Router: "router",
		Clients: []lab.ClientSpec{
			{Name: "c", Addrs: []netip.Addr{addr("10.240.0.100"), addr("fd00:240::100")}},
			{Name: "control", Addrs: []netip.Addr{addr("10.240.0.5")}},
		},
		ClusterCIDRs: []netip.Prefix{pfx("10.200.0.0/13"), pfx("fd00:200::/32")},
		ServiceCIDRs: []netip.Prefix{pfx("10.96.0.0/16"), pfx("fd00:96::/112")},
	}
	for i, pods := range [][]string{{"p1", "p2"}, {"p3"}, {"p4"}} {
		n := nodeSpec(fmt.Sprintf("n%d", i+1), i+1)
		n.Addrs = []netip.Addr{addr(fmt.Sprintf("10.240.0.%d", 11+i)), addr(fmt.Sprintf("fd00:240::%d", 11+i))}
		for j, name := range pods {
			n.Pods = append(n.Pods, lab.PodSpec{Name: name, Addrs: []netip.Addr{
				addr(fmt.Sprintf("10.200.%d.%d", i+1, j+2)), addr(fmt.Sprintf("fd00:200:0:%d::%d", i+1, j+2))}})
		}
		t.Nodes = append(t.Nodes, n)
	}
	return t
}

// nodeSpec is a node with addresses and pod ranges made of a number from 1 to 1999: 10.240.(4+i/250).(i%250+1) with
// 10.(200+i/250).(i%250).0/24, and the same for IPv6. Nodes that exist only as objects are such.
func nodeSpec(name string, i int) lab.NodeSpec {
	hi, lo := i/250, i%250
	return lab.NodeSpec{
		Name: name,
		Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 240, byte(4 + hi), byte(lo + 1)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:240::1:%x", i))},
		PodCIDRs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + hi), byte(lo), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:200:0:%d::/64", i))},
	}
}

// A rig is a laboratory cluster with an agent on every node.
type rig struct {
	*testing.T
	lab     *lab.Lab
	cluster *lab.Cluster
	backend lab.Backend
	agents  map[string]*lab.Agent
	// nodes is the cluster as the Node objects have it, by name: what expected is computed from.
	nodes map[string]lab.NodeSpec
	// refused are the names of nodes that must get no route.
	refused map[string]bool

	n1, n2, n3     *lab.Node
	p1, p2, p3, p4 *lab.Pod
	c              *lab.Client
}

// newRig builds the cluster with a service on pods of two nodes, and starts the agents.
func newRig(t *testing.T, backend lab.Backend, top lab.Topology) *rig {
	t.Helper()
	r := newCluster(t, backend, top)
	for _, n := range []*lab.Node{r.n1, r.n2, r.n3} {
		r.start(n, lab.AgentOptions{Cluster: r.cluster, Backend: backend})
	}
	r.ready(r.n1, r.n2, r.n3)
	return r
}

// newCluster builds the cluster and starts no agent.
func newCluster(t *testing.T, backend lab.Backend, top lab.Topology) *rig {
	t.Helper()
	l := lab.ForTest(t, top)
	cl, err := l.Cluster()
	r := &rig{T: t, lab: l, cluster: cl, backend: backend, agents: map[string]*lab.Agent{},
		nodes: map[string]lab.NodeSpec{}, refused: map[string]bool{},
		n1: l.Node("n1"), n2: l.Node("n2"), n3: l.Node("n3"),
		p1: l.Pod("p1"), p2: l.Pod("p2"), p3: l.Pod("p3"), p4: l.Pod("p4"), c: l.Client("c")}
	r.ok(err)
	for _, n := range top.Nodes {
		r.nodes[n.Name] = n
	}
	for _, p := range []*lab.Pod{r.p2, r.p3, r.p4} {
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
			_, err := p.Serve(lab.Server{Name: p.Name, Proto: proto, Port: targetPort})
			r.ok(err)
		}
	}
	r.put(service("web", 10, webNodePort), lab.Ready(r.p2), lab.Ready(r.p3))
	r.write()
	return r
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// start starts an agent, which from now on is the agent of its node.
func (r *rig) start(n *lab.Node, o lab.AgentOptions) *lab.Agent {
	r.Helper()
	a, err := n.StartAgent(o)
	r.ok(err)
	r.agents[n.Name] = a
	return a
}

// ready waits until the agents of all nodes have programmed what they read.
func (r *rig) ready(nodes ...*lab.Node) {
	r.Helper()
	for _, n := range nodes {
		r.ok(r.agents[n.Name].WaitReady(startBound))
	}
}

func (r *rig) write() {
	r.Helper()
	r.ok(r.cluster.Write())
}

// setNode sets a Node object; write follows.
func (r *rig) setNode(n lab.NodeSpec) {
	r.cluster.SetNode(lab.NodeObject(n))
	r.nodes[n.Name] = n
}

func (r *rig) removeNode(name string) {
	r.cluster.RemoveNode(name)
	delete(r.nodes, name)
}

// ip runs commands of iproute2 on a node.
func (r *rig) ip(ns *lab.Node, commands ...string) {
	r.Helper()
	for _, c := range commands {
		_, err := ns.Run("ip", strings.Fields(c)...)
		r.ok(err)
	}
}

// table is every route of every table of a node, as ip prints them.
func (r *rig) table(n *lab.Node) string {
	r.Helper()
	var all string
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Run("ip", family, "route", "show", "table", "all")
		r.ok(err)
		all += out
	}
	return all
}

// rules are all rules of a node. Under nft they come with their handles, which a rule that is written again does not keep.
func (r *rig) rules(n *lab.Node) string {
	r.Helper()
	if r.backend == lab.NFT {
		out, err := n.Run("nft", "--handle", "--stateless", "list", "ruleset")
		r.ok(err)
		return out
	}
	var all string
	for _, f := range cluster.Families {
		out, err := n.Save(r.backend, f, "")
		r.ok(err)
		all += out
	}
	return all
}

// owned are the routes of a node with our protocol number, as a number, whatever name the machine's iproute2 has for it.
func (r *rig) owned(n *lab.Node) []string {
	r.Helper()
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Run("ip", "-Numeric", family, "route", "show", "table", "main")
		r.ok(err)
		for line := range strings.Lines(out) {
			if strings.Contains(line, " proto 102 ") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// expected are the routes that a node should have, by the Node objects: one for each pod range of each other node.
func (r *rig) expected(n *lab.Node) []string {
	var lines []string
	for name, other := range r.nodes {
		if name == n.Name || r.refused[name] {
			continue
		}
		for _, p := range other.PodCIDRs {
			via := other.Addrs[slices.IndexFunc(other.Addrs, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })]
			line := fmt.Sprintf("%s via %s dev eth0 proto 102", p, via)
			if p.Addr().Is6() {
				line += " metric 1024 pref medium"
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

// exact is nil when a node's routes are as expected.
func (r *rig) exact(n *lab.Node) error {
	have, want := r.owned(n), r.expected(n)
	if slices.Equal(have, want) {
		return nil
	}
	var diff []string
	for _, line := range want {
		if _, ok := slices.BinarySearch(have, line); !ok {
			diff = append(diff, "missing "+line)
		}
	}
	for _, line := range have {
		if _, ok := slices.BinarySearch(want, line); !ok {
			diff = append(diff, "too many "+line)
		}
	}
	if len(diff) == 0 {
		diff = append(diff, fmt.Sprintf("doubles: %v", have))
	}
	more := ""
	if len(diff) > 10 {
		diff, more = diff[:10], fmt.Sprintf("\nand %d more", len(diff)-10)
	}
	return fmt.Errorf("routes of %s:\n%s%s", n.Name, strings.Join(diff, "\n"), more)
}

// eventually waits until a condition holds.
func (r *rig) eventually(bound time.Duration, condition func() error) {
	r.Helper()
	r.ok(lab.Eventually(bound, condition))
}

// same fails the test when two texts differ, and shows the lines that only one of them has.
func (r *rig) same(what, before, after string) {
	r.Helper()
	if before == after {
		return
	}
	lines := func(mark, in, notIn string) (out string) {
		for line := range strings.Lines(in) {
			if !strings.Contains("\n"+notIn, "\n"+line) {
				out += mark + line
			}
		}
		return out
	}
	r.Errorf("%s changed:\n%s%s", what, lines("-", before, after), lines("+", after, before))
}

// metric is the value of a series of an agent's /metrics, named as it stands there; 0 when there is none.
func (r *rig) metric(n *lab.Node, series string) float64 {
	r.Helper()
	var v float64
	_, body, err := n.Get("http://127.0.0.1:10249/metrics", startBound)
	r.ok(err)
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			_, err := fmt.Sscan(rest, &v)
			r.ok(err)
		}
	}
	return v
}

// looks makes an agent compare the kernel's routes with its own, by a change to a link that means nothing, and returns when it
// has. Of two comparisons that end one after the other, the second began after the call.
func (r *rig) looks(n *lab.Node) {
	r.Helper()
	const syncs = `fairway_sync_duration_seconds_count{part="routes"}`
	for _, length := range []string{"999", "1000"} {
		before := r.metric(n, syncs)
		r.ip(n, "link set cni0 txqueuelen "+length)
		r.eventually(eventBound, func() error {
			if r.metric(n, syncs) == before {
				return errors.New("the agent has not looked at the routes")
			}
			return nil
		})
	}
}

// A note is what an agent should have said about an object.
type note struct{ object, reason, detail string }

// said is nil when an agent's log has the note, in a line after the first skip ones, and its metric counts notes of the reason.
func (r *rig) said(n *lab.Node, skip int, want note) error {
	r.Helper()
	found := false
	for i, line := range strings.Split(r.agents[n.Name].Output(), "\n") {
		found = found || i >= skip && strings.Contains(line, `"Note" object="`+want.object+`" reason="`+want.reason+`"`) &&
			strings.Contains(line, want.detail)
	}
	switch {
	case !found:
		return fmt.Errorf("%s has not noted %+v", n.Name, want)
	case r.metric(n, fmt.Sprintf("fairway_notes{reason=%q}", want.reason)) == 0:
		return fmt.Errorf("%s: fairway_notes does not count %+v", n.Name, want)
	}
	return nil
}

// logged is how many lines an agent has written.
func (r *rig) logged(n *lab.Node) int { return strings.Count(r.agents[n.Name].Output(), "\n") }

// quiet is nil when an agent has no notes of a reason any more.
func (r *rig) quiet(n *lab.Node, reason string) error {
	r.Helper()
	if v := r.metric(n, fmt.Sprintf("fairway_notes{reason=%q}", reason)); v != 0 {
		return fmt.Errorf("%s still has %v notes of %s", n.Name, v, reason)
	}
	return nil
}

// unready is nil when an agent says that it has not programmed anything.
func (r *rig) unready(n *lab.Node) error {
	status, body, err := n.Get("http://127.0.0.1:10256/readyz", eventBound)
	if err == nil && status == 200 {
		err = errors.New("ready: " + body)
	}
	return err
}
