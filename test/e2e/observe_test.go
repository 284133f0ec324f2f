package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

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
		return errors.Join(err, w.running(node))
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
	seen    int // length of the output that is known
}

// monitor watches a node's routes and, with nftables, its rules, and makes sure that it sees: it waits until both report
// a change made for that purpose.
func (w *world) monitor(t *testing.T, node string) []*monitor {
	t.Helper()
	n := w.lab.Node(node)
	start := func(name string, argv ...string) *monitor {
		return &monitor{name: name + " of " + node, process: w.logs.start(t, name+" monitor of "+node, n.Namespace, nil, argv[0], argv[1:]...)}
	}
	const marker = "192.0.2.77"
	monitors := []*monitor{start("routes", "ip", "monitor", "route")}
	if backends[node] == lab.NFT {
		monitors = append(monitors, start("rules", "xtables-monitor", "--event"))
	}
	eventually(t, "monitors of "+node, func() error {
		if err := w.leaveMarker(node, marker); err != nil {
			return err
		}
		i := slices.IndexFunc(monitors, func(m *monitor) bool { return !strings.Contains(m.process.Output(), marker) })
		if i >= 0 {
			return fmt.Errorf("%s reports nothing: %s", monitors[i].name, monitors[i].process.Output())
		}
		return nil
	})
	for _, m := range monitors {
		m.settle(t)
	}
	return monitors
}

// leaveMarker adds a route and a rule with a marker for an address, in a table that the agent does not use, and
// removes them.
func (w *world) leaveMarker(node, marker string) error {
	n := w.lab.Node(node)
	iptables := lab.Binary(backends[node], 4, "")
	var errs []error
	for _, argv := range [][]string{
		{"ip", "route", "add", "blackhole", marker, "table", "77"},
		{"ip", "route", "del", "blackhole", marker, "table", "77"},
		{iptables, "-t", "raw", "-A", "PREROUTING", "-s", marker},
		{iptables, "-t", "raw", "-D", "PREROUTING", "-s", marker},
	} {
		if backends[node] == lab.Legacy && argv[0] == iptables {
			continue // nobody watches these
		}
		_, err := n.Run(argv[0], argv[1:]...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settle waits until the monitor has reported everything up to now, and forgets it: the last marker's removal is the last.
func (m *monitor) settle(t *testing.T) {
	t.Helper()
	last := -1
	eventually(t, m.name+" settled", func() error {
		n := len(m.process.Output())
		if n != last {
			last = n
			return fmt.Errorf("still reporting")
		}
		return nil
	})
	m.seen = last
}

// expectSilence ends the monitor; it must not have reported anything since.
func (m *monitor) expectSilence(t *testing.T) {
	t.Helper()
	m.process.Kill()
	if out := m.process.Output()[m.seen:]; out != "" {
		t.Errorf("changes of %s:\n%s", m.name, out)
	}
}

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
`, w.cp.endpoint(), tokenPath)
}
