package differential

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
)

// A configuration is one way to run both sides.
type configuration struct {
	name    string
	backend lab.Backend
	// flags are those of both sides that differ between configurations; they have the same names.
	flags []string
	// clusterCIDR tells both what the pods' networks are.
	clusterCIDR bool
	// forward makes the agent let packets to no Service of the service range pass, as kube-proxy does.
	forward bool
	// podIn is the interface that pods' packets come in from.
	podIn string
}

const podCIDRs = "10.244.0.0/16,fd00:10:244::/48"

var configurations = []configuration{
	{name: "cidr", backend: lab.Legacy, podIn: podBridge, clusterCIDR: true},
	{name: "nodecidr", backend: lab.NFT, podIn: podBridge, flags: []string{
		"--detect-local-mode=NodeCIDR", "--iptables-localhost-nodeports=false", "--nodeport-addresses=192.168.0.0/24,198.51.100.0/24,fd00:192:168::3/128"}},
	{name: "nodetect", backend: lab.Legacy, podIn: podBridge, flags: []string{"--nodeport-addresses=primary"}},
	{name: "masqall", backend: lab.NFT, podIn: podBridge, clusterCIDR: true, flags: []string{
		"--masquerade-all", "--nodeport-addresses=127.0.0.0/8,192.168.0.3/32"}},
	{name: "prefix", backend: lab.Legacy, podIn: "veth7", forward: true, flags: []string{
		"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth", "--iptables-localhost-nodeports=false"}},
	{name: "bridge", backend: lab.NFT, podIn: podBridge, flags: []string{
		"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=" + podBridge, "--nodeport-addresses=::/0,10.244.1.1/32"}},
}

// proxyFlags and agentFlags return what each side is started with.
func (c *configuration) proxyFlags() []string {
	if c.clusterCIDR {
		return append([]string{"--cluster-cidr=" + podCIDRs}, c.flags...)
	}
	return c.flags
}

func (c *configuration) agentFlags() (flags []string) {
	if c.clusterCIDR {
		flags = append(flags, "--cluster-cidrs="+podCIDRs)
	}
	if c.forward {
		flags = append(flags, "--unknown-services=Forward")
	}
	return append(flags, c.flags...)
}

// The names of a configuration's two nodes in the lab.
func (c *configuration) proxyNode() string { return c.name + "-p" }
func (c *configuration) agentNode() string { return c.name + "-a" }

// serviceRanges are the networks of ClusterIPs.
var serviceRanges = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/108")}

// topology has two nodes for each configuration. Both are the Node n1, with the same pods' network; only by the
// address under which they reach the API do they differ.
func topology() lab.Topology {
	t := lab.Topology{
		Networks:     []lab.NetworkSpec{{Name: "infra", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.240.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.240.0.1")}}},
		Router:       "router",
		Clients:      []lab.ClientSpec{{Name: "control", Addrs: []netip.Addr{netip.MustParseAddr("10.240.0.5")}}},
		ServiceCIDRs: serviceRanges,
		PodBridge:    podBridge,
	}
	for i, c := range configurations {
		for j, name := range []string{c.proxyNode(), c.agentNode()} {
			t.Nodes = append(t.Nodes, lab.NodeSpec{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 240, 0, byte(10 + 2*i + j)})}, PodCIDRs: podNetworks})
		}
	}
	return t
}

// A world is what all scenes of a run share.
type world struct {
	lab    *lab.Lab
	cp     *controlplane.ControlPlane
	writer *writer
	pairs  []*pair
	marks  int32 // how often the marker was moved
	// How many rules were removed from what had been read, to see whether that is noticed, and how often it was.
	spoiled, noticed int
}

// A pair is a running kube-proxy and a running agent of one configuration.
type pair struct {
	*configuration
	proxy, agent *lab.Node
	kubeProxy    *lab.Process
	fairway      *lab.Agent
	tally        *tally
	// How long was waited for kube-proxy, then for the agent, and then compared.
	proxyTime, agentTime, compareTime time.Duration
}

