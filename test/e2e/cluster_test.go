package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// podPort is the port that all pods serve on.
const podPort = 8080

// topology is two nodes that are there from the start and one that joins, all dual-stack and not yet forwarding, the
// machine of the control plane next to them, and a client behind the router.
func topology() lab.Topology {
	t := lab.Topology{
		Networks: []lab.NetworkSpec{
			{Name: "infra", Prefixes: prefixes("10.240.0.0/24", "fd00:240::/64"), Gateways: addrs("10.240.0.1", "fd00:240::1")},
			{Name: "internet", Prefixes: prefixes("198.51.100.0/24"), Gateways: addrs("198.51.100.1")},
		},
		Router: "router",
		Clients: []lab.ClientSpec{
			{Name: "control", Addrs: addrs("10.240.0.5")},
			{Name: "outside", Network: "internet", Addrs: addrs("198.51.100.10")},
		},
		ClusterCIDRs: prefixes("10.200.0.0/16", "fd00:200::/56"),
		ServiceCIDRs: prefixes("10.32.0.0/24", "fd00:32::/112"),
	}
	for i, name := range []string{"a", "b", "c"} {
		node := lab.NodeSpec{
			Name:         "node-" + name,
			Addrs:        addrs(fmt.Sprintf("10.240.0.%d", 11+i), fmt.Sprintf("fd00:240::%d", 11+i)),
			PodCIDRs:     prefixes(fmt.Sprintf("10.200.%d.0/24", 1+i), fmt.Sprintf("fd00:200:0:%d::/64", 1+i)),
			NoForwarding: true,
		}
		for j := 2; j <= 3; j++ {
			node.Pods = append(node.Pods, lab.PodSpec{
				Name:  fmt.Sprintf("pod-%s%d", name, j),
				Addrs: addrs(fmt.Sprintf("10.200.%d.%d", 1+i, j), fmt.Sprintf("fd00:200:0:%d::%d", 1+i, j)),
			})
		}
		t.Nodes = append(t.Nodes, node)
		// A control plane's machine knows the way to pods: it is a node too, or was told.
		control := &t.Clients[0]
		control.Routes = append(control.Routes, lab.Route{Dst: node.PodCIDRs[0], Via: node.Addrs[0]})
	}
	return t
}

// A world is everything that the steps of the test share.
type world struct {
	lab     *lab.Lab
	cp      *controlPlane
	logs    *logs
	fairway string // the agent's binary
	// daemonSet is the DaemonSet as the API server stores it, kubeadm the one that the overlay of this name would be.
	daemonSet, kubeadm *appsv1.DaemonSet
	agents             map[string]*lab.Process // by node
}

// backends are the kinds of iptables that the nodes' hosts use.
var backends = map[string]lab.Backend{"node-a": lab.Legacy, "node-b": lab.NFT, "node-c": lab.NFT}

// agentEnv is added to the environment of a node's agent. The agent of node-a lists before it watches, as with an
// API server that does not know watch-list; the other ones stream the list.
var agentEnv = map[string][]string{"node-a": {"KUBE_FEATURE_WatchListClient=false"}}

