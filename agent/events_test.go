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
