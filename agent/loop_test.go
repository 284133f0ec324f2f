package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// bound is how long a test waits for what must come.
const bound = 20 * time.Second

// A fakePart records what it is asked for.
type fakePart struct {
	name           string
	mu             sync.Mutex
	fail           error
	syncs, rereads int
	plan           *Plan
	notes          []cluster.Note
	quarantined    []netfilter.Quarantine
}

func (p *fakePart) Name() string { return p.name }

func (p *fakePart) Sync(_ context.Context, plan *Plan, reread bool) (Report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.syncs++
	if reread {
		p.rereads++
	}
	if p.fail == nil {
		p.plan = plan
	}
	return Report{Wrote: true, Notes: p.notes, Quarantined: p.quarantined}, p.fail
}

func (p *fakePart) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func (p *fakePart) see() (syncs, rereads int, plan *Plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.syncs, p.rereads, p.plan
}

// A fakeReporter keeps the latest Notes.
type fakeReporter struct {
	mu    sync.Mutex
	notes []cluster.Note
}

func (r *fakeReporter) Report(n []cluster.Note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = n
}

func (r *fakeReporter) reasons() (reasons []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.notes {
		reasons = append(reasons, n.Reason)
	}
	return reasons
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("after %s still not: %s", bound, what)
}

func startLoop(t *testing.T, parts ...Part) (*loop, *fakeReporter) {
	t.Helper()
	s := newStatus(parts, time.Minute)
	r := &fakeReporter{}
	l := newLoop(Config{NodeName: "a", Detect: proxy.DetectClusterCIDR, SyncPeriod: time.Minute, MinSyncPeriod: rulesInterval}, Offline, parts, newMetrics(s, "test", nil), s, r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return l, r
}

func aSnapshot(clusterIP string) *cluster.Snapshot {
	return &cluster.Snapshot{
		Nodes: []*cluster.Node{{Name: "a", InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}}},
		Services: []*cluster.Service{{Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr(clusterIP)},
			Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}}}}
}

func clusterIP(p *Plan) string {
	if p == nil {
		return ""
	}
	return p.Services[0].Table.Ports[0].ClusterIP.String()
}

func TestLoop(t *testing.T) {
	good, bad := &fakePart{name: "good"}, &fakePart{name: rulesPrefix + "IPv4", fail: errors.New("the lock is held")}
	bad.notes = []cluster.Note{{Reason: cluster.ReasonQuarantined}}
	l, reporter := startLoop(t, good, bad)
	health := healthHandler(l.status, l.metrics, time.Now)
	get := func(path string) (int, map[string]any) {
		w := httptest.NewRecorder()
		health.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		body := map[string]any{}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Errorf("%s answers %q: %v", path, w.Body, err)
		}
		return w.Code, body
	}

	l.publish(aSnapshot("10.0.0.1"))
	if n, _, _ := good.see(); n != 0 {
		t.Error("a part ran before links and addresses were known")
	}
	if code, _ := get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz is %d before anything is programmed", code)
	}
	if code, _ := get("/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("/healthz is %d while the node is not known", code)
	}
	l.setHost(&cluster.Host{})
	eventually(t, "the good part has the plan", func() bool { _, _, p := good.see(); return clusterIP(p) == "10.0.0.1" })
	eventually(t, "the failing part is tried again", func() bool { n, _, _ := bad.see(); return n > 1 })
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body["ready"] != false {
		t.Errorf("/readyz is %d %v while a part fails", code, body)
	}
	if code, _ := get("/livez"); code != http.StatusOK {
		t.Errorf("/livez is %d while a part has failed for a moment", code)
	}

	bad.set(nil)
	eventually(t, "all is programmed", func() bool { code, _ := get("/readyz"); return code == http.StatusOK })
	code, body := get("/healthz")
	if family := body["status"].(map[string]any)["IPv4"]; code != http.StatusOK || body["nodeEligible"] != true || family == nil {
		t.Errorf("/healthz is %d %v", code, body)
	}
	if got := reporter.reasons(); !slices.Contains(got, cluster.ReasonQuarantined) {
		t.Errorf("the part's note is not reported: %v", got)
	}

	l.publish(aSnapshot("10.0.0.2"))
	eventually(t, "the change arrives", func() bool { _, _, p := bad.see(); return clusterIP(p) == "10.0.0.2" })
	before, _, _ := good.see()
	l.kick("good")
	eventually(t, "the kicked part looks again", func() bool { n, _, _ := good.see(); return n > before })

	leaving := aSnapshot("10.0.0.2")
	leaving.Nodes[0].ToBeDeleted = true
	l.publish(leaving)
	eventually(t, "the leaving node is not eligible", func() bool { code, _ := get("/healthz"); return code == http.StatusServiceUnavailable })
	if code, _ := get("/livez"); code != http.StatusOK {
		t.Errorf("/livez is %d on a leaving node", code)
	}
}

