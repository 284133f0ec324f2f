package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const (
	startBound = 60 * time.Second
	// sessionBound is how long a session may take to come up.
	sessionBound = 60 * time.Second
	// attemptTimeout is when a prober's attempt without an answer counts as failed. A lost packet is known from its being sent again.
	attemptTimeout = 10 * time.Second

	webPort    = 80
	targetPort = 8080
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func tcp(a netip.Addr, port uint16) lab.Dial {
	return lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(a, port), Timeout: 5 * time.Second}
}

var (
	webIP, webIP6 = addr("10.96.0.10"), addr("fd00:10:96::10")
	localIP       = addr("203.0.113.7")
)

// topology is that of docs/bgp.md, with so many nodes, two there: nodes, a gateway, whoever is outside, and a second gateway's machine beside the nodes.
func topology(nodes int) lab.Topology {
	t := lab.Topology{
		Networks: []lab.NetworkSpec{
			{Name: "infra", Prefixes: []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8:2::/64")}, Gateways: []netip.Addr{addr("192.0.2.1"), addr("2001:db8:2::1")}},
			{Name: "internet", Prefixes: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:100::/64")}, Gateways: []netip.Addr{addr("198.51.100.1"), addr("2001:db8:100::1")}},
		},
		Router: "router",
		Clients: []lab.ClientSpec{
			{Name: "outside", Network: "internet", Addrs: []netip.Addr{addr("198.51.100.10"), addr("2001:db8:100::10")}},
			{Name: "gw2", Addrs: []netip.Addr{addr("192.0.2.2"), addr("2001:db8:2::2")}},
		},
		ClusterCIDRs: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")},
		ServiceCIDRs: []netip.Prefix{prefix("10.96.0.0/16"), prefix("fd00:10:96::/112")},
	}
	for i := 1; i <= nodes; i++ {
		t.Nodes = append(t.Nodes, lab.NodeSpec{
			Name:     fmt.Sprintf("n%d", i),
			Addrs:    []netip.Addr{addr(fmt.Sprintf("192.0.2.1%d", i)), addr(fmt.Sprintf("2001:db8:2::1%d", i))},
			PodCIDRs: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i)), prefix(fmt.Sprintf("fd00:10:244:%d::/64", i))},
			Pods:     []lab.PodSpec{{Name: fmt.Sprintf("p%d", i), Addrs: []netip.Addr{addr(fmt.Sprintf("10.244.%d.2", i)), addr(fmt.Sprintf("fd00:10:244:%d::2", i))}}},
		})
	}
	return t
}

// A rig is a laboratory cluster of which the agents speak BGP. The Service web has endpoints on both nodes, the Service local
// has a load balancer IP, policy Local, and an endpoint on n1.
type rig struct {
	*testing.T
	lab     *lab.Lab
	cluster *lab.Cluster
	// backend is the agents'; nft at first.
	backend    lab.Backend
	web, local *corev1.Service
	n1, n2     *lab.Node
	p1, p2     *lab.Pod
	outside    *lab.Client
	agents     map[*lab.Node]*lab.Agent
	// files are the agents' configurations.
	files map[*lab.Node]string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOf(t, 2)
}

// newRigOf returns one of so many nodes.
func newRigOf(t *testing.T, nodes int) *rig {
	t.Helper()
	l := lab.ForTest(t, topology(nodes))
	cl, err := l.Cluster()
	r := &rig{T: t, lab: l, cluster: cl, backend: lab.NFT, n1: l.Node("n1"), n2: l.Node("n2"), p1: l.Pod("p1"), p2: l.Pod("p2"), outside: l.Client("outside"), agents: map[*lab.Node]*lab.Agent{}, files: map[*lab.Node]string{}}
	r.ok(err)
	for i := range nodes {
		p := l.Pod(fmt.Sprintf("p%d", i+1))
		_, err := p.Serve(lab.Server{Name: p.Name, Proto: lab.TCP, Port: targetPort})
		r.ok(err)
	}
	r.web = lab.Service("web", []netip.Addr{webIP, webIP6}, lab.TCPPort("", webPort, targetPort))
	cl.SetService(r.web)
	cl.SetEndpoints(r.web, lab.Ready(r.p1), lab.Ready(r.p2))
	r.local = lab.Service("local", []netip.Addr{addr("10.96.0.20")}, lab.TCPPort("", webPort, targetPort))
	r.local.Spec.Type = corev1.ServiceTypeLoadBalancer
	r.local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	r.local.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: localIP.String()}}
	cl.SetService(r.local)
	cl.SetEndpoints(r.local, lab.Ready(r.p1))
	r.ok(cl.Write())
	return r
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) eventually(bound time.Duration, condition func() error) {
	r.Helper()
	r.ok(lab.Eventually(bound, condition))
}

