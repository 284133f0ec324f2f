package migrate

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/docs"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const (
	// patience bounds what a busy machine may take.
	patience           = 90 * time.Second
	webPort, webTarget = 80, 8080
)

var web = netip.MustParseAddr("10.96.0.10")

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// topology is that of the guides: two nodes with a pod each, their gateway, and whoever is outside.
func topology() lab.Topology {
	pre, ip := netip.MustParsePrefix, netip.MustParseAddr
	t := lab.Topology{
		Networks: []lab.NetworkSpec{
			{Name: "infra", Prefixes: []netip.Prefix{pre("192.0.2.0/24")}, Gateways: []netip.Addr{ip("192.0.2.1")}},
			{Name: "internet", Prefixes: []netip.Prefix{pre("198.51.100.0/24")}, Gateways: []netip.Addr{ip("198.51.100.1")}},
		},
		Router: "router",
		Clients: []lab.ClientSpec{
			{Name: "outside", Network: "internet", Addrs: []netip.Addr{ip("198.51.100.10")}},
			{Name: "control", Addrs: []netip.Addr{ip("192.0.2.5")}},
		},
		ClusterCIDRs: []netip.Prefix{pre("10.244.0.0/16")},
		ServiceCIDRs: []netip.Prefix{pre("10.96.0.0/16")},
	}
	for i := 1; i <= 2; i++ {
		t.Nodes = append(t.Nodes, lab.NodeSpec{Name: fmt.Sprintf("n%d", i), Addrs: []netip.Addr{ip(fmt.Sprintf("192.0.2.1%d", i))}, PodCIDRs: []netip.Prefix{pre(fmt.Sprintf("10.244.%d.0/24", i))},
			Pods: []lab.PodSpec{{Name: fmt.Sprintf("p%d", i), Addrs: []netip.Addr{ip(fmt.Sprintf("10.244.%d.2", i))}}}})
	}
	return t
}

// A world is a cluster with an API server, and a guide that is being followed.
type world struct {
	*testing.T
	lab *lab.Lab
	cp  *controlplane.ControlPlane
	// folder is where the reader of the guide is: with fairway, kubectl and the like in the PATH, and the manifests.
	folder string
	// commands are those of the guide, done how many of them were typed.
	commands []string
	done     int
	birdc    string
}

func newWorld(t *testing.T, guide string, daemonSet string, commands ...controlplane.Command) *world {
	t.Helper()
	lab.Require(t)
	for program, pkg := range map[string]string{"bird": "bird2", "/usr/lib/frr/bgpd": "frr", "ipset": "ipset", "curl": "curl"} {
		if _, err := exec.LookPath(program); err != nil && os.Getenv(lab.RequireEnv) == "require" {
			t.Fatalf("%s, of Debian's package %s, is not here", program, pkg)
		} else if err != nil {
			t.Skipf("it needs %s, of Debian's package %s", program, pkg)
		}
	}
	binaries, err := controlplane.Build(append(commands, controlplane.Kubectl)...)
	ok(t, err)
	w := &world{T: t, lab: lab.ForTest(t, topology())}
	w.cp, err = controlplane.Start(binaries, w.lab.Client("control"), controlplane.Options{Dir: w.lab.Dir, ServiceCIDRs: w.lab.Topology.ServiceCIDRs, APIServerFlags: []string{"--allow-privileged=true"}})
	ok(t, err)
	w.prepareFolder(binaries)
	all, err := docs.Commands("../..")
	ok(t, err)
	for _, c := range all {
		if c.File == guide {
			w.commands = append(w.commands, c.Text)
		}
	}
	for i := 1; i <= 2; i++ {
		_, err := w.pod(i).Serve(lab.Server{Name: w.pod(i).Name, Proto: lab.TCP, Port: webTarget})
		ok(t, err)
	}
	w.createObjects(daemonSet)
	return w
}

func (w *world) node(i int) *lab.Node { return w.lab.Node(fmt.Sprintf("n%d", i)) }
func (w *world) pod(i int) *lab.Pod   { return w.lab.Pod(fmt.Sprintf("p%d", i)) }

