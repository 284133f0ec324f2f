package migrate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

const kubeProxyManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-proxy}}
  template:
    metadata: {labels: {k8s-app: kube-proxy}}
    spec: {containers: [{name: kube-proxy, image: "registry.k8s.io/kube-proxy:v1.36.3"}]}
`

// startKubeProxy starts kube-proxy on a node, as the DaemonSet would.
func (w *world) startKubeProxy(node int) *lab.Process {
	w.Helper()
	p, err := w.node(node).Start(lab.Command{Path: w.cp.Binaries.Path(controlplane.KubeProxy), Env: w.environment(), Args: []string{
		"--kubeconfig=" + w.cp.Kubeconfig, fmt.Sprintf("--hostname-override=n%d", node), "--proxy-mode=iptables", "--cluster-cidr=10.244.0.0/16",
		"--iptables-sync-period=1s", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}})
	ok(w.T, err)
	w.Cleanup(func() {
		if out := p.Output(); w.Failed() {
			w.Logf("kube-proxy on n%d (%s):\n%s", node, p.State(), out[max(0, len(out)-4000):])
		}
	})
	return p
}

// TestFromKubeadm follows docs/migrate-kubeadm-bgp.md.
func TestFromKubeadm(t *testing.T) {
	w := newWorld(t, "migrate-kubeadm-bgp.md", kubeProxyManifest, controlplane.KubeProxy)
	control, router := w.lab.Client("control").Namespace, w.lab.Router()
	for i := 1; i <= 2; i++ { // somebody's static routes
		w.run(w.node(i).Namespace, i, "ip route add 10.244.2.0/24 via 192.0.2.12 proto static")
		w.run(router, i, "ip route add 10.244.1.0/24 via 192.0.2.11 proto static")
	}
	kubeProxies := map[int]*lab.Process{1: w.startKubeProxy(1), 2: w.startKubeProxy(2)}
	for i := 1; i <= 2; i++ {
		w.eventually(func() error {
			return w.has(w.node(i).Namespace, "iptables-save -t nat", "-j DNAT --to-destination 10.244.2.2:8080")
		})
	}
	bird := w.startBIRD("64500")
	l := w.traffic(true)

	ok(t, os.WriteFile(filepath.Join(w.folder, "agent.yaml"), []byte(example(t, "migrate-kubeadm-bgp.md", "yaml")), 0o600))
	w.typed(control, 1, "kubectl get nodes")
	if out := w.typed(control, 1, "fairway render"); !strings.Contains(out, "peer 192.0.2.1:179") || !strings.Contains(out, "10.96.0.0/16 # ServiceCIDR") {
		t.Errorf("render prints\n%s", out)
	}
	if out := w.typed(w.node(1).Namespace, 1, "fairway takeover --plan"); !strings.Contains(out, "kube-proxy") {
		t.Errorf("the plan is\n%s", out)
	}
	w.typed(control, 1, "cp agent.yaml")
	w.typed(control, 1, "kubectl -n kube-system patch daemonset kube-proxy")
	w.typed(control, 1, "kubectl apply -k")
	w.typed(control, 1, "kubectl -n kube-system patch daemonset fairway")
	w.typed(control, 1, "kubectl label node")
	agents := map[int]*lab.Agent{}
	move := func(i int, do func(*lab.Namespace, int, string) string) {
		on := w.node(i).Namespace
		agents[i] = w.start(i)
		w.stop(kubeProxies[i])
		ok(t, agents[i].WaitReady(patience))
		do(on, i, "fairway takeover")
		w.sessions(i, 1)
		do(on, i, "curl -s http://127.0.0.1:10256")
		do(on, i, "curl -s http://127.0.0.1:10249")
		w.noted(agents[i], "RouteConflict", fmt.Sprintf("10.244.%d.0/24", 3-i))
		if out := do(on, i, "ip route show"); !strings.Contains(out, fmt.Sprintf("10.244.%d.0/24", 3-i)) {
			t.Errorf("the routes of n%d are\n%s", i, out)
		}
		do(on, i, "ip route replace 10.244.2.0/24")
		w.eventually(func() error {
			return w.has(on, "ip route show proto 102; ip route show proto static", fmt.Sprintf("10.244.%d.0/24 via", 3-i), "!static")
		})
	}
	move(1, w.typed)
	w.typed(w.node(1).Namespace, 1, "ip route show proto 102")
	w.again(control, 2, "kubectl label node")
	takeover := func(on *lab.Namespace, node int, begins string) string {
		if begins == "fairway takeover" || begins == "ip route show" { // which others begin with, too
			return w.run(on, node, begins)
		}
		return w.again(on, node, begins)
	}
	move(2, takeover)

	w.eventually(func() error { return w.has(router, "birdc show protocols", "Established") })
	w.typed(router, 1, "birdc show protocols")
	if out := w.typed(router, 1, "birdc show route"); !strings.Contains(out, "10.244.1.0/24") || !strings.Contains(out, "10.96.0.0/16") {
		t.Errorf("BIRD has\n%s", out)
	}
	w.reaches() // the gateway knows the service range from BGP alone
	vtysh := w.done
	w.done += 2 // they are FRR's turn
	for i := 1; i <= 2; i++ {
		if i == 1 {
			w.typed(router, i, "ip route del 10.244.1.0/24")
			w.eventually(func() error { return w.has(router, "ip route show 10.244.1.0/24", "via 192.0.2.11", "!static") })
			w.typed(router, i, "ip route show 10.244.1.0/24")
		} else {
			w.again(router, i, "ip route del 10.244.1.0/24")
		}
	}
	time.Sleep(time.Second)
	w.end(l, "from kube-proxy to fairway with BIRD", 0)

	// The same gateway with FRR.
	w.stop(bird)
	w.startFRR()
	for i := range agents {
		w.sessions(i, 1)
	}
	w.eventually(func() error { return w.has(router, "ip route", "10.244.1.0/24", "10.244.2.0/24", "10.96.0.0/16") })
	end := w.done
	w.done = vtysh
	w.typed(router, 1, "vtysh -c 'show bgp summary'")
	if out := w.typed(router, 1, "vtysh -c 'show bgp ipv4"); !strings.Contains(out, "10.244.1.0/24") || !strings.Contains(out, "10.96.0.0/16") {
		t.Errorf("FRR has\n%s", out)
	}
	w.done = end
	w.reaches()

	l = w.traffic(true)
	w.typed(router, 1, "ip route add")
	w.typed(control, 1, "kubectl label node")
	kubeProxies[1] = w.startKubeProxy(1)
	w.eventually(func() error { return w.has(w.node(1).Namespace, "iptables-save -t mangle", "KUBE-PROXY-CANARY") })
	ok(t, agents[1].Stop(patience))
	w.typed(w.node(1).Namespace, 1, "fairway takeover --back")
	time.Sleep(time.Second)
	w.end(l, "back to kube-proxy", 0)
	w.finished()
}
