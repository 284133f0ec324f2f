package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func (d *demo) endpointGone() error {
	pod1b := d.lab.Pod("pod1b").Namespace
	prober, err := d.probe(pod1b, vip)
	if err != nil {
		return err
	}
	defer prober.Stop()
	start := time.Now()
	d.endpoints("pod1a", "pod2a")
	if err := d.cluster.Write(); err != nil {
		return err
	}
	d.out.text("pod3a's endpoint is taken out of %s", filepath.Base(d.cluster.Dir)+"/cluster.yaml, while pod1b connects 500 times a second")
	took, err := d.untilRules("10.200.3.2:8080", false)
	if err != nil {
		return err
	}
	known := time.Now()
	if err := d.more(prober); err != nil {
		return err
	}
	report := prober.Stop()
	for i, t := range took {
		if t > promise {
			return fmt.Errorf("node%d had the change after %v, expected %v at most", i+1, t, promise)
		}
	}
	if last := report.Last["pod3a"]; last.After(known) {
		return fmt.Errorf("pod3a still got a connection %v after the rules had changed", last.Sub(known))
	}
	if report.Failed() > 0 {
		return fmt.Errorf("connections failed: %s", report)
	}
	d.out.fact("in the kernel of node1 after %s, node2 %s, node3 %s", ms(took[0]), ms(took[1]), ms(took[2]))
	d.out.fact("pod1b: %s; the last one to pod3a %s after the change", report, ms(report.Last["pod3a"].Sub(start)))
	names, err := d.spread(pod1b, 100)
	if err != nil {
		return err
	}
	if names["pod3a"] > 0 || names["pod1a"] == 0 || names["pod2a"] == 0 {
		return fmt.Errorf("connections went to %v, expected pod1a and pod2a", names)
	}
	d.endpoints("pod1a", "pod2a", "pod3a")
	if err := d.cluster.Write(); err != nil {
		return err
	}
	if _, err := d.untilRules("10.200.3.2:8080", true); err != nil {
		return err
	}
	d.out.fact("and put back")
	return nil
}