func newWorld(t *testing.T) *world {
	lab.Require(t)
	binaries, err := controlplane.Build(controlplane.KubeProxy)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{lab: lab.ForTest(t, topology())}
	if w.cp, err = controlplane.Start(binaries, w.lab.Client("control"), controlplane.Options{Dir: w.lab.Dir, ServiceCIDRs: w.lab.Topology.ServiceCIDRs}); err != nil {
		t.Fatal(err)
	}
	w.writer = &writer{client: w.cp.Client, refusals: map[string]int{}}
	if err := w.createCluster(); err != nil {
		t.Fatal(err)
	}
	for i := range configurations {
		c := &configurations[i]
		p, err := w.start(c)
		if err != nil {
			t.Fatalf("configuration %s: %v", c.name, err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("kube-proxy of %s (%s):\n%s", p.name, p.kubeProxy.State(), lastLines(p.kubeProxy.Output()))
			}
		})
		w.pairs = append(w.pairs, p)
	}
	return w
}

// createCluster writes what all scenes have: Namespaces, Nodes and the marker.
func (w *world) createCluster() error {
	ctx := context.Background()
	for _, name := range namespaces {
		if _, err := w.cp.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create Namespace: %w", err)
		}
	}
	for i, name := range []string{ownNode, otherNode, thirdNode} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{
			PodCIDR: fmt.Sprintf("10.244.%d.0/24", 1+i), PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", 1+i), fmt.Sprintf("fd00:10:244:%d::/64", 1+i)}}}
		for _, a := range []string{"192.168.0.%d", "fd00:192:168::%d"} {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf(a, 2+2*i)})
		}
		if _, err := w.cp.Client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create Node: %w", err)
		}
	}
	return w.mark(ctx)
}

// commonFlags are what both sides get in all configurations.
var commonFlags = []string{
	"--iptables-min-sync-period=0", // write what changed at once; for kube-proxy only the flag can say so
	// The conntrack table belongs to the whole machine.
	"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
}

// start starts both sides of a configuration.
func (w *world) start(c *configuration) (*pair, error) {
	p := &pair{configuration: c, proxy: w.lab.Node(c.proxyNode()), agent: w.lab.Node(c.agentNode()), tally: newTally()}
	for _, n := range []*lab.Node{p.proxy, p.agent} {
		if err := addTestAddrs(n); err != nil {
			return nil, err
		}
	}
	tools, err := lab.ToolFolder(w.lab.Dir, c.backend)
	if err != nil {
		return nil, err
	}
	p.kubeProxy, err = p.proxy.Start(lab.Command{Path: w.cp.Binaries.Path(controlplane.KubeProxy), Env: []string{"PATH=" + tools + ":" + os.Getenv("PATH")},
		Args: append([]string{
			"--kubeconfig=" + w.cp.Kubeconfig, "--hostname-override=" + ownNode, "--proxy-mode=iptables",
		}, append(commonFlags, c.proxyFlags()...)...)})
	if err != nil {
		return nil, err
	}
	p.fairway, err = p.agent.StartAgent(lab.AgentOptions{Backend: c.backend, Without: []string{"--cluster-cidrs"}, Flags: append([]string{
		"--kubeconfig=" + w.cp.Kubeconfig, "--node-name=" + ownNode, "--allow-all-external-ips", "--allow-all-load-balancer-ips",
	}, append(commonFlags, c.agentFlags()...)...)})
	return p, err
}

// addTestAddrs gives a node the addresses of n1, on an interface that leads nowhere.
func addTestAddrs(n *lab.Node) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = "test0", net.FlagUp
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := n.Handle().LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, text := range testAddrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.Handle().AddrAdd(bridge, a); err != nil {
			return fmt.Errorf("add %s: %w", text, err)
		}
	}
	return nil
}

