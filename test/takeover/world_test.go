package takeover

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

// Some machines of the lab: for each way to run kube-proxy a node that it is on, and beside it one that stays empty until a
// kube-proxy alone shows there what it makes of the same cluster.
const (
	legacyNode   = "n-legacy"
	nftNode      = "n-nft"
	nftablesNode = "n-nftables"
	freshPrefix  = "f-"
)

// A mode is a way to run kube-proxy.
type mode struct {
	name, node string
	// backend is the iptables that the host uses.
	backend lab.Backend
	// proxyMode is kube-proxy's --proxy-mode.
	proxyMode string
	// stickyTo is to how many endpoints the clients of a Service with affinity get in all: kube-proxy in nftables mode remembers them
	// in sets of its own.
	stickyTo int
}

var (
	legacy   = mode{"legacy", legacyNode, lab.Legacy, "iptables", 1}
	nft      = mode{"nft", nftNode, lab.NFT, "iptables", 1}
	nftables = mode{"nftables", nftablesNode, lab.NFT, "nftables", 2}
)

const clusterCIDRs = "10.244.0.0/16,fd00:10:244::/48"

// topology has a node for each mode with two pods, and the same again without any.
func topology() lab.Topology {
	pre, ip := netip.MustParsePrefix, netip.MustParseAddr
	t := lab.Topology{
		Networks: []lab.NetworkSpec{{Name: "infra", Prefixes: []netip.Prefix{pre("192.168.0.0/24"), pre("fd00:192:168::/64")},
			Gateways: []netip.Addr{ip("192.168.0.1"), ip("fd00:192:168::1")}}},
		Router: "router",
		Clients: []lab.ClientSpec{
			{Name: "control", Addrs: []netip.Addr{ip("192.168.0.5")}},
			{Name: "c", Addrs: []netip.Addr{ip("192.168.0.100"), ip("fd00:192:168::100")}},
		},
		ClusterCIDRs: []netip.Prefix{pre("10.244.0.0/16"), pre("fd00:10:244::/48")},
		ServiceCIDRs: []netip.Prefix{pre("10.96.0.0/12"), pre("fd00:10:96::/112")},
	}
	for i, name := range []string{legacyNode, nftNode, nftablesNode} {
		n := i + 1
		node := lab.NodeSpec{Name: name,
			Addrs:    []netip.Addr{ip(fmt.Sprintf("192.168.0.%d", 10+n)), ip(fmt.Sprintf("fd00:192:168::%d", 10+n))},
			PodCIDRs: []netip.Prefix{pre(fmt.Sprintf("10.244.%d.0/24", n)), pre(fmt.Sprintf("fd00:10:244:%d::/64", n))}}
		for j := 2; j <= 3; j++ {
			node.Pods = append(node.Pods, lab.PodSpec{Name: podName(name, j-2),
				Addrs: []netip.Addr{ip(fmt.Sprintf("10.244.%d.%d", n, j)), ip(fmt.Sprintf("fd00:10:244:%d::%d", n, j))}})
		}
		t.Nodes = append(t.Nodes, node)
	}
	for i, name := range []string{legacyNode, nftNode, nftablesNode} {
		fresh := lab.NodeSpec{Name: freshName(name), Addrs: []netip.Addr{ip(fmt.Sprintf("192.168.0.%d", 21+i)), ip(fmt.Sprintf("fd00:192:168::%d", 21+i))}}
		fresh.PodCIDRs = []netip.Prefix{pre(fmt.Sprintf("10.244.%d.0/24", 21+i)), pre(fmt.Sprintf("fd00:10:244:%d::/64", 21+i))}
		t.Nodes = append(t.Nodes, fresh)
	}
	return t
}

func freshName(node string) string { return freshPrefix + strings.TrimPrefix(node, "n-") }

// podName names a pod of a node: 0 serves, 1 asks.
func podName(node string, i int) string {
	return fmt.Sprintf("%s-%d", strings.TrimPrefix(node, "n-"), i)
}

