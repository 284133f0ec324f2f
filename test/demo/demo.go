package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

const (
	// bound is how long anything may take that is not measured. It is generous: a step says how long it took.
	bound = time.Minute
	// promise is the time within which a route has to be back, and a change of the cluster in the kernel, on a machine
	// that has much else to do.
	promise = 5 * time.Second
	// target is the port that the pods serve on.
	target = 8080
	// nodePort is the node port of the service.
	nodePort = 30080
	// probeRate is the number of connections that a prober makes per second.
	probeRate = 500
	// patience is how long a prober waits for an answer: less than the second after which TCP sends a lost SYN again, so
	// that no lost packet goes unseen.
	patience = 900 * time.Millisecond
)

// vip is the service's address and port.
var vip = netip.MustParseAddrPort("10.32.0.10:80")

// A demo is the cluster and the text about it.
type demo struct {
	out     *printer
	lab     *lab.Lab
	cluster *lab.Cluster
	web     *corev1.Service
	agents  map[string]*lab.Agent // by node
	logs    []*os.File
	backend lab.Backend // what the agents chose
	started time.Time
	stop    chan struct{} // closed when play should give up
	ended   chan struct{} // closed when play has returned
}

// newDemo builds the machines and the folder of manifests. Nothing is left when it fails.
func newDemo(out *printer) (*demo, error) {
	d := &demo{
		out: out, agents: map[string]*lab.Agent{}, started: time.Now(),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	var err error
	if d.lab, err = lab.New(lab.Bare(), lab.Options{}); err != nil {
		return nil, err
	}
	d.web = lab.Service("web", []netip.Addr{vip.Addr()}, lab.TCPPort("http", vip.Port(), target))
	d.web.Spec.Type = corev1.ServiceTypeNodePort
	d.web.Spec.Ports[0].NodePort = nodePort
	if err := d.prepare(); err != nil {
		return nil, errors.Join(err, d.lab.Close())
	}
	return d, nil
}

// prepare writes the manifests and configurations and starts the pods' servers.
func (d *demo) prepare() (err error) {
	if d.cluster, err = lab.NewCluster(filepath.Join(d.lab.Dir, "cluster")); err != nil {
		return err
	}
	for _, n := range d.lab.Topology.Nodes {
		d.cluster.SetNode(lab.NodeObject(n))
		for _, p := range n.Pods {
			s := lab.Server{Name: p.Name, Proto: lab.TCP, Port: target}
			if _, err := d.lab.Pod(p.Name).Serve(s); err != nil {
				return err
			}
		}
	}
	d.cluster.SetService(d.web)
	d.endpoints("pod1a", "pod2a", "pod3a")
	return errors.Join(d.cluster.Write(), d.writeConfigs())
}

// endpoints makes pods the endpoints of the service, from the next Write on.
func (d *demo) endpoints(pods ...string) {
	var list []lab.Endpoint
	for _, name := range pods {
		list = append(list, lab.Ready(d.lab.Pod(name)))
	}
	d.cluster.SetEndpoints(d.web, list...)
}

// play shows everything. It returns the first error, also that of a text nobody could be shown.
func (d *demo) play() error {
	defer close(d.ended)
	if err := d.begin(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	for _, s := range steps {
		d.out.title(s.title)
		err := s.run(d)
		if err == nil {
			err = d.out.failed()
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", d.out.step, err)
		}
	}
	return nil
}

// begin introduces the cluster and starts its agents.
func (d *demo) begin() error {
	prefix := strings.TrimSuffix(d.lab.Node("node1").NetNS(), "node1")
	d.out.text(`A cluster of network namespaces: "node1# …" is run as: ip netns exec %snode1 …

outside 198.51.100.10 ── router ──┬─ node1 10.240.0.11   pod1a 10.200.1.2   pod1b 10.200.1.3
                                  ├─ node2 10.240.0.12   pod2a 10.200.2.2   pod2b 10.200.2.3
                                  └─ node3 10.240.0.13   pod3a 10.200.3.2   pod3b 10.200.3.3

Nodes are in 10.240.0.0/24, services in 10.32.0.0/24, pods in 10.200.0.0/16.
Service default/web, %s and node port %d, has the endpoints pod1a, pod2a and pod3a.
Every pod answers on port %d with its name and the address that it sees its client at.`, prefix, vip, nodePort, target)
	start := time.Now()
	for _, n := range d.lab.Topology.Nodes {
		if err := d.startAgent(n.Name); err != nil {
			return err
		}
	}
	for _, a := range d.agents {
		if err := a.WaitReady(bound); err != nil {
			return err
		}
	}
	d.out.line("")
	d.out.fact("3 agents, one per node, have programmed all of it %s after their start", ms(time.Since(start)))
	return d.chosenBackend()
}

// startAgent starts a node's agent, or starts it again. Its log goes to a file.
func (d *demo) startAgent(node string) error {
	path := filepath.Join(d.lab.Dir, node+".log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	d.logs = append(d.logs, f)
	d.agents[node], err = d.lab.Node(node).StartAgent(lab.AgentOptions{Cluster: d.cluster, Log: f, Flags: []string{"--config=" + d.file("agent.yaml")}})
	return err
}

var backendLine = regexp.MustCompile(`"Using iptables" backend="([a-z]+)" version="([^"]*)" why="([^"]*)"`)

// chosenBackend learns from an agent's log which iptables it uses, since the commands of the demo have to name it.
func (d *demo) chosenBackend() error {
	m := backendLine.FindStringSubmatch(d.agents["node1"].Output())
	if m == nil {
		return fmt.Errorf("the agent's log does not tell which iptables it uses:\n%s", d.agents["node1"].Output())
	}
	d.backend = lab.Backend(m[1])
	d.out.fact("they use iptables-%s %s: %s", m[1], m[2], m[3])
	return nil
}

// shell runs a command line in a namespace, as a person would in bash, and shows it with its output.
func (d *demo) shell(ns *lab.Namespace, command string) (string, error) {
	out, err := ns.Run("timeout", "20", "bash", "-c", command)
	if err != nil {
		return "", err
	}
	d.out.command(d.short(ns)+"#", command, out)
	return out, nil
}

// short is the namespace's name as the topology has it.
func (d *demo) short(ns *lab.Namespace) string {
	name := ns.NetNS()
	return name[strings.LastIndexByte(name, '-')+1:]
}

// await waits until a condition holds, or the demo is told to give up.
func (d *demo) await(condition func() error) error {
	var stopped error
	err := lab.Eventually(bound, func() error {
		select {
		case <-d.stop:
			stopped = lab.ErrClosed
			return nil
		default:
			return condition()
		}
	})
	return errors.Join(stopped, err)
}

// probe asks an address all the time.
func (d *demo) probe(ns *lab.Namespace, to netip.AddrPort) (*lab.Prober, error) {
	p, err := ns.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: to, Timeout: patience}, Rate: probeRate})
	if err != nil {
		return nil, err
	}
	return p, d.more(p)
}