func TestStaleIsUnhealthy(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &fakePart{name: rulesPrefix + "IPv4"}
	s := newStatus([]Part{p}, 30*time.Second)
	node := &cluster.Node{Name: "a"}
	plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: "a"}, Offline, nil)
	code := func(at time.Duration) int {
		c, _ := healthBody(s.view(), start.Add(at), true)
		return c
	}
	s.queued(goal{1, plan}, node, start)
	if c := code(59 * time.Second); c != http.StatusOK {
		t.Errorf("after 59 s it is %d", c)
	}
	s.done(outcome{part: p.name, revision: 1, end: start.Add(59 * time.Second), err: errors.New("no")})
	if c := code(60 * time.Second); c != http.StatusServiceUnavailable {
		t.Errorf("after 60 s it is %d", c)
	}
	s.done(outcome{part: p.name, revision: 1, end: start.Add(61 * time.Second)})
	if c := code(3 * time.Hour); c != http.StatusOK {
		t.Errorf("with nothing to do it is %d", c)
	}
	s.queued(goal{2, plan}, nil, start.Add(4*time.Hour))
	if c := code(4*time.Hour + time.Second); c != http.StatusOK {
		t.Errorf("after the Node object is gone it is %d", c)
	}

	s = newStatus([]Part{p}, 10*time.Second)
	s.queued(goal{1, plan}, node, start)
	if before, after := code(19*time.Second), code(20*time.Second); before != http.StatusOK || after != http.StatusServiceUnavailable {
		t.Errorf("with a syncPeriod of 10 s it is %d after 19 s, and %d after 20", before, after)
	}
}

// A followingPart follows another Part.
type followingPart struct {
	fakePart
	leader string
}

func (p *followingPart) follows() string { return p.leader }

// TestFollower: a Part that follows another gets a Plan once the other has it in the kernel, and keeps its own until then. The
// agent is ready when both have it.
func TestFollower(t *testing.T) {
	rules := &fakePart{name: rulesPrefix + "IPv4", fail: errors.New("the lock is held")}
	checks := &followingPart{fakePart{name: healthChecksPrefix + "IPv4"}, rules.name}
	alone := &followingPart{fakePart{name: "alone"}, "no such part"}
	l, _ := startLoop(t, checks, rules, alone)
	l.setHost(&cluster.Host{})
	l.publish(aSnapshot("10.0.0.1"))
	eventually(t, "the rules failed twice", func() bool { n, _, _ := rules.see(); return n > 1 })
	eventually(t, "who follows nobody has the plan", func() bool { _, _, p := alone.see(); return clusterIP(p) == "10.0.0.1" })
	if n, _, _ := checks.see(); n > 0 {
		t.Errorf("the follower ran %d times while the rules failed", n)
	}
	rules.set(nil)
	eventually(t, "the follower has the plan", func() bool { _, _, p := checks.see(); return clusterIP(p) == "10.0.0.1" })
	eventually(t, "all is programmed", func() bool { return l.status.view().ready() })

	rules.set(errors.New("the lock is held"))
	before, _, _ := rules.see()
	l.publish(aSnapshot("10.0.0.2"))
	eventually(t, "the rules failed again", func() bool { n, _, _ := rules.see(); return n > before+1 })
	if _, _, p := checks.see(); clusterIP(p) != "10.0.0.1" || l.status.view().ready() {
		t.Errorf("the follower has the plan of %s; ready: %v", clusterIP(p), l.status.view().ready())
	}
	rules.set(nil)
	eventually(t, "the follower has the new plan", func() bool { _, _, p := checks.see(); return clusterIP(p) == "10.0.0.2" })
}

// TestNotesSurviveFailure: what a part said holds until it says something else.
func TestNotesSurviveFailure(t *testing.T) {
	p := &fakePart{name: "x"}
	s := newStatus([]Part{p}, 30*time.Second)
	notes := []cluster.Note{{Reason: cluster.ReasonRouteConflict}}
	for i, step := range []struct {
		notes []cluster.Note
		err   error
		want  int
	}{{notes, nil, 1}, {nil, errors.New("the kernel can't be read"), 1}, {nil, nil, 0}, {notes, errors.New("one is refused"), 1}} {
		if got := s.done(outcome{part: "x", report: Report{Notes: step.notes}, err: step.err}); len(got) != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

// TestCoalesce: of many snapshots that come while a part is busy, it gets the last.
func TestCoalesce(t *testing.T) {
	p := &slowPart{release: make(chan struct{})}
	l, _ := startLoop(t, p)
	l.setHost(&cluster.Host{})
	l.publish(aSnapshot("10.0.0.1"))
	eventually(t, "the part is busy", func() bool { return p.count() == 1 })
	for i := range 50 {
		l.publish(aSnapshot(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}).String()))
	}
	eventually(t, "the last one is planned", func() bool { return clusterIP(l.status.view().plan) == "10.0.1.49" })
	close(p.release)
	eventually(t, "the part has the last", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return clusterIP(p.plan) == "10.0.1.49" })
	if n := p.count(); n > 3 {
		t.Errorf("the part ran %d times for one and then fifty snapshots at once", n)
	}
}