// untilRules waits until every node's nat table contains a text, or does not, and returns how long each took.
func (d *demo) untilRules(text string, there bool) ([]time.Duration, error) {
	start := time.Now()
	nodes := d.lab.Topology.Nodes
	took, errs := make([]time.Duration, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			errs[i] = d.await(func() error {
				rules, err := d.lab.Node(n.Name).Save(d.backend, cluster.IPv4, "nat")
				if err == nil && strings.Contains(rules, text) != there {
					err = fmt.Errorf("%s: waiting for the rules about %s to change", n.Name, text)
				}
				return err
			})
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

func (d *demo) routeDeleted() error {
	node1 := d.lab.Node("node1").Namespace
	prober, err := d.probe(d.lab.Pod("pod1a").Namespace, netip.AddrPortFrom(d.lab.Pod("pod2a").Addr(cluster.IPv4), target))
	if err != nil {
		return err
	}
	defer prober.Stop()
	const watch = "ip -ts monitor route"
	monitor, err := node1.Start(lab.Command{Path: "ip", Args: strings.Fields(watch)[1:]})
	if err != nil {
		return err
	}
	defer monitor.Stop(time.Second)
	if err := d.await(func() error { return d.listening(node1, monitor) }); err != nil {
		return err
	}
	d.out.command("node1#", watch+" &", "")
	if _, err := d.shell(node1, "ip route del 10.200.2.0/24"); err != nil {
		return err
	}
	var events []event
	err = d.await(func() (err error) {
		events, err = parseEvents(monitor.Output())
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range events {
		d.out.text("  %s", e.text)
	}
	took := events[1].at.Sub(events[0].at)
	if took > promise {
		return fmt.Errorf("the route was back after %v, expected %v at most", took, promise)
	}
	if err := d.more(prober); err != nil {
		return err
	}
	report := prober.Stop()
	if report.LongestOutage > promise {
		return fmt.Errorf("pod1a to pod2a: %s", report)
	}
	d.out.fact("ip saw it back %s later; pod1a to pod2a meanwhile: %s", ms(took), report)
	return nil
}

// marker is a route that nobody wants. Once its coming is told, so is all that comes after: before, ip monitor asks for
// the links, and what is told while it waits for the answer is lost.
const marker = "198.18.255.255"

func (d *demo) listening(on *lab.Namespace, monitor *lab.Process) error {
	for _, verb := range []string{"add", "del"} {
		if out, err := on.Run("ip", "route", verb, "blackhole", marker, "proto", "77"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if !strings.Contains(monitor.Output(), marker) {
		return fmt.Errorf("ip monitor tells nothing yet: %q", monitor.Output())
	}
	return nil
}

// An event is a line of ip monitor.
type event struct {
	at   time.Time
	text string
}

// parseEvents finds the deletion of a route and its return in the output of ip -ts monitor.
func parseEvents(out string) ([]event, error) {
	var events []event
	for _, line := range lines(out) {
		stamp, text, ok := strings.Cut(strings.TrimPrefix(line, "["), "] ")
		at, err := time.Parse("2006-01-02T15:04:05.999999", stamp)
		if !ok || err != nil {
			continue // a complaint of ip about links whose other end has just gone elsewhere
		}
		wanted := "Deleted 10.200.2.0/24 "
		if len(events) == 1 {
			wanted = "10.200.2.0/24 "
		}
		if strings.HasPrefix(text, wanted) {
			events = append(events, event{at, line})
		}
		if len(events) == 2 {
			return events, nil
		}
	}
	return nil, fmt.Errorf("ip monitor has shown %d of 2 events: %q", len(events), out)
}

func (d *demo) agentKilled() error {
	node1 := d.lab.Node("node1").Namespace
	before, err := node1.Save(d.backend, cluster.IPv4, "")
	if err != nil {
		return err
	}
	prober, err := d.probe(d.lab.Pod("pod1b").Namespace, vip)
	if err != nil {
		return err
	}
	defer prober.Stop()
	outside, err := d.probe(d.outside(), d.pod("pod1a"))
	if err != nil {
		return err
	}
	defer outside.Stop()
	old := d.agents["node1"]
	if _, err := d.shell(node1, fmt.Sprintf("kill -KILL %d", old.PID())); err != nil {
		return err
	}
	if err := d.await(func() error { return exited(old) }); err != nil {
		return err
	}
	d.out.fact("the agent of node1 is gone (%s)", old.State())
	if err := d.more(prober); err != nil {
		return err
	}
	start := time.Now()
	if err := d.startAgent("node1"); err != nil {
		return err
	}
	if err := d.agents["node1"].WaitReady(bound); err != nil {
		return err
	}
	d.out.fact("a new one, process %d, found everything in order %s after its start", d.agents["node1"].PID(), ms(time.Since(start)))
	if err := d.await(func() error { return sessionUp(node1) }); err != nil {
		return err
	}
	if err := errors.Join(d.more(prober), d.more(outside)); err != nil {
		return err
	}
	for _, p := range []struct {
		who string
		*lab.Prober
	}{{"pod1b to the service", prober}, {"outside to pod1a, through the gateway,", outside}} {
		report := p.Stop()
		if report.Failed() > 0 {
			return fmt.Errorf("%s: %s", p.who, report)
		}
		d.out.fact("%s meanwhile: %s", p.who, report)
	}
	return d.nothingWritten(node1, before)
}

// sessionUp is nil when a node's agent has its session with the router.
func sessionUp(node *lab.Namespace) error {
	_, body, err := node.Get("http://127.0.0.1:10249/metrics", 0)
	if err == nil && !strings.Contains(body, `fairway_bgp_session_up{peer="10.240.0.1"} 1`) {
		err = errors.New("the agent has no session with the router")
	}
	return err
}

func exited(a *lab.Agent) error {
	select {
	case <-a.Exited():
		return nil
	default:
		return fmt.Errorf("process %d still runs", a.PID())
	}
}

// nothingWritten shows that an agent has synced everything and written nothing.
func (d *demo) nothingWritten(node *lab.Namespace, before string) error {
	after, err := node.Save(d.backend, cluster.IPv4, "")
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("the rules have changed from\n%s\nto\n%s", before, after)
	}
	_, body, err := node.Get("http://127.0.0.1:10249/metrics", 0)
	if err != nil {
		return err
	}
	syncs := 0
	for _, line := range lines(body) {
		if strings.HasPrefix(line, "fairway_sync_duration_seconds_count{") {
			syncs++
		}
		if strings.HasPrefix(line, "fairway_sync_writes_total{") && !strings.HasSuffix(line, " 0") {
			return fmt.Errorf("it has written: %s", line)
		}
	}
	if syncs == 0 {
		return errors.New("the metrics count no sync")
	}
	d.out.fact("its metrics count syncs of %d parts, and no write: the rules are the same, the routes as well", syncs)
	return nil
}

func (d *demo) refusal() error {
	greedy := lab.NodeObject(lab.NodeSpec{
		Name:     "greedy",
		Addrs:    []netip.Addr{netip.MustParseAddr("10.240.0.66")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
	})
	d.cluster.SetNode(greedy)
	if err := d.cluster.Write(); err != nil {
		return err
	}
	d.out.text("A Node greedy, with the podCIDR 0.0.0.0/0 and the address 10.240.0.66, is added to cluster/cluster.yaml")
	err := d.await(func() error {
		if !strings.Contains(d.agents["node1"].Output(), cluster.ReasonPodCIDRRefused) {
			return errors.New("the agent of node1 has not refused the node's podCIDR")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.render(); err != nil {
		return err
	}
	if _, err := d.shell(d.lab.Node("node1").Namespace, "ip route show proto 102"); err != nil {
		return err
	}
	pairs, err := d.allPairs()
	if err != nil {
		return err
	}
	d.out.fact("no route of its was made; all %d pairs of pods are still connected", pairs)
	d.cluster.RemoveNode(greedy.Name)
	return d.cluster.Write()
}

// render asks the agent's binary for the plan of node1, offline.
func (d *demo) render() error {
	bin, err := lab.AgentBinary()
	if err != nil {
		return err
	}
	const command = "fairway render -f cluster --node-name node1 --cluster-cidrs 10.200.0.0/16 | sed -n '/^NOTES/,$p'"
	c := exec.Command("bash", "-o", "pipefail", "-c", command)
	c.Dir = d.lab.Dir
	c.Env = append(os.Environ(), "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"))
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	d.out.command("anywhere$", command, string(out))
	if !strings.Contains(string(out), "Node greedy: "+cluster.ReasonPodCIDRRefused) {
		return fmt.Errorf("the plan has no Note about the node: %s", out)
	}
	return nil
}