// prepareFolder makes the reader's folder.
func (w *world) prepareFolder(binaries controlplane.Binaries) {
	w.Helper()
	w.folder = w.TempDir()
	fairway, err := lab.AgentBinary()
	ok(w.T, err)
	script := func(name, line string) {
		ok(w.T, os.WriteFile(filepath.Join(w.folder, name), []byte("#!/bin/sh\nexec "+line+" \"$@\"\n"), 0o755))
	}
	script("fairway", fairway)
	script("kubectl", binaries.Path(controlplane.Kubectl)+" --kubeconfig="+w.cp.Kubeconfig+" --cache-dir="+w.cp.Path("kubectl"))
	script("kube-router", w.isolated(binaries.Path(controlplane.KubeRouter)))
	w.birdc = filepath.Join(w.lab.Dir, "bird.ctl")
	script("birdc", "/usr/sbin/birdc -s "+w.birdc)
	script("vtysh", "/usr/bin/vtysh --vty_socket "+w.frrDir())
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			target, err := exec.LookPath(tool + "-nft" + suffix)
			ok(w.T, err)
			ok(w.T, os.Symlink(target, filepath.Join(w.folder, tool+suffix)))
		}
	}
	ok(w.T, os.CopyFS(filepath.Join(w.folder, "manifests"), os.DirFS("../../manifests")))
}

// isolated is how a command is run that writes below /etc/iproute2: on a copy.
func (w *world) isolated(command string) string {
	dir := filepath.Join(w.lab.Dir, "iproute2")
	ok(w.T, os.MkdirAll(dir, 0o755))
	ok(w.T, os.WriteFile(filepath.Join(dir, "rt_tables"), []byte("255 local\n254 main\n"), 0o644))
	return fmt.Sprintf(`unshare -m sh -c 'mount --bind %s /etc/iproute2 && exec "$0" "$@"' %s`, dir, command)
}

// createObjects brings the cluster to the API: the Nodes, a Service, and the DaemonSet of what was there before.
func (w *world) createObjects(daemonSet string) {
	w.Helper()
	ctx := context.Background()
	api := w.cp.Client
	for _, n := range w.lab.Topology.Nodes {
		_, err := api.CoreV1().Nodes().Create(ctx, lab.NodeObject(n), metav1.CreateOptions{})
		ok(w.T, err)
	}
	s := lab.Service("web", []netip.Addr{web}, lab.TCPPort("", webPort, webTarget))
	_, err := api.CoreV1().Services(s.Namespace).Create(ctx, s, metav1.CreateOptions{})
	ok(w.T, err)
	_, err = api.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, lab.Slice(s, "1", cluster.IPv4, lab.Ready(w.pod(1)), lab.Ready(w.pod(2))), metav1.CreateOptions{})
	ok(w.T, err)
	_, err = w.lab.Client("control").RunInput(daemonSet, filepath.Join(w.folder, "kubectl"), "apply", "-f", "-")
	ok(w.T, err)
}

// environment has the reader's tools first.
func (w *world) environment() []string {
	return []string{"PATH=" + w.folder + ":" + os.Getenv("PATH")}
}

// typed types the next command of the guide, which has to begin so, on a machine, as for the node of the given number. It returns
// the command and what it printed.
func (w *world) typed(on *lab.Namespace, node int, begins string) string {
	w.Helper()
	if w.done == len(w.commands) {
		w.Fatalf("the guide is at its end, expected %q", begins)
	}
	command := w.commands[w.done]
	w.done++
	if !strings.HasPrefix(command, begins) {
		w.Fatalf("the guide has %q, expected %q", command, begins)
	}
	return w.run(on, node, command)
}

// again types a command that was typed before, for another node.
func (w *world) again(on *lab.Namespace, node int, begins string) string {
	w.Helper()
	for i := w.done - 1; i >= 0; i-- {
		if strings.HasPrefix(w.commands[i], begins) {
			return w.run(on, node, w.commands[i])
		}
	}
	w.Fatalf("the guide had no %q", begins)
	return ""
}