type slowPart struct {
	fakePart
	release chan struct{}
}

func (p *slowPart) count() int { n, _, _ := p.see(); return n }

func (p *slowPart) Sync(ctx context.Context, plan *Plan, reread bool) (Report, error) {
	r, err := p.fakePart.Sync(ctx, plan, reread)
	<-p.release
	return r, err
}

// TestSyncPeriod: the kernel is read back after the syncPeriod though nothing happened, and the paces are the configuration's.
func TestSyncPeriod(t *testing.T) {
	p := &fakePart{name: "x"}
	s := newStatus([]Part{p}, time.Minute)
	c := Config{NodeName: "a", SyncPeriod: 10 * time.Millisecond}
	l := newLoop(c, Offline, []Part{p}, newMetrics(s, "test", nil), s, &fakeReporter{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	l.setHost(&cluster.Host{})
	l.publish(aSnapshot("10.0.0.1"))
	eventually(t, "it is read back three times", func() bool { _, n, _ := p.see(); return n >= 3 })

	rules := newLoop(Config{SyncPeriod: time.Second, MinSyncPeriod: 7 * time.Millisecond}, Offline, []Part{&rulesPart{}}, nil, nil, nil).runners[0]
	if rules.pace.interval != 7*time.Millisecond || rules.pace.retryMax != time.Second || rules.auditEvery != time.Second {
		t.Errorf("rules are paced %+v, and read back every %s", rules.pace, rules.auditEvery)
	}
}

// TestUnservedHealthCheck: of a Service in quarantine that has no rules, no load balancer is told that there are endpoints; that follows
// the quarantine also when the Plan stays the same.
func TestUnservedHealthCheck(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	web := s.Services[0]
	web.HealthCheckNodePort = 32000
	web.Slices = []*cluster.EndpointSlice{{Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}},
		Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("10.1.0.1"), NodeName: "a", Ready: true, Serving: true}}}}
	rules := &fakePart{name: rulesPrefix + "IPv4"}
	quarantine := func(list ...netfilter.Quarantine) {
		rules.mu.Lock()
		defer rules.mu.Unlock()
		rules.quarantined = list
	}
	note := cluster.Note{Object: web.Ref(), Reason: cluster.ReasonQuarantined}
	quarantine(netfilter.Quarantine{Note: note})
	checks := &followingPart{fakePart{name: healthChecksPrefix + "IPv4"}, rules.name}
	l, _ := startLoop(t, rules, checks)
	l.setHost(&cluster.Host{})
	l.publish(s)
	endpoints := func(want int) func() bool {
		return func() bool {
			_, _, p := checks.see()
			return p != nil && p.Services[0].Table.HealthChecks[0].LocalEndpoints == want
		}
	}
	eventually(t, "the check of the Service without rules has no endpoints", endpoints(0))
	quarantine(netfilter.Quarantine{Note: note, Served: true})
	l.kick(rules.name)
	eventually(t, "it has one when the older rules are there", endpoints(1))
	quarantine(netfilter.Quarantine{Note: note})
	l.kick(rules.name)
	eventually(t, "it has none again", endpoints(0))
	quarantine()
	l.kick(rules.name)
	eventually(t, "it has one after the quarantine", endpoints(1))
}

// TestFailedRepair: a Part that was programmed and can't repair what somebody else did is tried again after whatever triggered it,
// and waits to be programmed until it succeeds.
func TestFailedRepair(t *testing.T) {
	p := &fakePart{name: rulesPrefix + "IPv4"}
	l, _ := startLoop(t, p)
	l.setHost(&cluster.Host{})
	l.publish(aSnapshot("10.0.0.1"))
	eventually(t, "it is programmed", func() bool { return l.status.view().ready() })
	p.set(errors.New("the kernel is not in the mood"))
	l.kick(p.name)
	eventually(t, "it is tried three times", func() bool { n, _, _ := p.see(); return n >= 4 })
	v := l.status.view()
	if v.parts[p.name].pending.IsZero() || v.keepsUp(v.parts[p.name], time.Now().Add(time.Hour)) {
		t.Error("nobody is told that it waits to be programmed")
	}
	p.set(nil)
	eventually(t, "it recovers", func() bool { v := l.status.view(); return v.parts[p.name].pending.IsZero() })
}
