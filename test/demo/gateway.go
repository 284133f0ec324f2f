package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

const (
	// agentConfig is the agents' configuration. Its times are short, so that a demo can wait for them.
	agentConfig = `apiVersion: fairway.dev/v1alpha1
kind: AgentConfiguration
bgp:
  asn: 64512
  peers:
  - {address: 10.240.0.1, asn: 64500, holdTime: 3s, connectRetryTime: 1s}
  announce:
  - addresses: [PodCIDRs, ClusterIPs]
  leave: {noticeTime: 1s}
`
	holdTime = 3 * time.Second
	// routerConfig is BIRD's on the router, that of docs/bgp.md with less to wait.
	routerConfig = `log "%s" all;
router id 10.240.0.1;
protocol device { }
protocol kernel { ipv4 { export all; }; merge paths on; }
filter from_nodes {
  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
  if net ~ [ 10.200.0.0/16{24,24}, 10.32.0.0/24+ ] then accept;
  reject;
}
template bgp nodes { local as 64500; error wait time 1, 5; ipv4 { import filter from_nodes; export none; }; }
protocol bgp node1 from nodes { neighbor 10.240.0.11 as 64512; }
protocol bgp node2 from nodes { neighbor 10.240.0.12 as 64512; }
protocol bgp node3 from nodes { neighbor 10.240.0.13 as 64512; }
`
)

// writeConfigs writes the agents' configuration and the router's.
func (d *demo) writeConfigs() error {
	router := fmt.Sprintf(routerConfig, d.file("bird.log"))
	return errors.Join(os.WriteFile(d.file("agent.yaml"), []byte(agentConfig), 0o644), os.WriteFile(d.file("bird.conf"), []byte(router), 0o644))
}

// file is the path of a file of the demo's.
func (d *demo) file(name string) string { return filepath.Join(d.lab.Dir, name) }

// outside is the client behind the router.
func (d *demo) outside() *lab.Namespace { return d.lab.Client("outside").Namespace }

// pod is where a pod serves.
func (d *demo) pod(name string) netip.AddrPort {
	return netip.AddrPortFrom(d.lab.Pod(name).Addr(cluster.IPv4), target)
}

// nextHop finds the next hops that ip route prints.
var nextHop = regexp.MustCompile(`via (\S+)`)

// nextHops are those that the router's kernel has for a destination.
func (d *demo) nextHops(dst string) ([]string, error) {
	out, err := d.lab.Router().Run("ip", "route", "show", "proto", "bird", dst)
	var hops []string
	for _, found := range nextHop.FindAllStringSubmatch(out, -1) {
		hops = append(hops, found[1])
	}
	return hops, err
}

// untilRouted waits until the router's next hops for the ClusterIP, and for the podCIDRs of the nodes there, are these nodes. It
// returns how long that took.
func (d *demo) untilRouted(service, pods []string) (time.Duration, error) {
	start := time.Now()
	want := map[string][]string{vip.Addr().String(): d.addresses(service)}
	for _, n := range d.lab.Topology.Nodes {
		want[n.PodCIDRs[0].String()] = nil
		if slices.Contains(pods, n.Name) {
			want[n.PodCIDRs[0].String()] = d.addresses([]string{n.Name})
		}
	}
	err := d.await(func() error {
		for dst, expected := range want {
			if got, err := d.nextHops(dst); err != nil || !slices.Equal(got, expected) {
				return errors.Join(err, fmt.Errorf("the router has the next hops %q for %s, expected %q", got, dst, expected))
			}
		}
		return nil
	})
	return time.Since(start), err
}

// addresses are those of nodes.
func (d *demo) addresses(nodes []string) (list []string) {
	for _, n := range nodes {
		list = append(list, d.lab.Node(n).Addr(cluster.IPv4).String())
	}
	return list
}

// everyNode are the names of the nodes.
var everyNode = []string{"node1", "node2", "node3"}

func (d *demo) gateway() error {
	for _, to := range []netip.AddrPort{d.pod("pod2a"), vip} {
		if r := d.outside().Ask(lab.Dial{Proto: lab.TCP, To: to, Timeout: patience}); r.Outcome == lab.OK {
			return fmt.Errorf("%s answers the client outside, and the router knows no way there yet", to)
		}
	}
	d.out.text("So far the router knows no way to pods and services. Now BIRD runs on it, AS 64500; the nodes are AS 64512.")
	router := d.lab.Router()
	// With the kernel's default, all connections of one client to one address take the same way.
	if _, err := d.shell(router, "sysctl -w net.ipv4.fib_multipath_hash_policy=1"); err != nil {
		return err
	}
	args := []string{"-f", "-c", d.file("bird.conf"), "-s", d.file("bird.ctl"), "-P", d.file("bird.pid")}
	if _, err := router.Start(lab.Command{Path: "bird", Args: args}); err != nil {
		return err
	}
	d.out.command("router#", "bird "+strings.Join(args, " ")+" &", "")
	took, err := d.untilRouted(everyNode, everyNode)
	if err != nil {
		return err
	}
	if _, err := d.shell(router, "ip route show proto bird"); err != nil {
		return err
	}
	d.out.fact("3 pod networks and the service, by every node, learned %s after the router's start", ms(took))
	return nil
}