func (w *world) run(on *lab.Namespace, node int, command string) string {
	w.Helper()
	out, err := w.try(on, node, command)
	if err != nil {
		w.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

func (w *world) try(on *lab.Namespace, node int, command string) (string, error) {
	other := 3 - node
	text := strings.NewReplacer("worker-1", fmt.Sprintf("n%d", node), "10.244.2.0/24", fmt.Sprintf("10.244.%d.0/24", other), "10.244.1.0/24", fmt.Sprintf("10.244.%d.0/24", node),
		"192.0.2.11", fmt.Sprintf("192.0.2.1%d", node), "192.0.2.12", fmt.Sprintf("192.0.2.1%d", other)).Replace(command)
	return on.Run("bash", "-c", "set -o pipefail; cd "+w.folder+"; export "+w.environment()[0]+"; "+text)
}

// finished fails the test unless all commands of the guide were typed.
func (w *world) finished() {
	w.Helper()
	if w.done < len(w.commands) {
		w.Errorf("of the guide's commands these were not typed: %q", w.commands[w.done:])
	}
}

// start starts the agent on a node, as the DaemonSet would, with the configuration that was applied.
func (w *world) start(node int) *lab.Agent {
	w.Helper()
	a, err := w.node(node).StartAgent(lab.AgentOptions{Backend: lab.NFT, Without: []string{"--cluster-cidrs", "--service-cidrs"},
		Flags: []string{"--kubeconfig=" + w.cp.Kubeconfig, "--config=" + filepath.Join(w.folder, "manifests/base/agent-configuration.yaml")}})
	ok(w.T, err)
	return a
}

// stop ends a program as the kubelet does; some say that it was a signal.
func (w *world) stop(p *lab.Process) {
	w.Helper()
	if err := p.Stop(patience); err != nil && p.State() != "signal: terminated" {
		w.Fatalf("%v (%s)", err, p.State())
	}
}

// noted waits for a Note of an agent.
func (w *world) noted(a *lab.Agent, reason, detail string) {
	w.Helper()
	w.eventually(func() error {
		for line := range strings.Lines(a.Output()) {
			if strings.Contains(line, reason) && strings.Contains(line, detail) {
				return nil
			}
		}
		return fmt.Errorf("%s has not noted %s: %s", a.Node.Name, reason, detail)
	})
}

func (w *world) eventually(condition func() error) {
	w.Helper()
	ok(w.T, lab.Eventually(patience, condition))
}

// has is nil when a command prints all of these texts, and none of those that begin with an exclamation mark.
func (w *world) has(on *lab.Namespace, command string, texts ...string) error {
	out, err := w.try(on, 1, command)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, out)
	}
	for _, text := range texts {
		not := strings.HasPrefix(text, "!")
		if text = strings.TrimPrefix(text, "!"); strings.Contains(out, text) == not {
			return fmt.Errorf("%s: %q is there: %v\n%s", command, text, not, out)
		}
	}
	return nil
}

// sessions waits until a node's session is up, or there is none.
func (w *world) sessions(node, want int) {
	w.Helper()
	w.eventually(func() error {
		_, body, err := w.node(node).Get("http://127.0.0.1:10249/metrics", 5*time.Second)
		if err != nil {
			return err
		}
		if up := strings.Count(body, "\nfairway_bgp_session_up{peer=\"192.0.2.1\"} 1"); up != want {
			return fmt.Errorf("n%d has %d sessions, expected %d", node, up, want)
		}
		return nil
	})
}

// A load is connections that go on: between pods, and from outside to a pod.
type load map[string]*lab.Prober

