package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// probe does what a kubelet does for a probe of the agent's container.
func (w *world) probe(node string, p *corev1.Probe) error {
	if p == nil || p.HTTPGet == nil {
		return fmt.Errorf("%+v is no HTTP probe", p)
	}
	port := p.HTTPGet.Port.IntValue()
	for _, named := range w.daemonSet.Spec.Template.Spec.Containers[0].Ports {
		if named.Name == p.HTTPGet.Port.StrVal {
			port = int(named.ContainerPort)
		}
	}
	url := "http://" + net.JoinHostPort(p.HTTPGet.Host, strconv.Itoa(port)) + p.HTTPGet.Path
	code, body, err := w.lab.Node(node).Get(url, 0)
	if err != nil {
		return err
	}
	if code != 200 {
		return fmt.Errorf("%s on %s: status %d: %s", url, node, code, body)
	}
	return nil
}

// running is an error when a node's agent has ended.
func (w *world) running(node string) error {
	select {
	case <-w.agents[node].Exited():
		return fmt.Errorf("agent of %s: %s:\n%s", node, w.agents[node].State(), w.agents[node].Output())
	default:
		return nil
	}
}

// holdLock takes a node's xtables lock, as another program would, and returns how to let go of it.
func (w *world) holdLock(t *testing.T, node string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(w.lab.Node(node).LockFile(), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "lock of "+node, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	return func() { f.Close() }
}

// A monitor is a command that prints what changes in a node's kernel.
type monitor struct {
	name    string
	process *lab.Process
	// reported tells whether the removal of a marker has been printed in full.
	reported func(output, marker string) bool
	seen     int // length of the output that is known
}

// monitor watches a node's routes and, with nftables, its rules. It returns when the monitors report changes made for
// that purpose, and have reported all until then.
func (w *world) monitor(t *testing.T, node string) []*monitor {
	t.Helper()
	start := func(name string, reported func(string, string) bool, argv ...string) *monitor {
		name += " of " + node
		return &monitor{name: name, reported: reported, process: w.logs.mustStart(t, "monitor of "+name, w.lab.Node(node).Namespace, nil, argv[0], argv[1:]...)}
	}
	monitors := []*monitor{start("routes", func(output, marker string) bool {
		return strings.HasSuffix(strings.TrimSpace(output), "Deleted blackhole "+marker+" table 77")
	}, "ip", "monitor", "route")}
	if backends[node] == lab.NFT {
		monitors = append(monitors, start("rules", func(output, marker string) bool {
			_, after, ok := strings.Cut(output, "-D PREROUTING -s "+marker+"/32\n")
			return ok && strings.Contains(after, "NEWGEN")
		}, "stdbuf", "-oL", "xtables-monitor", "--event"))
	}
	marker := netip.MustParseAddr("192.0.2.0")
	eventually(t, "monitors of "+node, func() error {
		// A new marker each time: what was changed before the monitors listened is never reported.
		marker = marker.Next()
		if err := w.leaveMarker(node, marker.String()); err != nil {
			return err
		}
		return lab.Eventually(time.Second, func() error {
			for _, m := range monitors {
				out := m.process.Output()
				if !m.reported(out, marker.String()) {
					return fmt.Errorf("%s: no report of %s: %s", m.name, marker, out)
				}
				m.seen = len(out)
			}
			return nil
		})
	})
	return monitors
}

// leaveMarker adds and removes a route and a rule that have an address in them, where the agent has none.
func (w *world) leaveMarker(node, marker string) error {
	iptables := lab.Tool(backends[node], cluster.IPv4, "")
	var errs []error
	for _, argv := range [][]string{
		{"ip", "route", "add", "blackhole", marker, "table", "77"},
		{"ip", "route", "del", "blackhole", marker, "table", "77"},
		{iptables, "-t", "raw", "-A", "PREROUTING", "-s", marker},
		{iptables, "-t", "raw", "-D", "PREROUTING", "-s", marker},
	} {
		if argv[0] == lab.Tool(lab.Legacy, cluster.IPv4, "") {
			continue // nobody reports these, and the lock is held
		}
		_, err := w.lab.Node(node).Run(argv[0], argv[1:]...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// expectSilence ends the monitor; it must not have reported anything since.
func (m *monitor) expectSilence(t *testing.T) {
	t.Helper()
	m.process.Kill()
	for line := range strings.Lines(m.process.Output()[m.seen:]) {
		if strings.HasPrefix(line, "Error: ") {
			continue // a complaint of ip about links whose other end has just gone elsewhere
		}
		t.Errorf("a change of %s: %s", m.name, line)
	}
}

// kubeadmConfiguration is what kubeadm writes into the ConfigMap kube-proxy, for this cluster's pods.
const kubeadmConfiguration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.200.0.0/16,fd00:200::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
`

// kubeadmKubeconfig is what kubeadm writes into the ConfigMap kube-proxy.
func (w *world) kubeadmKubeconfig() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: %[2]s/ca.crt
    server: https://%[1]s
  name: default
contexts:
- context: {cluster: default, namespace: default, user: default}
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: %[2]s/token
`, w.cp.Endpoint(), tokenPath)
}