func (d *demo) fromOutside() error {
	out, err := d.shell(d.outside(), fmt.Sprintf("head -1 </dev/tcp/10.200.2.2/%d", target))
	if err != nil {
		return err
	}
	if err := answered(out, "pod2a", d.lab.Client("outside").Addr(cluster.IPv4)); err != nil {
		return err
	}
	names, err := d.spread(d.outside(), 60)
	if err != nil {
		return err
	}
	if len(names) != 3 {
		return fmt.Errorf("connections went to %v, expected pod1a, pod2a and pod3a", names)
	}
	d.out.fact("the pod sees the client's own address; the router spreads the ClusterIP's connections over the nodes, and these over the endpoints")
	return nil
}

// drain asks a node to draw no traffic to Services, or to do so again.
func (d *demo) drain(node string, on bool) error {
	n := lab.NodeObject(d.lab.Node(node).NodeSpec)
	if on {
		n.Annotations = map[string]string{"fairway.dev/drain": "true"}
	}
	d.cluster.SetNode(n)
	return d.cluster.Write()
}

func (d *demo) nodeDrains() error {
	service, err := d.probe(d.outside(), vip)
	if err != nil {
		return err
	}
	defer service.Stop()
	pod, err := d.probe(d.outside(), d.pod("pod2a"))
	if err != nil {
		return err
	}
	defer pod.Stop()
	if err := d.drain("node2", true); err != nil {
		return err
	}
	d.out.text("node2 gets the annotation fairway.dev/drain: \"true\", while the client outside connects 500 times a second")
	took, err := d.untilRouted([]string{"node1", "node3"}, everyNode)
	if err != nil {
		return err
	}
	if _, err := d.shell(d.lab.Router(), "ip route show proto bird"); err != nil {
		return err
	}
	if err := errors.Join(d.more(service), d.more(pod)); err != nil {
		return err
	}
	if err := d.tell("the ClusterIP", service.Stop()); err != nil {
		return err
	}
	if err := d.tell("pod2a, on node2", pod.Stop()); err != nil {
		return err
	}
	if err := d.drain("node2", false); err != nil {
		return err
	}
	back, err := d.untilRouted(everyNode, everyNode)
	d.out.fact("node2 drew no more connections to the service after %s, and again %s after that was taken back", ms(took), ms(back))
	return err
}

// tell shows what a prober outside saw. A longer outage than is promised is an error.
func (d *demo) tell(what string, r lab.Report) error {
	d.out.fact("outside to %s: %s", what, r)
	if r.LongestOutage > promise {
		return fmt.Errorf("outside to %s: %s", what, r)
	}
	return nil
}

func (d *demo) nodeDies() error {
	// node3 has no endpoint, so that what is lost is lost on the way to it.
	d.endpoints("pod1a", "pod2a")
	if err := d.cluster.Write(); err != nil {
		return err
	}
	if _, err := d.untilRules("10.200.3.2:8080", false); err != nil {
		return err
	}
	prober, err := d.probe(d.outside(), vip)
	if err != nil {
		return err
	}
	defer prober.Stop()
	if _, err := d.shell(d.lab.Switch(), "ip link set node3 down"); err != nil {
		return err
	}
	dead := d.agents["node3"]
	if _, err := d.shell(d.lab.Node("node3").Namespace, fmt.Sprintf("kill -KILL %d", dead.PID())); err != nil {
		return err
	}
	took, err := d.untilRouted([]string{"node1", "node2"}, []string{"node1", "node2"})
	if err != nil {
		return err
	}
	if err := d.more(prober); err != nil {
		return err
	}
	d.out.fact("the router has given node3 up after %s, when it had heard nothing for the hold time, %s", ms(took), holdTime)
	if err := d.tell("the ClusterIP, of which node3 had a third", prober.Stop()); err != nil {
		return err
	}
	if _, err := d.shell(d.lab.Switch(), "ip link set node3 up"); err != nil {
		return err
	}
	d.endpoints("pod1a", "pod2a", "pod3a")
	if err := errors.Join(d.cluster.Write(), d.startAgent("node3")); err != nil {
		return err
	}
	back, err := d.untilRouted(everyNode, everyNode)
	if err != nil {
		return err
	}
	d.out.fact("with its link and a new agent, the router had learned everything of node3 %s later", ms(back))
	return d.agents["node3"].WaitReady(bound)
}
