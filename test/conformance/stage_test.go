package conformance_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const (
	// soon bounds what the agent does within a second or two on a machine that has nothing else to do.
	soon = time.Minute
	// silence is how long nothing has to come before an attempt counts as unanswered.
	silence = 400 * time.Millisecond
	// target is the port that every pod serves over TCP and UDP, under its own name.
	target = 8080
)

// forwarding lets packets to the service range that are for no Service follow the node's routes, as kube-proxy does. So it can
// be seen at the router that nothing else touches them.
var forwarding = []string{"--unknown-services=Forward"}

// A stage is the conformance lab with servers in the pods and, after start, an agent on each node.
type stage struct {
	*lab.Lab
	backend    lab.Backend
	cluster    *lab.Cluster
	n1, n2     *lab.Node
	p1, p2, p3 *lab.Pod
	c          *lab.Client
	// agent is the one on n1, the node under test.
	agent *lab.Agent
}

// onBackends runs a case on both backends, each on a stage of its own.
func onBackends(t *testing.T, run func(*testing.T, *stage)) {
	t.Helper()
	t.Parallel()
	for _, b := range lab.Backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			run(t, newStage(t, b))
		})
	}
}

// onFamilies runs a part of a case for IPv4 and IPv6.
func onFamilies(t *testing.T, run func(*testing.T, cluster.Family)) {
	t.Helper()
	for _, f := range cluster.Families {
		t.Run(f.String(), func(t *testing.T) { run(t, f) })
	}
}

func newStage(t *testing.T, b lab.Backend) *stage {
	t.Helper()
	l := lab.ForTest(t, lab.Conformance())
	cl, err := l.Cluster()
	ok(t, err)
	s := &stage{
		Lab: l, backend: b, cluster: cl,
		n1: l.Node("n1"), n2: l.Node("n2"), p1: l.Pod("p1"), p2: l.Pod("p2"), p3: l.Pod("p3"), c: l.Client("c"),
	}
	for _, p := range []*lab.Pod{s.p1, s.p2, s.p3} {
		for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
			serve(t, p.Namespace, p.Name, proto, target)
		}
	}
	return s
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, ns *lab.Namespace, name string, proto lab.Proto, port uint16) {
	t.Helper()
	_, err := ns.Serve(lab.Server{Name: name, Proto: proto, Port: port})
	ok(t, err)
}

// start writes the cluster and starts the agents of both nodes with options, and waits until all of it is programmed.
func (s *stage) start(t *testing.T, o lab.AgentOptions) {
	t.Helper()
	s.startOn(t, o, s.n1, s.n2)
}

// startOn is start for some nodes, n1 first.
func (s *stage) startOn(t *testing.T, o lab.AgentOptions, nodes ...*lab.Node) {
	t.Helper()
	o.Cluster, o.Backend = s.cluster, s.backend
	s.write(t)
	var agents []*lab.Agent
	for _, n := range nodes {
		a, err := n.StartAgent(o)
		ok(t, err)
		agents = append(agents, a)
	}
	for _, a := range agents {
		ok(t, a.WaitReady(soon))
	}
	s.agent = agents[0]
}

func (s *stage) write(t *testing.T) {
	t.Helper()
	ok(t, s.cluster.Write())
}

// put sets a Service and its endpoints, for the next write.
func (s *stage) put(svc *corev1.Service, endpoints ...lab.Endpoint) {
	s.cluster.SetService(svc)
	s.cluster.SetEndpoints(svc, endpoints...)
}

// web is a dual-stack Service with the address that vip gives for n: TCP 80 to the pods' servers.
func web(n int) *corev1.Service {
	return lab.Service(fmt.Sprint("web-", n), vips(n), lab.TCPPort("http", 80, target))
}

// nodePort makes a Service one of type NodePort; its first port gets the node port.
func nodePort(svc *corev1.Service, port int32) *corev1.Service {
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc.Spec.Ports[0].NodePort = port
	return svc
}

func vip(f cluster.Family, n int) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprint("fd00:10:96::", n))
	}
	return netip.MustParseAddr(fmt.Sprint("10.96.0.", n))
}

func vips(n int) []netip.Addr { return []netip.Addr{vip(cluster.IPv4, n), vip(cluster.IPv6, n)} }

// gateway is the address of n1 toward its own pods: what they see of a connection whose source n1 replaced.
func (s *stage) gateway(f cluster.Family) netip.Addr {
	for _, p := range s.n1.PodCIDRs {
		if cluster.FamilyOf(p.Addr()) == f {
			return p.Addr().Next()
		}
	}
	return netip.Addr{}
}

// second is the second address of n1 in the family.
func (s *stage) second(f cluster.Family) netip.Addr { return s.n1.Addr(f).Next() }

func tcp(a netip.Addr, port uint16) lab.Dial {
	return lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(a, port)}
}

