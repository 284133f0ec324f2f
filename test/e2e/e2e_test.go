package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) {
	code := lab.Main(m)
	os.RemoveAll(imageDir())
	os.Exit(code)
}

// TestCluster is one story: each step goes on from where the one before ended, and the first that fails ends it.
func TestCluster(t *testing.T) {
	w := newWorld(t)
	steps := []struct {
		name string
		run  func(*world, *testing.T)
	}{
		{"the API server accepts the manifests", (*world).applyManifests},
		{"agents start from the DaemonSet", (*world).startAgents},
		{"agents have the manifest's privileges only", (*world).checkPrivileges},
		{"fairway doctor works in the pod", (*world).doctor},
		{"pods reach pods on the other node", (*world).podToPod},
		{"a ClusterIP spreads over both nodes", (*world).clusterIP},
		{"the API answers at its ClusterIP", (*world).apiService},
		{"a node port answers outside", (*world).nodePort},
		{"an endpoint that is gone gets nothing", (*world).removeEndpoint},
		{"a refused endpoint is an Event", (*world).refuseEndpoint},
		{"a refused podCIDR is an Event", (*world).refusePodCIDR},
		{"a node joins and leaves", (*world).nodeJoinsAndLeaves},
		{"render says what the kernel has", (*world).render},
		{"a killed agent finds everything as it should be", (*world).restartAgents},
		{"traffic goes on without the API server", (*world).restartAPIServer},
		{"a deleted Service is gone", (*world).deleteService},
		{"what RBAC grants is what is used", (*world).checkPermissions},
		{"the documents' commands of kubectl work", (*world).documented},
	}
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { s.run(w, t) }) {
			return
		}
	}
}

func (w *world) applyManifests(t *testing.T) {
	w.mustKubectl(t, "apply", "-k", overlay(t, "cluster"))
	ds, err := w.cp.Client.AppsV1().DaemonSets("kube-system").Get(context.Background(), "fairway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.daemonSet = ds
	w.dryRun(t, manifests(t, "base"))
	w.dryRun(t, manifests(t, "overlays", "kubeadm"))
	w.kubeadm = w.dryRun(t, overlay(t, "kubeadm"))
	help, err := exec.Command(w.fairway, "agent", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("fairway agent --help: %v: %s", err, help)
	}
	for _, ds := range []*appsv1.DaemonSet{w.daemonSet, w.kubeadm} {
		for _, arg := range ds.Spec.Template.Spec.Containers[0].Args[1:] {
			flag, _, _ := strings.Cut(arg, "=")
			if !regexp.MustCompile(`(?m)^\s.*` + regexp.QuoteMeta(flag) + `\s`).Match(help) {
				t.Errorf("the agent has no flag %s", flag)
			}
		}
	}
}

func (w *world) startAgents(t *testing.T) {
	// The way to the API server without any Service, as the DaemonSet's comment says it.
	w.createConfigMap(t, "fairway-api-server", map[string]string{
		"KUBERNETES_SERVICE_HOST": w.cp.Addr.String(), "KUBERNETES_SERVICE_PORT": "6443",
	})
	for _, node := range []string{"node-a", "node-b"} {
		w.api(t).createNode(w.lab.Node(node).NodeSpec)
		w.hint(t, node)
		w.startAgent(t, node, w.daemonSet)
	}
	for _, node := range []string{"node-a", "node-b"} {
		w.waitReady(t, node)
		if err := w.probe(node, w.daemonSet.Spec.Template.Spec.Containers[0].LivenessProbe); err != nil {
			t.Error(err)
		}
		// Each agent has found out which kind of iptables its host uses; the other kind has no rule of ours.
		if text := w.rules(t, node); !strings.Contains(text, "KUBE-SERVICES") {
			t.Errorf("%s, %s:\n%s", node, backends[node], text)
		}
	}
}

// checkPrivileges looks at what the kernel says of the agents' processes.
func (w *world) checkPrivileges(t *testing.T) {
	// From include/uapi/linux/capability.h: CAP_NET_ADMIN is 12, CAP_NET_RAW 13.
	want := map[string]string{"CapEff": "0000000000003000", "CapPrm": "0000000000003000", "CapBnd": "0000000000003000", "NoNewPrivs": "1"}
	for node, agent := range w.agents {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", agent.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			if expected, ok := want[name]; ok && strings.TrimSpace(value) != expected {
				t.Errorf("agent of %s: %s is %s, want %s", node, name, strings.TrimSpace(value), expected)
			}
		}
	}
}