// The marker is a Service whose port, and EndpointSlices whose port, move with each step. When both are in the rules,
// everything that was written before is there as well: each kind of object comes in its order.
const marker = "marker"

var (
	markerVIPs      = [2]string{"10.96.255.254", "fd00:10:96::fffe"}
	markerEndpoints = [2]string{"10.244.9.9", "fd00:10:244:9::9"}
)

// markPort is the marker's present port.
func (w *world) markPort() int32 { return 20000 + w.marks%40000 }

// mark moves the marker.
func (w *world) mark(ctx context.Context) error {
	w.marks++
	port, name := w.markPort(), ""
	var actions []action
	verb := "update"
	if w.marks == 1 {
		verb = "create"
	}
	for i, f := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		s := &discoveryv1.EndpointSlice{
			AddressType: f, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{markerEndpoints[i]}}},
		}
		s.Namespace, s.Name, s.Labels = metav1.NamespaceDefault, fmt.Sprint(marker, i), map[string]string{discoveryv1.LabelServiceName: marker}
		actions = append(actions, action{verb: verb, slice: s})
	}
	svc := &corev1.Service{Spec: corev1.ServiceSpec{
		ClusterIP: markerVIPs[0], ClusterIPs: markerVIPs[:], IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
		IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack), Ports: []corev1.ServicePort{{Port: port}},
	}}
	svc.Namespace, svc.Name = metav1.NamespaceDefault, marker
	for _, a := range append(actions, action{verb: verb, service: svc}) {
		if err := w.writer.do(ctx, a); err != nil {
			return fmt.Errorf("move the marker: %s: %w", a, err)
		}
	}
	return nil
}

// marked tells whether rules have the marker where it is.
func (w *world) marked(text string, f cluster.Family) bool {
	i := 0
	if f == cluster.IPv6 {
		i = 1
	}
	vip, port := netip.MustParseAddr(markerVIPs[i]), w.markPort()
	to := netip.AddrPortFrom(netip.MustParseAddr(markerEndpoints[i]), uint16(port))
	return strings.Contains(text, fmt.Sprintf("-d %s/%d -p tcp -m comment --comment \"default/marker cluster IP\" -m tcp --dport %d ", vip, vip.BitLen(), port)) &&
		strings.Contains(text, fmt.Sprintf("--to-destination %s\n", to))
}

// rules reads a pair's rules of a family.
func (p *pair) rules(f cluster.Family) (proxy, agent string, err error) {
	if proxy, err = p.proxy.Save(p.backend, f, ""); err != nil {
		return "", "", err
	}
	agent, err = p.agent.Save(p.backend, f, "")
	return proxy, agent, err
}

// await waits until both sides of a pair have programmed what was written.
func (w *world) await(p *pair) error {
	for _, side := range []struct {
		name string
		node *lab.Node
		proc *lab.Process
		time *time.Duration
	}{{"kube-proxy", p.proxy, p.kubeProxy, &p.proxyTime}, {"fairway", p.agent, p.fairway.Process, &p.agentTime}} {
		start := time.Now()
		for _, f := range cluster.Families {
			err := eventually(time.Minute, func() error {
				select {
				case <-side.proc.Exited():
					return fmt.Errorf("it has ended (%s): %s", side.proc.State(), lastLines(side.proc.Output()))
				default:
				}
				text, err := side.node.Save(p.backend, f, "nat")
				if err == nil && !w.marked(text, f) {
					err = fmt.Errorf("the marker is not at port %d", w.markPort())
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("%s of configuration %s has not programmed %s: %w", side.name, p.name, f, err)
			}
		}
		*side.time += time.Since(start)
	}
	return nil
}

// eventually is lab.Eventually with longer pauses: each look takes a program.
func eventually(bound time.Duration, condition func() error) error {
	start := time.Now()
	for {
		err := condition()
		if err == nil || time.Since(start) > bound {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// lastLines is the end of a program's output.
func lastLines(s string) string { return s[max(0, len(s)-3000):] }