// newWorld builds everything and starts the control plane and the pods' servers, but no agent.
func newWorld(t *testing.T) *world {
	lab.Require(t)
	w := &world{fairway: builtAgent(t), agents: map[string]*lab.Process{}}
	w.lab = lab.ForTest(t, topology())
	w.logs = newLogs(t)
	w.cp = startControlPlane(t, w.logs, w.lab)
	for _, n := range w.lab.Topology.Nodes {
		for _, p := range n.Pods {
			for _, proto := range []lab.Proto{lab.TCP, lab.UDP} {
				if _, err := w.lab.Pod(p.Name).Serve(lab.Server{Name: p.Name, Proto: proto, Port: podPort}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	w.createRootCA(t)
	return w
}

// createRootCA makes the ConfigMap that kube-controller-manager puts into every namespace, for pods to know the API.
func (w *world) createRootCA(t *testing.T) {
	ca, err := os.ReadFile(w.cp.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	w.createConfigMap(t, "kube-root-ca.crt", map[string]string{"ca.crt": string(ca)})
}

func (w *world) createConfigMap(t *testing.T, name string, data map[string]string) {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := w.cp.Client.CoreV1().ConfigMaps("kube-system").Create(context.Background(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create ConfigMap: %v", err)
	}
}

// api returns a writer of objects whose errors belong to the given test.
func (w *world) api(t *testing.T) api { return api{t, w.cp.Client} }

// manifests returns the path of a folder of the manifests.
func manifests(t *testing.T, elem ...string) string {
	return filepath.Join(append([]string{repoDir(t), "manifests"}, elem...)...)
}

// overlay returns the path of one of the overlays in testdata, which are such as an operator writes.
func overlay(t *testing.T, name string) string { return filepath.Join(sourceDir(t), "testdata", name) }

// mustKubectl is kubectl whose failure is the test's.
func (w *world) mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.cp.Kubectl(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dryRun asks the API server what an overlay's DaemonSet would be.
func (w *world) dryRun(t *testing.T, dir string) *appsv1.DaemonSet {
	t.Helper()
	out := w.mustKubectl(t, "apply", "-k", dir, "--dry-run=server", "-o", "json", "--selector=app.kubernetes.io/name=fairway")
	var list struct{ Items []map[string]any }
	if err := yaml.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	for _, item := range list.Items {
		if item["kind"] == "DaemonSet" {
			ds := &appsv1.DaemonSet{}
			text, err := yaml.Marshal(item)
			if err == nil {
				err = yaml.Unmarshal(text, ds)
			}
			if err != nil {
				t.Fatal(err)
			}
			return ds
		}
	}
	t.Fatalf("kubectl apply -k %s names no DaemonSet:\n%s", dir, out)
	return nil
}

// startAgent runs a DaemonSet's pod on a node.
func (w *world) startAgent(t *testing.T, node string, ds *appsv1.DaemonSet) {
	t.Helper()
	kubernetes := netip.AddrPortFrom(w.lab.Topology.ServiceCIDRs[0].Addr().Next(), 443)
	k := &kubelet{
		tb: t, logs: w.logs, client: w.cp.Client, node: w.lab.Node(node), ds: ds, binary: w.fairway, work: w.lab.Dir,
		serviceHost: kubernetes.Addr().String(), servicePort: strconv.Itoa(int(kubernetes.Port())),
	}
	k.initContainers()
	w.agents[node] = k.start(agentEnv[node]...)
}

// waitReady waits until the readiness probe of a node's agent succeeds.
func (w *world) waitReady(t *testing.T, node string) {
	t.Helper()
	took := eventually(t, "agent of "+node+" ready", func() error {
		if err := w.running(node); err != nil {
			t.Fatal(err)
		}
		return w.probe(node, w.daemonSet.Spec.Template.Spec.Containers[0].ReadinessProbe)
	})
	t.Logf("agent of %s ready after %s", node, took.Round(time.Millisecond))
}

// hint makes the chain by which a kubelet shows which kind of iptables its host uses.
func (w *world) hint(t *testing.T, node string) {
	t.Helper()
	for _, f := range cluster.Families {
		if err := w.lab.Node(node).Restore(backends[node], f, "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n", true); err != nil {
			t.Fatal(err)
		}
	}
}

// rules returns all rules of a node's backend, of both families.
func (w *world) rules(t *testing.T, node string) string {
	t.Helper()
	var out string
	for _, f := range cluster.Families {
		text, err := w.lab.Node(node).Save(backends[node], f, "")
		if err != nil {
			t.Fatal(err)
		}
		out += text
	}
	return out
}

// routes returns a node's routes of both families.
func (w *world) routes(t *testing.T, node string) string {
	t.Helper()
	var out string
	for _, family := range []string{"-4", "-6"} {
		text, err := w.lab.Node(node).Run("ip", family, "route", "show")
		if err != nil {
			t.Fatal(err)
		}
		out += text
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}
