package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/controlplane"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

const (
	// readyBound is how long an agent may take to program a cluster, and a change.
	readyBound = 2 * time.Minute
	// changeGap is longer than an agent gathers changes, so that each of those that are timed is written at once.
	changeGap = 1100 * time.Millisecond
	// churnGap is the time between two changes of the churn: 20 a second.
	churnGap = 50 * time.Millisecond
)

// agents is what a running agent costs, by backend.
type agents struct {
	services int
	by       map[lab.Backend]*agentRun
}

// agentRun is one agent from its start on.
type agentRun struct {
	ready  time.Duration // from the start of the process until everything is programmed
	start  usage         // then
	change sample        // from the API's answer to a changed EndpointSlice until that is programmed
	churn  usage         // after many changes
	rest   usage         // after a time without changes
}

// measureAgents lets agents of both backends read the same clusters from one API server, one after the other.
func measureAgents(ctx context.Context, o options) (list []agents, err error) {
	names := []string{synth.Node(0).Name, synth.Node(1).Name} // one for each backend
	l, err := lab.New(machines(names...), lab.Options{})
	if err != nil {
		return nil, err
	}
	defer func() {
		if closing := l.Close(); err == nil {
			err = closing
		}
	}()
	cp, err := startControlPlane(l)
	if err != nil {
		return nil, err
	}
	m := measurement{ctx: ctx, cp: objects{cp}}
	for _, n := range o.sizes {
		if err := m.grow(n, o.endpoints); err != nil {
			return nil, err
		}
		a := agents{services: n, by: map[lab.Backend]*agentRun{}}
		for i, b := range lab.Backends {
			progress("an agent with %d Services and iptables-%s", n, b)
			m.node, m.backend = l.Node(names[i]), b
			if a.by[b], err = m.run(o); err != nil {
				return nil, fmt.Errorf("agent with %d services, iptables-%s: %w", n, b, err)
			}
		}
		list = append(list, a)
	}
	return list, nil
}

// startControlPlane builds and starts a control plane on the machine "control" of a lab.
func startControlPlane(l *lab.Lab) (*controlplane.ControlPlane, error) {
	progress("building etcd and kube-apiserver; the first time it takes minutes")
	binaries, err := controlplane.Build()
	if err != nil {
		return nil, err
	}
	return controlplane.Start(binaries, l.Client("control"), controlplane.Options{Dir: l.Dir, ServiceCIDRs: l.Topology.ServiceCIDRs})
}

// A measurement runs agents, one after the other, on one cluster.
type measurement struct {
	ctx      context.Context
	cp       objects
	snapshot *cluster.Snapshot // what the API has, after so many changes; nil before there is anything
	changes  int

	node    *lab.Node // of the present run
	backend lab.Backend
}

// grow creates what a larger cluster has more. Of the made-up clusters, each contains the smaller ones.
func (m *measurement) grow(services, endpoints int) error {
	progress("creating objects through the API until there are %d Services", services)
	s := madeUp(services, endpoints)
	if m.snapshot == nil {
		m.snapshot = s
		return m.cp.create(m.ctx, s)
	}
	there := map[cluster.Ref]*cluster.Service{}
	for _, svc := range m.snapshot.Services {
		there[svc.Ref()] = svc
	}
	more := &cluster.Snapshot{}
	for i, svc := range s.Services {
		if old := there[svc.Ref()]; old != nil {
			s.Services[i] = old // with the changes made so far
		} else {
			more.Services = append(more.Services, svc)
		}
	}
	m.snapshot = s
	return m.cp.create(m.ctx, more)
}

func (m *measurement) run(o options) (*agentRun, error) {
	r := &agentRun{}
	start := time.Now()
	agent, err := m.node.StartAgent(lab.AgentOptions{Backend: m.backend, Flags: []string{"--kubeconfig=" + m.cp.Kubeconfig}})
	if err != nil {
		return nil, err
	}
	defer agent.Stop(10 * time.Second)
	watch := watchProcess(agent.PID())
	defer watch.stop()
	if err := agent.WaitReady(readyBound); err != nil {
		return nil, err
	}
	r.ready = time.Since(start)
	if r.start, err = watch.usage(); err != nil {
		return nil, err
	}
	if err := m.serves(len(m.snapshot.Services) + 1); err != nil { // and the service "kubernetes"
		return nil, err
	}
	for range o.changes {
		if err := m.timeChange(&r.change); err != nil {
			return nil, err
		}
	}
	if r.churn, err = m.churn(o.churn, watch); err != nil {
		return nil, err
	}
	if !wait(m.ctx, o.rest) {
		return nil, errInterrupted
	}
	if r.rest, err = watch.usage(); err != nil {
		return nil, err
	}
	agent.Stop(10 * time.Second)
	bin, err := lab.AgentBinary()
	if err != nil {
		return nil, err
	}
	_, err = m.node.Run(bin, "cleanup")
	return r, err
}

// serves looks whether the agent has the whole cluster.
func (m *measurement) serves(ports int) error {
	_, text, err := m.node.Get("http://127.0.0.1:10249/metrics", 10*time.Second)
	if want := fmt.Sprintf("fairway_service_ports{ip_family=\"IPv4\"} %d\n", ports); err == nil && !strings.Contains(text, want) {
		err = fmt.Errorf("the agent is ready, but its metrics do not have %s", strings.TrimSpace(want))
	}
	return err
}

// change changes one endpoint of one Service in the API.
func (m *measurement) change() error {
	i := (m.changes * 997) % len(m.snapshot.Services)
	next := synth.Changed(m.snapshot, i, 200)
	if next.Services[i].Slices[0].Endpoints[0].Addr == m.snapshot.Services[i].Slices[0].Endpoints[0].Addr { // changed before
		next = synth.Changed(m.snapshot, i, 201)
	}
	m.snapshot = next
	m.changes++
	return m.cp.updateSlice(m.ctx, next.Services[i])
}

// readiness is the agent's /readyz.
type readiness struct {
	Ready    bool
	Revision uint64
}

func (m *measurement) readiness() (r readiness, err error) {
	status, body, err := m.node.Get("http://127.0.0.1:10256/readyz", 10*time.Second)
	if err == nil {
		err = json.Unmarshal([]byte(body), &r)
	}
	if err == nil && (status == http.StatusOK) != r.Ready {
		err = fmt.Errorf("/readyz has status %d and says ready=%v", status, r.Ready)
	}
	return r, err
}

// programmed waits until the agent has programmed something later than a revision.
func (m *measurement) programmed(after uint64) error {
	return lab.Eventually(readyBound, func() error {
		r, err := m.readiness()
		if err == nil && (!r.Ready || r.Revision <= after) {
			err = fmt.Errorf("revision %d is not programmed", after+1)
		}
		return err
	})
}

func (m *measurement) timeChange(s *sample) error {
	if !wait(m.ctx, changeGap) {
		return errInterrupted
	}
	before, err := m.readiness()
	if err != nil {
		return err
	}
	if err := m.change(); err != nil {
		return err
	}
	s.time(func() { err = m.programmed(before.Revision) })
	return err
}

// churn makes changes at a constant rate and returns the usage when the last one is programmed.
func (m *measurement) churn(n int, w *watch) (usage, error) {
	tick := time.NewTicker(churnGap)
	defer tick.Stop()
	before, err := m.readiness()
	if err != nil {
		return usage{}, err
	}
	for range n {
		if err := m.change(); err != nil {
			return usage{}, err
		}
		<-tick.C
	}
	if err := m.programmed(before.Revision); err != nil {
		return usage{}, err
	}
	return w.usage()
}

// wait sleeps; it returns false when the run should end.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
