package agent

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/report"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// An eventLog keeps the Events that are created.
type eventLog struct {
	mu     sync.Mutex
	events []*eventsv1.Event
}

func (l *eventLog) CreateEvent(_ context.Context, e *eventsv1.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return nil
}

func (l *eventLog) about(name string) (reasons []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Regarding.Name == name {
			reasons = append(reasons, e.Reason)
		}
	}
	return reasons
}

// TestConflictEvents: the Service that does not get a contested address has one Event that says so, however often either of the
// two changes afterwards.
func TestConflictEvents(t *testing.T) {
	l, _ := startLoop(t, &fakePart{name: rulesPrefix + "IPv4"})
	log := &eventLog{}
	reporter := report.New(log, "a")
	l.reporting.Lock()
	l.reporter = newLogReporter(reporter)
	l.reporting.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- reporter.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })

	contested := netip.MustParseAddr("203.0.113.1")
	service := func(name, clusterIP string, created time.Time, slices ...*cluster.EndpointSlice) *cluster.Service {
		return &cluster.Service{Namespace: "default", Name: name, UID: "uid-" + name, Created: created, ClusterIPs: []netip.Addr{netip.MustParseAddr(clusterIP)},
			Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}, LoadBalancerIPs: []netip.Addr{contested}, Slices: slices}
	}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	older, younger := service("older", "10.0.0.1", noon), service("younger", "10.0.0.2", noon.Add(time.Hour))
	publish := func(services ...*cluster.Service) {
		t.Helper()
		before := l.status.view().revision
		l.publish(&cluster.Snapshot{Nodes: aSnapshot("10.0.0.1").Nodes, Services: services})
		eventually(t, "it is planned and programmed", func() bool { v := l.status.view(); return v.ready() && v.revision > before })
		l.reporting.Lock() // what is programmed is about to be reported
		defer l.reporting.Unlock()
	}
	l.setHost(&cluster.Host{})
	publish(older, younger)
	eventually(t, "the younger Service has an Event", func() bool { return len(log.about("younger")) > 0 })
	endpoints := &cluster.EndpointSlice{Name: "x", Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}},
		Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("10.1.0.1"), Ready: true, Serving: true}}}
	publish(older, service("younger", "10.0.0.2", noon.Add(time.Hour), endpoints))
	publish(service("older", "10.0.0.1", noon, endpoints), younger)
	// What is reported last is written last.
	reporter.Event(cluster.Ref{Kind: "Node", Name: "last"}, "Normal", "Starting", "")
	eventually(t, "all Events are written", func() bool { return len(log.about("last")) == 1 })
	if got := log.about("younger"); len(got) != 1 || got[0] != cluster.ReasonAddressConflict {
		t.Errorf("Events about the younger Service: %v", got)
	}
	if got := log.about("older"); len(got) > 0 {
		t.Errorf("Events about the older Service: %v", got)
	}
}

// TestRepairEvents: a repair is one Event on the Node that says what was done, by whom, and how long it took; what is left as it is
// is none, and neither is more than ten in a row.
func TestRepairEvents(t *testing.T) {
	part := rulesPrefix + "IPv4"
	l, _ := startLoop(t, &fakePart{name: part})
	log := &eventLog{}
	reporter := report.New(log, "a")
	self := cluster.Ref{Kind: "Node", Name: "a"}
	l.event = func(reason, message string) { reporter.Event(self, "Warning", reason, message) }
	start := time.Now()
	found := finding{}
	found.add(nil, start)
	found.add([]netfilter.Change{{By: "pid 7 (nft)"}, {By: "pid 7 (nft)"}}, start.Add(time.Hour))
	done := func(d iptables.Drift) {
		found.Drifts = []iptables.Drift{d}
		l.done(outcome{part: part, end: start.Add(40 * time.Millisecond), report: Report{Found: found}})
	}
	done(iptables.Drift{Table: "filter", Kind: iptables.JumpDisplaced, Chain: "INPUT", Left: true})
	for range 12 {
		done(iptables.Drift{Table: "nat", Kind: iptables.JumpMissing, Chain: "OUTPUT", Rule: "-A OUTPUT -j KUBE-SERVICES"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- reporter.Run(ctx) }()
	eventually(t, "ten Events", func() bool { return len(log.about("a")) == 10 })
	cancel()
	<-ended
	if got := reporter.Dropped(); got != 2 {
		t.Errorf("%d were dropped, expected 2", got)
	}
	const want = "IPv4 rules that somebody else had changed were repaired within 40ms, changed by pid 7 (nft): nat OUTPUT jump-missing: -A OUTPUT -j KUBE-SERVICES"
	if e := log.events[0]; e.Reason != eventRepaired || e.Note != want {
		t.Errorf("the Event says %s %q\nexpected %q", e.Reason, e.Note, want)
	}
}