// A world is a cluster with an API server.
type world struct {
	*lab.Lab
	cp *controlplane.ControlPlane
	// manifests is a file with all objects, as kubectl get -o yaml writes it.
	manifests string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	lab.Require(t)
	binaries, err := controlplane.Build(controlplane.KubeProxy)
	ok(t, err)
	w := &world{Lab: lab.ForTest(t, topology())}
	w.cp, err = controlplane.Start(binaries, w.Client("control"), controlplane.Options{Dir: w.Dir, ServiceCIDRs: w.Topology.ServiceCIDRs})
	ok(t, err)
	w.connectPods(t)
	w.createObjects(t)
	return w
}

// served are the nodes with pods.
var served = []string{legacyNode, nftNode, nftablesNode}

// connectPods makes the routes between pods that were there before, by whatever agent, and starts the servers.
func (w *world) connectPods(t *testing.T) {
	t.Helper()
	for _, name := range served {
		pod := w.Pod(podName(name, 0))
		for _, s := range []lab.Server{{Proto: lab.TCP, Port: webTarget}, {Proto: lab.TCP, Port: localTarget}, {Proto: lab.TCP, Port: stickyTarget}, {Proto: lab.UDP, Port: dnsTarget}} {
			s.Name = pod.Name
			_, err := pod.Serve(s)
			ok(t, err)
		}
		for _, other := range w.Topology.Nodes {
			if other.Name == name || len(other.Pods) == 0 {
				continue
			}
			for i, f := range cluster.Families {
				ok(t, w.Node(name).AddRoute(lab.Route{Dst: other.PodCIDRs[i], Via: w.Node(other.Name).Addr(f)}))
			}
		}
	}
}

// The Services. All have both families; ClusterIPs end in the same number.
const (
	webIP, dnsIP, localIP, stickyIP, emptyIP, sourcesIP = 10, 11, 12, 13, 14, 15

	// Each has servers of its own: two connections of one client to the same server by two Services may have the same ports.
	webTarget, dnsTarget, localTarget, stickyTarget = 8080, 8053, 8081, 8082

	webNodePort, dnsNodePort, localNodePort, emptyNodePort = 30080, 30053, 30081, 30082
	// crowd is how many more Services there are of two kinds, so that the agent's chains are those of a large cluster.
	crowd = 20
)

func vip(f cluster.Family, n int) netip.Addr {
	if f == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%d", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", n))
}

func service(name string, n int, ports ...corev1.ServicePort) *corev1.Service {
	return lab.Service(name, []netip.Addr{vip(cluster.IPv4, n), vip(cluster.IPv6, n)}, ports...)
}

// services are all kinds of Services, and which of them have endpoints.
func services() (list []*corev1.Service, endpoints map[string]bool) {
	endpoints = map[string]bool{}
	add := func(s *corev1.Service, served bool, nodePort int32) *corev1.Service {
		if nodePort != 0 {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, nodePort
		}
		endpoints[s.Name] = served
		list = append(list, s)
		return s
	}
	add(service("web", webIP, lab.TCPPort("http", 80, webTarget)), true, webNodePort)
	add(service("dns", dnsIP, lab.UDPPort("dns", 53, dnsTarget)), true, dnsNodePort)
	local := add(service("local", localIP, lab.TCPPort("", 80, localTarget)), true, localNodePort)
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	sticky := add(service("sticky", stickyIP, lab.TCPPort("", 80, stickyTarget)), true, 0)
	sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	add(service("empty", emptyIP, lab.TCPPort("", 80, 8080)), false, emptyNodePort)
	sources := add(service("sources", sourcesIP, lab.TCPPort("", 80, 8080)), true, 0)
	sources.Spec.Type, sources.Spec.LoadBalancerSourceRanges = corev1.ServiceTypeLoadBalancer, []string{"192.168.0.0/24", "fd00:192:168::/64"}
	for i := range crowd {
		add(service(fmt.Sprintf("more-%d", i), 100+i, lab.TCPPort("", 80, 8080)), true, 0)
		add(service(fmt.Sprintf("none-%d", i), 200+i, lab.TCPPort("", 80, 8080)), false, 0)
	}
	return list, endpoints
}