func udp(a netip.Addr, port uint16) lab.Dial {
	return lab.Dial{Proto: lab.UDP, To: netip.AddrPortFrom(a, port)}
}

// A view is what a client gets who asks many times: who answers, and which source each of them sees. An attempt without an
// answer stands under its outcome, "<refused>". More than one source is a list.
type view map[string]string

// saw is the view of a client whose connections all come from one source.
func saw(source netip.Addr, names ...string) view {
	v := view{}
	for _, n := range names {
		v[n] = source.String()
	}
	return v
}

// masqueraded is the view of a client whose source n1 replaces.
func (s *stage) masqueraded(f cluster.Family, names ...string) view {
	v := saw(s.gateway(f), names...)
	if _, far := v["p3"]; far {
		v["p3"] = s.n1.Addr(f).String()
	}
	return v
}

// looks is how often a look asks. Of three endpoints with equal shares, one is missed once in 6·10^10 looks.
const looks = 64

// look asks many times. It stops early at an attempt that was not answered.
func look(ns *lab.Namespace, d lab.Dial) view {
	sources := map[string]map[string]bool{}
	for range looks {
		r := ns.Ask(d)
		if r.Outcome != lab.OK {
			return view{"<" + r.Outcome.String() + ">": fmt.Sprint(r.Err)}
		}
		if sources[r.Name] == nil {
			sources[r.Name] = map[string]bool{}
		}
		sources[r.Name][r.Seen.Addr().String()] = true
	}
	v := view{}
	for name, set := range sources {
		v[name] = strings.Join(slices.Sorted(maps.Keys(set)), ",")
	}
	return v
}

// shares asks n times and counts who answers. It ends the test at an attempt that is not answered.
func shares(t *testing.T, ns *lab.Namespace, d lab.Dial, n int) map[string]int {
	t.Helper()
	out := map[string]int{}
	for range n {
		r := ns.Ask(d)
		ok(t, r.Expect(lab.OK))
		out[r.Name]++
	}
	return out
}

// sees fails the test unless the client has exactly the view.
func sees(t *testing.T, ns *lab.Namespace, d lab.Dial, want view) {
	t.Helper()
	if have := look(ns, d); !maps.Equal(have, want) {
		t.Errorf("%s asks %s %s: sees %v, want %v", ns.NetNS(), d.Proto, d.To, have, want)
	}
}

// comesToSee waits until the client has exactly the view.
func comesToSee(t *testing.T, ns *lab.Namespace, d lab.Dial, want view) {
	t.Helper()
	start := time.Now()
	ok(t, lab.Eventually(soon, func() error {
		if have := look(ns, d); !maps.Equal(have, want) {
			return fmt.Errorf("%s asks %s %s: sees %v, want %v", ns.NetNS(), d.Proto, d.To, have, want)
		}
		return nil
	}))
	t.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), want)
}

// ends fails the test unless an attempt has the outcome.
func ends(t *testing.T, ns *lab.Namespace, d lab.Dial, want lab.Outcome) {
	t.Helper()
	r := ns.Ask(d)
	if r.Outcome != want {
		t.Errorf("%s asks %s %s: %v, want %s", ns.NetNS(), d.Proto, d.To, r, want)
		return
	}
	t.Logf("%s %s %s: %s after %v", ns.NetNS(), d.Proto, d.To, r.Outcome, r.Elapsed.Round(time.Microsecond))
}

// comesToEnd waits until an attempt has the outcome.
func comesToEnd(t *testing.T, ns *lab.Namespace, d lab.Dial, want lab.Outcome) {
	t.Helper()
	start := time.Now()
	ok(t, lab.Eventually(soon, func() error { return ns.Ask(d).Expect(want) }))
	t.Logf("%s %s %s: %s after %v", ns.NetNS(), d.Proto, d.To, want, time.Since(start).Round(time.Millisecond))
}

// leavesAlone fails the test unless a packet to somewhere passes n1 as if there were no Service: it arrives at the router, to
// which n1's default route leads, with its destination as it was, and nobody answers.
func (s *stage) leavesAlone(t *testing.T, ns *lab.Namespace, d lab.Dial) {
	t.Helper()
	tap, err := s.Router().Capture("eth0", func(p lab.Packet) bool {
		return p.Dst == d.To && p.Protocol == uint8(d.Proto) && !p.Outgoing
	})
	ok(t, err)
	defer tap.Close()
	d.Timeout = silence
	ends(t, ns, d, lab.Timeout)
	ok(t, tap.Wait(1, soon))
}

// save returns all rules of n1 in a family.
func (s *stage) save(t *testing.T, f cluster.Family) string {
	t.Helper()
	text, err := s.n1.Save(s.backend, f, "")
	ok(t, err)
	return text
}

// lines returns the lines of a text that contain a part.
func lines(text, part string) (out []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			out = append(out, line)
		}
	}
	return out
}
