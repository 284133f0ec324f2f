package migrate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

// kubeRouterFlags are those of the DaemonSet. The last ones are for the laboratory: it has no IPVS, no CNI, no AWS, and less time.
var kubeRouterFlags = []string{"--run-router=true", "--run-service-proxy=false", "--run-firewall=false", "--enable-overlay=false", "--cluster-asn=64512", "--peer-router-ips=192.0.2.1", "--peer-router-asns=65000",
	"--advertise-cluster-ip=true", "--bgp-graceful-restart=true", "--bgp-graceful-restart-time=15s", "--service-cluster-ip-range=10.96.0.0/16",
	"--enable-cni=false", "--disable-source-dest-check=false", "--gobgp-admin-port=0", "--routes-sync-period=2s", "--injected-routes-sync-period=2s"}

const kubeRouterManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-router, namespace: kube-system}
spec:
  selector: {matchLabels: {app: kube-router}}
  template:
    metadata: {labels: {app: kube-router}}
    spec: {containers: [{name: kube-router, image: "docker.io/cloudnativelabs/kube-router:v2.10.0", args: ["%s"]}]}
`

// startKubeRouter starts kube-router on a node, as the DaemonSet would.
func (w *world) startKubeRouter(node int) *lab.Process {
	w.Helper()
	p, err := w.node(node).Start(lab.Command{Path: w.folder + "/kube-router", Env: w.environment(),
		Args: append([]string{"--kubeconfig=" + w.cp.Kubeconfig, fmt.Sprintf("--hostname-override=n%d", node)}, kubeRouterFlags...)})
	ok(w.T, err)
	w.Cleanup(func() {
		if out := p.Output(); w.Failed() {
			w.Logf("kube-router on n%d (%s):\n%s", node, p.State(), out[max(0, len(out)-6000):])
		}
	})
	return p
}

// TestFromKubeRouter follows docs/migrate-kube-router.md.
func TestFromKubeRouter(t *testing.T) {
	w := newWorld(t, "migrate-kube-router.md", fmt.Sprintf(kubeRouterManifest, strings.Join(kubeRouterFlags, `","`)), controlplane.KubeRouter)
	control, router, n1, n2 := w.lab.Client("control").Namespace, w.lab.Router(), w.node(1).Namespace, w.node(2).Namespace
	w.startBIRD("65000") // kube-router refuses the ASNs for documentation
	kubeRouters := map[int]*lab.Process{1: w.startKubeRouter(1), 2: w.startKubeRouter(2)}
	w.eventually(func() error {
		return w.has(router, "ip route", "10.244.1.0/24 via 192.0.2.11", "10.244.2.0/24 via 192.0.2.12", "10.96.0.10")
	})
	w.eventually(func() error { return w.has(n1, "ip route show proto 17", "10.244.2.0/24 via 192.0.2.12") })
	w.eventually(func() error { return w.has(n2, "ip route show proto 17", "10.244.1.0/24 via 192.0.2.11") })
	w.eventually(func() error { return w.has(n1, "ipset list -n", "kube-router-pod-subnets") })
	l := w.traffic(false)

	w.typed(control, 1, "kubectl get nodes")
	w.typed(control, 1, "kubectl -n kube-system get daemonset")
	w.typed(control, 1, "fairway import-kube-router")
	ok(t, w.has(control, "cat agent.yaml", "fairway.dev/router: fairway", "address: 192.0.2.1", "- ClusterIPs", "--enable-pod-egress=true: fairway does not replace", "!NetworkPolicy"))
	if out := w.typed(control, 1, "fairway render"); !strings.Contains(out, "10.244.1.0/24 # PodCIDR") || strings.Contains(out, "peer ") {
		t.Errorf("render prints\n%s", out)
	}
	w.typed(control, 1, "cp agent.yaml")
	w.typed(control, 1, "kubectl apply -k")
	agents := map[int]*lab.Agent{1: w.start(1), 2: w.start(2)}
	for i, a := range agents {
		ok(t, a.WaitReady(patience))
		w.noted(a, "RouteConflict", fmt.Sprintf("10.244.%d.0/24", 3-i))
	}
	if out := w.typed(n1, 1, "ip route show proto 17"); !strings.Contains(out, "10.244.2.0/24") {
		t.Errorf("kube-router's routes are %q", out)
	}
	if out := w.typed(n1, 1, "ip route show proto 102"); out != "" {
		t.Errorf("beside kube-router's, fairway has the routes %q", out)
	}
	w.sessions(1, 0)

	w.typed(control, 1, "kubectl -n kube-system patch daemonset kube-router")
	w.typed(control, 1, "kubectl label node")
	w.stop(kubeRouters[1])
	cleanup := []string{"kube-router --cleanup-config", "iptables-save", "ip6tables-save", "ip route show proto 17 |", "ip -6 route show proto 17 |", "ipset list"}
	for _, command := range cleanup {
		w.typed(n1, 1, command)
	}
	w.typed(n1, 1, "ip rule show")
	w.typed(n1, 1, "ip -o link show")
	w.sessions(1, 1)
	w.typed(n1, 1, "curl")
	w.typed(n1, 1, "curl")
	w.moved(1)
	w.typed(n1, 1, "ip route show proto 102")
	// n2's kube-router has given up n1's, after the time of graceful restart, and fairway has the route there, too.
	w.eventually(func() error { return w.has(n2, "ip route show proto 102", "10.244.1.0/24 via 192.0.2.11") })

	w.again(control, 2, "kubectl label node")
	w.stop(kubeRouters[2])
	for _, command := range cleanup {
		w.again(n2, 2, command)
	}
	w.sessions(2, 1)
	w.moved(2)
	w.eventually(func() error {
		return w.has(router, "ip route", "10.244.1.0/24 via 192.0.2.11", "10.244.2.0/24 via 192.0.2.12", "10.96.0.10")
	})
	w.reaches()
	w.end(l, "from kube-router to fairway", few)
	w.typed(control, 1, "kubectl -n kube-system delete daemonset kube-router")

	w.typed(control, 1, "kubectl label node")
	w.sessions(1, 0)
	w.again(control, 2, "kubectl label node worker-1 fairway.dev/router-")
	w.sessions(2, 0)
	for i := range kubeRouters {
		kubeRouters[i] = w.startKubeRouter(i)
	}
	w.eventually(func() error { return w.has(n1, "ip route show proto 17", "10.244.2.0/24 via 192.0.2.12") })
	w.eventually(func() error { return w.has(router, "ip route", "10.244.1.0/24 via 192.0.2.11", "10.96.0.10") })
	w.typed(control, 1, "kubectl delete -k")
	for i := 1; i <= 2; i++ {
		ok(t, agents[i].Stop(patience))
		if i == 1 {
			w.typed(w.node(i).Namespace, i, "fairway cleanup")
		} else {
			w.again(w.node(i).Namespace, i, "fairway cleanup")
		}
	}
	w.eventually(func() error {
		return w.has(n1, "ip route show; iptables-save", "10.244.2.0/24 via 192.0.2.12", "!KUBE-SVC")
	})
	back := w.traffic(false)
	time.Sleep(time.Second)
	w.end(back, "back with kube-router", 0)
	w.finished()
}

// moved fails the test unless nothing of kube-router is left on a node, and fairway's route is there.
func (w *world) moved(node int) {
	w.Helper()
	on := w.node(node).Namespace
	other := 3 - node
	w.eventually(func() error {
		return w.has(on, "ip route show proto 102", fmt.Sprintf("10.244.%d.0/24 via 192.0.2.1%d", other, other))
	})
	for command, not := range map[string]string{"ip route show proto 17": "10.244", "ipset list -n": "kube-router", "iptables-save -t nat": "kube-router"} {
		if err := w.has(on, command, "!"+not); err != nil {
			w.Error(err)
		}
	}
}