// createObjects brings the cluster to the API, and writes it to the file.
func (w *world) createObjects(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	api := w.cp.Client
	for _, n := range w.Topology.Nodes {
		if len(n.Pods) > 0 {
			_, err := api.CoreV1().Nodes().Create(ctx, lab.NodeObject(n), metav1.CreateOptions{})
			ok(t, err)
		}
	}
	var endpoints []lab.Endpoint
	for _, name := range served {
		endpoints = append(endpoints, lab.Ready(w.Pod(podName(name, 0))))
	}
	all, have := services()
	for _, s := range all {
		made, err := api.CoreV1().Services(s.Namespace).Create(ctx, s, metav1.CreateOptions{})
		ok(t, err)
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			for _, f := range cluster.Families {
				made.Status.LoadBalancer.Ingress = append(made.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: loadBalancerIP(f)})
			}
			_, err = api.CoreV1().Services(s.Namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
			ok(t, err)
		}
		if !have[s.Name] {
			continue
		}
		for _, f := range cluster.Families {
			_, err := api.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, lab.Slice(s, strings.ToLower(f.String()), f, endpoints...), metav1.CreateOptions{})
			ok(t, err)
		}
	}
	w.manifests = filepath.Join(w.Dir, "cluster.yaml")
	ok(t, w.writeManifests(ctx))
}

// churn changes the cluster for a while, so that both proxies write at the same time. In the end everything is as it was. The endpoint
// that comes and goes serves all the time. With iptables-nft, which has no lock, connections fail now and then when two programs write at
// the same time (docs/takeover.md says so), so there nothing changes.
func (w *world) churn(t *testing.T, m mode) {
	t.Helper()
	if m.backend != lab.Legacy {
		return
	}
	ctx := context.Background()
	all := w.cp.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	for i := range 10 {
		for _, name := range []string{"web-ipv4", "web-ipv6", "more-1-ipv4", "more-1-ipv6"} {
			slice, err := all.Get(ctx, name, metav1.GetOptions{})
			ok(t, err)
			last := &slice.Endpoints[len(slice.Endpoints)-1]
			last.Conditions.Ready = new(i%2 == 1)
			_, err = all.Update(ctx, slice, metav1.UpdateOptions{})
			ok(t, err)
		}
		time.Sleep(period / 4)
	}
}

func loadBalancerIP(f cluster.Family) string {
	if f == cluster.IPv6 {
		return "2001:db8::9"
	}
	return "198.51.100.9"
}

// writeManifests writes what the API has, with the kinds that a typed client leaves out.
func (w *world) writeManifests(ctx context.Context) error {
	nodes, err := w.cp.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	all, err := w.cp.Client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	slices, err := w.cp.Client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var objects []runtime.Object
	for i := range nodes.Items {
		nodes.Items[i].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		objects = append(objects, &nodes.Items[i])
	}
	for i := range all.Items {
		all.Items[i].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
		objects = append(objects, &all.Items[i])
	}
	for i := range slices.Items {
		slices.Items[i].TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
		objects = append(objects, &slices.Items[i])
	}
	var text strings.Builder
	for _, o := range objects {
		y, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		text.WriteString("---\n" + string(y))
	}
	return os.WriteFile(w.manifests, []byte(text.String()), 0o600)
}

// period is how often each proxy looks after its rules, instead of every 30 s.
const period = time.Second