func (w *world) podToPod(t *testing.T) {
	from, to := w.lab.Pod("pod-a2"), w.lab.Pod("pod-b2")
	for _, f := range cluster.Families {
		r := from.Ask(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(to.Addr(f), podPort)})
		if r.Outcome != lab.OK || r.Name != to.PodSpec.Name || r.Seen.Addr() != from.Addr(f) {
			t.Errorf("%s: %s; want %s to see %s", f, r, to.PodSpec.Name, from.Addr(f))
		}
	}
}

func (w *world) clusterIP(t *testing.T) {
	svc := w.api(t).createService("web", corev1.ServiceTypeNodePort)
	w.api(t).setEndpoints("web", w.lab.Pod("pod-a2"), w.lab.Pod("pod-b2"))
	for _, vip := range vips(svc) {
		w.eventuallySpread(t, "pod-a3", vip, "pod-a2", "pod-b2")
		w.eventuallySpread(t, "pod-b3", vip, "pod-a2", "pod-b2")
		// Pods see each other's own addresses through a ClusterIP.
		from := w.lab.Pod("pod-a3")
		if r := from.Ask(lab.Dial{Proto: lab.TCP, To: vip}); r.Seen.Addr() != from.Addr(cluster.FamilyOf(vip.Addr())) {
			t.Errorf("%s: %s", vip, r)
		}
		echo := netip.AddrPortFrom(vip.Addr(), 7)
		if err := spread(from.Namespace, lab.Dial{Proto: lab.UDP, To: echo}, []string{"pod-a2", "pod-b2"}); err != nil {
			t.Errorf("%s: %v", echo, err)
		}
	}
}