// start starts agents with a configuration, which is a section bgp or a whole file.
func (r *rig) start(configuration string, nodes ...*lab.Node) {
	r.Helper()
	file := filepath.Join(r.TempDir(), "agent.yaml")
	r.ok(os.WriteFile(file, []byte(whole(configuration)), 0o600))
	for _, n := range nodes {
		r.files[n] = file
		a, err := n.StartAgent(lab.AgentOptions{Cluster: r.cluster, Backend: r.backend, Flags: []string{"--config=" + file}})
		r.ok(err)
		r.agents[n] = a
	}
	for _, n := range nodes {
		r.ok(r.agents[n].WaitReady(startBound))
	}
}

// whole is a configuration file of which perhaps only some sections are given.
func whole(configuration string) string {
	if strings.HasPrefix(configuration, "apiVersion") {
		return configuration
	}
	return "apiVersion: fairway.dev/v1alpha1\nkind: AgentConfiguration\n" + configuration
}

// edit replaces the configuration of a running agent.
func (r *rig) edit(n *lab.Node, configuration string) {
	r.Helper()
	r.ok(os.WriteFile(r.files[n]+".new", []byte(whole(configuration)), 0o600))
	r.ok(os.Rename(r.files[n]+".new", r.files[n]))
}

// restart starts an agent again as it was.
func (r *rig) restart(n *lab.Node) {
	r.Helper()
	a, err := n.StartAgent(r.agents[n].Options)
	r.ok(err)
	r.agents[n] = a
	r.ok(a.WaitReady(startBound))
}

// metric is the sum of the samples of a node's agent whose line begins so.
func (r *rig) metric(n *lab.Node, begins string) (sum float64) {
	r.Helper()
	_, body, err := n.Get("http://127.0.0.1:10249/metrics", 5*time.Second)
	r.ok(err)
	for _, m := range regexp.MustCompile("(?m)^"+regexp.QuoteMeta(begins)+`.* ([0-9.e+]+)$`).FindAllStringSubmatch(body, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		r.ok(err)
		sum += v
	}
	return sum
}

// up is nil when a node has so many sessions.
func (r *rig) up(n *lab.Node, sessions int) error {
	if v := r.metric(n, "fairway_bgp_session_up"); v != float64(sessions) {
		return fmt.Errorf("%s has %v sessions, expected %d", n.Name, v, sessions)
	}
	return nil
}

// reaches is nil when an address outside answers, through the gateway.
func (r *rig) reaches(a netip.Addr, port uint16, by string) error {
	result := r.outside.Ask(tcp(a, port))
	if result.Outcome != lab.OK || by != "" && result.Name != by {
		return fmt.Errorf("%s from outside: %s, expected an answer of %s", netip.AddrPortFrom(a, port), result, by)
	}
	return nil
}

// reaching has p1 asked from outside all the time, at its own addresses and at that of the Service local, once each has answered.
func (r *rig) reaching() (probes []*lab.Prober) {
	r.Helper()
	for _, a := range []lab.Dial{tcp(r.p1.Addrs[0], targetPort), tcp(r.p1.Addrs[1], targetPort), tcp(localIP, webPort)} {
		r.eventually(sessionBound, func() error { return r.reaches(a.To.Addr(), a.To.Port(), "p1") })
		a.Timeout = attemptTimeout
		p, err := r.outside.Probe(lab.ProbeConfig{Dial: a, Rate: 100, NoRepeats: true})
		r.ok(err)
		probes = append(probes, p)
	}
	return probes
}

// noted is nil when an agent says so in a Note.
func (r *rig) noted(n *lab.Node, reason, detail string) error {
	for line := range strings.Lines(r.agents[n].Output()) {
		if strings.Contains(line, `"Note"`) && strings.Contains(line, reason) && strings.Contains(line, detail) {
			return nil
		}
	}
	return fmt.Errorf("%s has not noted %s: %s", n.Name, reason, detail)
}

// nextHopIDs are what iproute2 shows of the kernel's nexthop objects, which FRR uses.
var nextHopIDs = regexp.MustCompile(` nhid [0-9]+`)

// kernelHas is nil when the routes of a namespace's kernel have the text.
func kernelHas(ns *lab.Namespace, f cluster.Family, text string) error {
	flag := map[cluster.Family]string{cluster.IPv4: "-4", cluster.IPv6: "-6"}[f]
	out, err := ns.Run("ip", flag, "route")
	out = nextHopIDs.ReplaceAllString(out, "")
	if err == nil && !strings.Contains(out, text) {
		err = fmt.Errorf("%q is not among the routes\n%s", text, out)
	}
	return err
}