// traffic starts a load, from outside also to the Service where it is served.
func (w *world) traffic(service bool) load {
	w.Helper()
	l := load{}
	probe := func(name string, from *lab.Namespace, to netip.Addr, port uint16) {
		p, err := from.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(to, port), Timeout: 10 * time.Second}})
		ok(w.T, err)
		l[name] = p
	}
	probe("p1 to p2", w.pod(1).Namespace, w.pod(2).Addrs[0], webTarget)
	probe("p2 to p1", w.pod(2).Namespace, w.pod(1).Addrs[0], webTarget)
	probe("outside to p1", w.lab.Client("outside").Namespace, w.pod(1).Addrs[0], webTarget)
	probe("outside to p2", w.lab.Client("outside").Namespace, w.pod(2).Addrs[0], webTarget)
	if service {
		probe("p1 to the Service", w.pod(1).Namespace, web, webPort)
	}
	return l
}

// few is how many connections between pods may fail while a route is missing, from when kube-router removes it until fairway has
// written its own. It is milliseconds; hundreds fail in a second.
const few = 25

// end stops the load, and fails the test unless every connection came through, but for so many between pods.
func (w *world) end(l load, what string, few int) {
	w.Helper()
	for name, p := range l {
		r := p.Stop()
		w.Logf("%s, %s: %v", what, name, r)
		if allowed := map[string]int{"p1 to p2": few, "p2 to p1": few, "p1 to the Service": few}[name]; r.Failed() > allowed {
			w.Errorf("%s, %s: %v", what, name, r)
		}
	}
}

// reaches waits until the Service answers outside, through the gateway.
func (w *world) reaches() {
	w.Helper()
	w.eventually(func() error {
		if r := w.lab.Client("outside").Ask(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(web, webPort), Timeout: 5 * time.Second}); r.Outcome != lab.OK {
			return fmt.Errorf("the Service from outside: %s", r)
		}
		return nil
	})
}

// example returns the code block of a language in a document.
func example(t *testing.T, file, language string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", file))
	ok(t, err)
	_, after, found := strings.Cut(string(text), "```"+language+"\n")
	block, _, ended := strings.Cut(after, "```")
	if !found || !ended {
		t.Fatalf("%s has no block of %s", file, language)
	}
	return block
}

// startBIRD starts BIRD as the gateway, with the configuration of docs/bgp.md but for its ASN.
func (w *world) startBIRD(asn string) *lab.Process {
	w.Helper()
	file := filepath.Join(w.lab.Dir, "bird.conf")
	config := strings.NewReplacer("log syslog all;", "log stderr all;", "local as 64500;", "local as "+asn+";").Replace(example(w.T, "bgp.md", "bird"))
	ok(w.T, os.WriteFile(file, []byte(config), 0o644))
	return w.daemon("bird", "-f", "-c", file, "-s", w.birdc, "-P", filepath.Join(w.lab.Dir, "bird.pid"))
}

func (w *world) daemon(path string, args ...string) *lab.Process {
	w.Helper()
	p, err := w.lab.Router().Start(lab.Command{Path: path, Args: args})
	ok(w.T, err)
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("%s (%s):\n%s", path, p.State(), p.Output())
		}
	})
	return p
}

// frrDir is where FRR's daemons, which run as a user of their own, have their files.
func (w *world) frrDir() string { return filepath.Join(os.TempDir(), filepath.Base(w.lab.Dir)+"-frr") }

// startFRR starts FRR as the gateway, with the configuration of docs/bgp.md.
func (w *world) startFRR() {
	w.Helper()
	dir := w.frrDir()
	ok(w.T, os.Mkdir(dir, 0o755))
	w.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			w.Error(err)
		}
	})
	for name, text := range map[string]string{"zebra.conf": "\n", "bgpd.conf": example(w.T, "bgp.md", "frr")} {
		ok(w.T, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	out, err := exec.Command("chown", "-R", "frr:frr", dir).CombinedOutput()
	if err != nil {
		w.Fatalf("%v: %s", err, out)
	}
	for _, d := range []string{"zebra", "bgpd"} {
		w.daemon("/usr/lib/frr/"+d, "-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "--log", "stdout", "-f", filepath.Join(dir, d+".conf"), "-i", filepath.Join(dir, d+".pid"), "-P", "0")
	}
}