// apiService asks for the API where pods are told that it is: the API server itself writes that Service and its
// endpoints.
func (w *world) apiService(t *testing.T) {
	svc, err := w.cp.Client.CoreV1().Services(namespace).Get(context.Background(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.lab.Pod("pod-b3").Run(w.cp.Binaries.Path(controlplane.Kubectl), "--server=https://"+svc.Spec.ClusterIP,
		"--certificate-authority="+w.cp.CAFile(), "--token="+controlplane.AdminToken, "get", "--raw=/readyz")
	if err != nil || out != "ok" {
		t.Errorf("readyz at %s: %q, %v", svc.Spec.ClusterIP, out, err)
	}
}

func (w *world) nodePort(t *testing.T) {
	svc := w.service(t, "web")
	for _, node := range []string{"node-a", "node-b"} {
		to := netip.AddrPortFrom(w.lab.Node(node).Addr(cluster.IPv4), uint16(svc.Spec.Ports[0].NodePort))
		w.eventuallySpreadFrom(t, w.lab.Client("outside").Namespace, to, "pod-a2", "pod-b2")
	}
}

func (w *world) removeEndpoint(t *testing.T) {
	svc := w.service(t, "web")
	w.api(t).setEndpoints("web", w.lab.Pod("pod-a2"))
	for _, vip := range vips(svc) {
		for _, from := range []string{"pod-a3", "pod-b3"} {
			w.eventuallySpread(t, from, vip, "pod-a2")
		}
	}
	w.api(t).setEndpoints("web")
	for _, vip := range vips(svc) {
		for _, from := range []string{"pod-a3", "pod-b3"} {
			eventually(t, "refused at "+vip.String(), func() error { return w.outcome(from, vip, lab.Refused) })
		}
	}
	w.api(t).setEndpoints("web", w.lab.Pod("pod-a2"), w.lab.Pod("pod-b2"))
	for _, vip := range vips(svc) {
		w.eventuallySpread(t, "pod-a3", vip, "pod-a2", "pod-b2")
	}
}

// refuseEndpoint adds an endpoint that the API server lets through although nothing can be sent there.
func (w *world) refuseEndpoint(t *testing.T) {
	const bad = "0.1.2.3"
	svc := w.api(t).createService("partly", corev1.ServiceTypeClusterIP)
	w.api(t).setSlice("partly", discoveryv1.AddressTypeIPv4, []discoveryv1.Endpoint{
		endpoint(netip.MustParseAddr(bad), "node-a"), endpoint(w.lab.Pod("pod-b2").Addr(cluster.IPv4), "node-b"),
	})
	w.api(t).event("Service", "partly", cluster.ReasonEndpointRefused, bad)
	w.eventuallySpread(t, "pod-a3", vips(svc)[0], "pod-b2")
	w.api(t).deleteService("partly")
}

// refusePodCIDR registers nodes whose podCIDRs must not be routed: one outside of the cluster's, one that belongs to
// another node.
func (w *world) refusePodCIDR(t *testing.T) {
	before := w.routes(t, "node-a")
	for _, c := range []struct{ node, podCIDR, reason string }{
		{"astray", "192.0.2.0/24", cluster.ReasonPodCIDRRefused},
		{"twin", w.lab.Node("node-b").PodCIDRs[0].String(), cluster.ReasonPodCIDRConflict},
	} {
		w.api(t).createNode(lab.NodeSpec{Name: c.node, Addrs: addrs("10.240.0.99"), PodCIDRs: prefixes(c.podCIDR)})
		w.api(t).event("Node", c.node, c.reason, c.podCIDR)
		if after := w.routes(t, "node-a"); after != before {
			t.Errorf("routes of node-a changed with %s:\n%s\nfrom:\n%s", c.node, after, before)
		}
		w.api(t).deleteNode(c.node)
	}
	if err := w.podReaches("pod-a2", "pod-b2"); err != nil {
		t.Error(err)
	}
}

// nodeJoinsAndLeaves runs the third node's agent as on a kubeadm cluster: from the overlay, with the configuration and the
// kubeconfig that kubeadm wrote for kube-proxy. The agent is there before the Node.
func (w *world) nodeJoinsAndLeaves(t *testing.T) {
	w.createConfigMap(t, "kube-proxy", map[string]string{"config.conf": kubeadmConfiguration, "kubeconfig.conf": w.kubeadmKubeconfig()})
	for _, v := range w.kubeadm.Spec.Template.Spec.Volumes {
		if v.Name == "configuration" { // not there yet: the overlay was only asked for, and the name is that of the other nodes'
			v.ConfigMap.Name += "-kubeadm"
			text, err := os.ReadFile(manifests(t, "overlays", "kubeadm", "agent-configuration.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			w.createConfigMap(t, v.ConfigMap.Name, map[string]string{"agent-configuration.yaml": string(text)})
		}
	}
	w.hint(t, "node-c")
	for _, c := range w.lab.Node("node-c").PodCIDRs {
		if strings.Contains(w.routes(t, "node-a"), c.String()) {
			t.Fatalf("node-a has a route to %s already", c)
		}
	}
	w.startAgent(t, "node-c", w.kubeadm)
	w.api(t).createNode(w.lab.Node("node-c").NodeSpec)
	w.waitReady(t, "node-c")
	for _, pair := range [][2]string{{"pod-a2", "pod-c2"}, {"pod-c3", "pod-b2"}} {
		took := eventually(t, "pods of the new node", func() error { return w.podReaches(pair[0], pair[1]) })
		t.Logf("%s reached %s %s after the new node was ready", pair[0], pair[1], took)
	}
	w.eventuallySpread(t, "pod-c2", vips(w.service(t, "web"))[0], "pod-a2", "pod-b2")

	w.api(t).deleteNode("node-c")
	eventually(t, "routes to the deleted node gone", func() error {
		for _, c := range w.lab.Node("node-c").PodCIDRs {
			if routes := w.routes(t, "node-a"); strings.Contains(routes, c.String()) {
				return fmt.Errorf("node-a:\n%s", routes)
			}
		}
		return nil
	})
	w.agents["node-c"].Kill()
	delete(w.agents, "node-c")
}

// restartAgents kills the agents and starts them again. Nothing may be written to the kernel: under iptables-legacy
// every writer needs the lock, which somebody else holds here; of routes and of nftables the kernel reports changes.
func (w *world) restartAgents(t *testing.T) {
	unlock := w.holdLock(t, "node-a")
	for _, node := range []string{"node-a", "node-b"} {
		monitors := w.monitor(t, node)
		rules, routes := w.rules(t, node), w.routes(t, node)
		w.agents[node].Kill()
		w.startAgent(t, node, w.daemonSet)
		w.waitReady(t, node)
		if after := w.rules(t, node); after != rules {
			t.Errorf("rules of %s:\n%s\nbefore:\n%s", node, after, rules)
		}
		if after := w.routes(t, node); after != routes {
			t.Errorf("routes of %s:\n%s\nbefore:\n%s", node, after, routes)
		}
		for _, m := range monitors {
			m.expectSilence(t)
		}
	}
	unlock()
}

// restartAPIServer kills the API server for as long as it takes to start it again.
func (w *world) restartAPIServer(t *testing.T) {
	vip := vips(w.service(t, "web"))[0]
	prober, err := w.lab.Pod("pod-a3").Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: vip, Timeout: time.Minute}, Rate: 100, NoRepeats: true})
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for node := range w.agents {
		before[node] = w.rules(t, node) + w.routes(t, node)
	}
	w.cp.APIServer.Kill()
	for node := range w.agents {
		eventually(t, "agent of "+node+" noticed", func() error {
			if !strings.Contains(w.logs.of("agent of "+node), lostContact) {
				return fmt.Errorf("its log does not say %q", lostContact)
			}
			return nil
		})
		if err := w.probe(node, w.daemonSet.Spec.Template.Spec.Containers[0].LivenessProbe); err != nil {
			t.Error(err)
		}
		if after := w.rules(t, node) + w.routes(t, node); after != before[node] {
			t.Errorf("rules and routes of %s:\n%s\nbefore:\n%s", node, after, before[node])
		}
	}
	w.cp.startAPIServer(t)
	report := prober.Stop()
	t.Logf("%s while the API server was away", report)
	if report.Failed() > 0 || report.Attempts == 0 {
		t.Error("traffic was disturbed")
	}
	w.api(t).setEndpoints("web", w.lab.Pod("pod-b3"))
	w.eventuallySpread(t, "pod-a3", vip, "pod-b3")
	w.eventuallySpread(t, "pod-b2", vip, "pod-b3")
}

func (w *world) deleteService(t *testing.T) {
	svc := w.service(t, "web")
	w.api(t).deleteService("web")
	for node := range w.agents {
		eventually(t, "rules of the deleted Service gone from "+node, func() error {
			if text := w.rules(t, node); strings.Contains(text, "default/web") || strings.Contains(text, svc.Spec.ClusterIP) {
				return fmt.Errorf("%s", text)
			}
			return nil
		})
	}
	// Not translated any more, the packet would go to the router. That the address is one of Services, the agents know from the
	// API's ServiceCIDR alone: they are not told serviceCIDRs.
	for _, vip := range vips(svc) {
		if err := w.outcome("pod-a3", vip, lab.Refused); err != nil {
			t.Error(err)
		}
	}
}

// service reads a Service from the API.
func (w *world) service(t *testing.T, name string) *corev1.Service {
	t.Helper()
	svc, err := w.cp.Client.CoreV1().Services(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// vips are a Service's ClusterIPs with its first port, IPv4 first.
func vips(svc *corev1.Service) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ip := range svc.Spec.ClusterIPs {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(svc.Spec.Ports[0].Port)))
	}
	slices.SortFunc(out, func(a, b netip.AddrPort) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return out
}

// eventuallySpread waits until the answers at an address come from exactly these pods.
func (w *world) eventuallySpread(t *testing.T, from string, to netip.AddrPort, pods ...string) {
	t.Helper()
	w.eventuallySpreadFrom(t, w.lab.Pod(from).Namespace, to, pods...)
}

func (w *world) eventuallySpreadFrom(t *testing.T, from *lab.Namespace, to netip.AddrPort, pods ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("answers at %s", to), func() error { return spread(from, lab.Dial{Proto: lab.TCP, To: to}, pods) })
}

// spread asks until each of two pods should have answered, and expects answers of these pods only.
func spread(from *lab.Namespace, to lab.Dial, pods []string) error {
	// The chance that one of two pods is missed by 40 fair throws is below one in 10^11.
	got := from.Spread(to, 40)
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, pods) {
		return fmt.Errorf("%v answered %s, want %v", got, to.Proto, pods)
	}
	return nil
}

func (w *world) podReaches(from, to string) error {
	for _, f := range cluster.Families {
		r := w.lab.Pod(from).Ask(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(w.lab.Pod(to).Addr(f), podPort)})
		if r.Outcome != lab.OK || r.Name != to {
			return fmt.Errorf("from %s to %s, %s: %s", from, to, f, r)
		}
	}
	return nil
}

// outcome asks at an address and expects what becomes of it.
func (w *world) outcome(from string, to netip.AddrPort, want lab.Outcome) error {
	if r := w.lab.Pod(from).Ask(lab.Dial{Proto: lab.TCP, To: to}); r.Outcome != want {
		return fmt.Errorf("%s asked %s: %s, want %s", from, to, r, want)
	}
	return nil
}