// more waits until a prober has had a hundred more answers.
func (d *demo) more(p *lab.Prober) error {
	answers := func() int { r := p.Report(); return r.Attempts - r.Failed() }
	want := answers() + 100
	return d.await(func() error {
		if n := answers(); n < want {
			return fmt.Errorf("a prober had %d answers of %d", n, want)
		}
		return nil
	})
}

// inside says how to look at a demo that stays.
func (d *demo) inside() {
	ns := func(name string) string {
		return strings.TrimSuffix(d.lab.Node("node1").NetNS(), "node1") + name
	}
	d.out.line("")
	d.out.line(d.out.paint(bold, fmt.Sprintf("It stays up, held by process %d.", os.Getpid())))
	d.out.text(`look inside     ip netns exec %[1]s bash
                ip netns exec %[1]s ip route show proto 102
                ip netns exec %[1]s %[2]s -t nat
                ip netns exec %[3]s bash -c 'head -1 </dev/tcp/%[4]s/%[5]d'
                ip netns exec %[8]s birdc -s %[6]s/bird.ctl show route
agents' logs    tail -f %[6]s/node1.log
the cluster     %[7]s/cluster.yaml   (edit it; the agents follow)
take it down    make demo-down, or the same program with -down`,
		ns("node1"), lab.Tool(d.backend, cluster.IPv4, "-save"), ns("pod1b"), vip.Addr(), vip.Port(), d.lab.Dir, d.cluster.Dir, ns("router"))
}

// end takes everything down, says how it went, and returns the program's status. err is what play returned.
func (d *demo) end(err error, interrupted bool) int {
	spaces := 0
	if len(leftovers(os.Getpid())) > 0 {
		spaces = len(leftovers(os.Getpid())) - 1 // one of them is the folder of files
	}
	close(d.stop)
	closing := d.lab.Close()
	<-d.ended
	for _, f := range d.logs {
		f.Close()
	}
	d.out.unmute()
	d.out.line("")
	if err != nil && !interrupted {
		closing = errors.Join(err, closing)
	}
	if left := d.left(); len(left) > 0 {
		closing = errors.Join(closing, fmt.Errorf("still there: %s", strings.Join(left, ", ")))
	}
	gone := fmt.Sprintf("Taken down: %d namespaces, %d agents, all files. Nothing is left.", spaces, len(d.agents))
	switch {
	case closing != nil:
		if d.out.failed() == nil {
			d.showLogs(os.Stderr)
		}
		if len(d.left()) == 0 {
			d.out.line(gone)
		}
		return report(closing)
	case interrupted:
		d.out.line("Interrupted. " + gone)
		return statusInterrupted
	}
	d.out.line(fmt.Sprintf("All %d steps went as they should, in %.1f s. %s", len(steps), time.Since(d.started).Seconds(), gone))
	return 0
}

// showLogs writes the end of every agent's log, for whoever has to find out what went wrong.
func (d *demo) showLogs(w io.Writer) {
	const tail = 15
	for _, a := range d.lab.Agents() {
		log := strings.Split(strings.TrimSpace(a.Output()), "\n")
		fmt.Fprintf(w, "The agent of %s (%s) wrote last:\n", a.Node.Name, a.State())
		for _, line := range log[max(0, len(log)-tail):] {
			fmt.Fprintln(w, "  "+line)
		}
	}
}

// left lists what of the demo still exists.
func (d *demo) left() []string {
	out := leftovers(os.Getpid())
	for _, a := range d.lab.Agents() {
		select {
		case <-a.Exited():
		default:
			out = append(out, fmt.Sprintf("process %d", a.PID()))
		}
	}
	return out
}

// ms writes a time as people measure it.
func ms(t time.Duration) string {
	if t < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(t.Microseconds())/1000)
	}
	return fmt.Sprintf("%d ms", t.Milliseconds())
}