// fast makes both look after their rules sooner, so that a test need not wait as long.
var fast = []string{"--iptables-sync-period=" + period.String(), "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}

// startKubeProxy starts kube-proxy on a machine, for the Node of its mode.
func (w *world) startKubeProxy(t *testing.T, on string, m mode) *lab.Process {
	t.Helper()
	p, err := w.Node(on).Start(lab.Command{Path: w.cp.Binaries.Path(controlplane.KubeProxy), Env: w.path(t, m.backend), Args: append([]string{
		"--kubeconfig=" + w.cp.Kubeconfig, "--hostname-override=" + m.node, "--proxy-mode=" + m.proxyMode, "--cluster-cidr=" + clusterCIDRs}, fast...)})
	ok(t, err)
	t.Cleanup(func() {
		if out := p.Output(); t.Failed() {
			t.Logf("kube-proxy on %s (%s):\n%s", on, p.State(), out[max(0, len(out)-4000):])
		}
	})
	return p
}

// startAgent starts fairway on the node of a mode.
func (w *world) startAgent(t *testing.T, m mode) *lab.Agent {
	t.Helper()
	a, err := w.Node(m.node).StartAgent(lab.AgentOptions{Backend: m.backend, Flags: append([]string{"--kubeconfig=" + w.cp.Kubeconfig}, fast...)})
	ok(t, err)
	return a
}

// fairway runs a command of fairway on the node of a mode.
func (w *world) fairway(t *testing.T, m mode, args ...string) (string, error) {
	t.Helper()
	binary, err := lab.AgentBinary()
	ok(t, err)
	return w.Node(m.node).Run(binary, args...)
}

// clusterFlags are the flags by which a command learns the cluster as the agent does.
func (w *world) clusterFlags(m mode) []string {
	return []string{"--node-name=" + m.node, "--cluster-cidrs=" + clusterCIDRs, "--service-cidrs=10.96.0.0/12,fd00:10:96::/112"}
}

// path makes a folder in which the iptables tools without a suffix are those of a backend, as on a host that uses it.
func (w *world) path(t *testing.T, b lab.Backend) (env []string) {
	t.Helper()
	folder := filepath.Join(w.Dir, "tools-"+string(b))
	ok(t, os.MkdirAll(folder, 0o755))
	for _, f := range cluster.Families {
		for _, tool := range []string{"", "-save", "-restore"} {
			name := lab.Tool(b, f, tool)
			target, err := exec.LookPath(name)
			ok(t, err)
			if err := os.Symlink(target, filepath.Join(folder, strings.Replace(name, "-"+string(b), "", 1))); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
	return []string{"PATH=" + folder + ":" + os.Getenv("PATH")}
}

// kubeRules returns the lines of all tables of a family that are about KUBE- chains, in an order that does not depend on
// who wrote first.
func (w *world) kubeRules(t *testing.T, on string, b lab.Backend, f cluster.Family) []string {
	t.Helper()
	text, err := w.Node(on).Save(b, f, "")
	ok(t, err)
	return kubeLines(text)
}

// kubeLines returns the lines about KUBE- chains with the table they stand in.
func kubeLines(save string) (lines []string) {
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.Contains(line, "KUBE-"):
			lines = append(lines, table+" "+line)
		}
	}
	slices.Sort(lines)
	return lines
}

// rendered returns what fairway renders for a mode's node, in the form of kubeRules.
func (w *world) rendered(t *testing.T, m mode, f cluster.Family) []string {
	t.Helper()
	out, err := w.fairway(t, m, append([]string{"render", "-f", w.manifests, "-o", "iptables"}, w.clusterFlags(m)...)...)
	ok(t, err)
	_, text, found := strings.Cut(out, "# "+f.String()+"\n")
	if !found {
		t.Fatalf("fairway render prints nothing of %s:\n%s", f, out)
	}
	text, _, _ = strings.Cut(text, "\n# ")
	return kubeLines(text)
}

// missing returns what of a is not in b.
func missing(a, b []string) (lines []string) {
	for _, line := range a {
		if _, found := slices.BinarySearch(b, line); !found {
			lines = append(lines, line)
		}
	}
	return lines
}

// sameRules waits until two sets of rules are equal.
func sameRules(t *testing.T, what string, have, want func() []string) {
	t.Helper()
	err := lab.Eventually(patience, func() error {
		h, w := have(), want()
		more, less := missing(h, w), missing(w, h)
		if len(more)+len(less) == 0 && len(h) == len(w) {
			return nil
		}
		return fmt.Errorf("%d rules and chains too many:\n%s\n%d too few:\n%s", len(more), strings.Join(more, "\n"), len(less), strings.Join(less, "\n"))
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
