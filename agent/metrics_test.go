package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source/kube"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// byName is for what a registry gathered.
func byName[F interface{ GetName() string }](families []F, err error) map[string]F {
	if err != nil {
		panic(err)
	}
	m := map[string]F{}
	for _, f := range families {
		m[f.GetName()] = f
	}
	return m
}

// sample returns the value of a metric with labels, given as "name=value", and how many observations a histogram has; -1 for
// none.
func sample(t *testing.T, m *metrics, name string, labels ...string) float64 {
	t.Helper()
	for _, s := range byName(m.registry.Gather())[name].GetMetric() {
		var have []string
		for _, l := range s.GetLabel() {
			have = append(have, l.GetName()+"="+l.GetValue())
		}
		slices.Sort(have)
		if slices.Equal(have, labels) {
			return s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

// A rulesRig is metrics of both families' rules that a test moves from goal to goal.
type rulesRig struct {
	*testing.T
	m    *metrics
	last goal
}

func newRulesRig(t *testing.T) *rulesRig {
	s := newStatus([]Part{&fakePart{name: rulesPrefix + "IPv4"}, &fakePart{name: rulesPrefix + "IPv6"}}, time.Minute)
	return &rulesRig{T: t, m: newMetrics(s, "test", nil)}
}

func (r *rulesRig) goal(services ...*cluster.Service) {
	next := goal{r.last.revision + 1, MakePlan(&cluster.Snapshot{Services: services}, Config{NodeName: "a"}, Offline, r.last.plan)}
	r.m.changed(next, r.last.plan)
	r.last = next
}

func (r *rulesRig) done(f cluster.Family, revision uint64, after time.Duration, err error) {
	r.m.done(outcome{part: rulesPrefix + f.String(), revision: revision, start: r.m.start, end: r.m.start.Add(after), err: err})
}

func (r *rulesRig) want(name string, value float64, labels ...string) {
	r.Helper()
	if got := sample(r.T, r.m, name, labels...); got != value {
		r.Errorf("%s%v is %v, expected %v", name, labels, got, value)
	}
}

func serviceOf(name string, affinity time.Duration, slices ...*cluster.EndpointSlice) *cluster.Service {
	return &cluster.Service{Namespace: "default", Name: name, Affinity: affinity, Slices: slices}
}

// TestChanges: what came, went or changed is counted once, and is pending until both families have it.
func TestChanges(t *testing.T) {
	const (
		services  = "kubeproxy_sync_proxy_rules_service_changes_"
		endpoints = "kubeproxy_sync_proxy_rules_endpoint_changes_"
	)
	r := newRulesRig(t)
	s1, s2, s3 := &cluster.EndpointSlice{Name: "1"}, &cluster.EndpointSlice{Name: "2"}, &cluster.EndpointSlice{Name: "3"}
	a, b := serviceOf("a", 0, s1, s2), serviceOf("b", 0)
	counts := func(allServices, allEndpoints, pendingServices, pendingEndpoints float64) {
		t.Helper()
		r.want(services+"total", allServices)
		r.want(endpoints+"total", allEndpoints)
		r.want(services+"pending", pendingServices)
		r.want(endpoints+"pending", pendingEndpoints)
	}
	r.goal(a, b)
	counts(2, 2, 2, 2)
	r.done(cluster.IPv4, 1, 0, nil)
	r.done(cluster.IPv6, 1, 0, errors.New("no"))
	counts(2, 2, 2, 2)
	r.done(cluster.IPv6, 1, 0, nil)
	counts(2, 2, 0, 0)
	r.goal(a, b)
	counts(2, 2, 0, 0)
	r.goal(serviceOf("a", 0, s1, s3), b) // slices alone: one went, one came
	counts(2, 4, 0, 2)
	r.goal(serviceOf("a", time.Hour, s1, &cluster.EndpointSlice{Name: "3"}), b) // the Service and a slice
	counts(3, 5, 1, 3)
	r.done(cluster.IPv4, 4, 0, nil)
	r.done(cluster.IPv6, 3, 0, nil)
	counts(3, 5, 1, 1)
	r.goal(b) // a Service goes with its slices
	counts(4, 7, 2, 3)
	r.done(cluster.IPv6, 5, 0, nil)
	r.done(cluster.IPv4, 5, 0, nil)
	counts(4, 7, 0, 0)
}

// TestNetworkProgramming: one observation for each slice that changed after the start, when its family has it in the kernel.
func TestNetworkProgramming(t *testing.T) {
	const name = "kubeproxy_network_programming_duration_seconds"
	r := newRulesRig(t)
	slice := func(name string, f cluster.Family, after time.Duration) *cluster.EndpointSlice {
		return &cluster.EndpointSlice{Name: name, Family: f, Triggered: r.m.start.Add(after)}
	}
	old, untold := slice("0", cluster.IPv4, -time.Second), &cluster.EndpointSlice{Name: "1", Family: cluster.IPv4}
	four, six := slice("4", cluster.IPv4, time.Second), slice("6", cluster.IPv6, time.Second)
	r.goal(serviceOf("a", 0, old, untold, four, six))
	r.done(cluster.IPv6, 1, 3*time.Second, errors.New("no"))
	r.want(name, -1, "ip_family=IPv6")
	r.done(cluster.IPv4, 1, 3*time.Second, nil)
	r.want(name, 1, "ip_family=IPv4")
	h := byName(r.m.registry.Gather())[name].GetMetric()[0].GetHistogram()
	if got := h.GetSampleSum(); got != 2 {
		t.Errorf("measured %v s, expected 2", got)
	}
	var buckets []string
	for _, b := range h.GetBucket() {
		buckets = append(buckets, fmt.Sprint(b.GetUpperBound()))
	}
	if text := strings.Join(buckets, " "); len(buckets) != 80 || !strings.HasPrefix(text, "0.25 0.5 1 2 3 ") || !strings.Contains(text, " 58 59 60 65 70 ") ||
		!strings.HasSuffix(text, " 110 115 120 150 180 210 240 270 300") {
		t.Errorf("buckets %s", text)
	}
	r.done(cluster.IPv4, 1, 4*time.Second, nil) // the same again
	r.want(name, 1, "ip_family=IPv4")

	again := *four // changed, but by nothing new
	r.goal(serviceOf("a", 0, old, untold, &again, six))
	r.goal(serviceOf("a", 0, old, untold, slice("4", cluster.IPv4, 5*time.Second), six))
	r.goal(serviceOf("a", 0, old, untold, slice("4", cluster.IPv4, time.Hour), six)) // by a clock that is ahead
	r.done(cluster.IPv4, 4, 6*time.Second, nil)
	r.want(name, 3, "ip_family=IPv4")
	r.done(cluster.IPv6, 4, 7*time.Second, nil)
	r.want(name, 1, "ip_family=IPv6")
	r.goal() // what goes is not measured
	r.done(cluster.IPv4, 5, 8*time.Second, nil)
	r.want(name, 3, "ip_family=IPv4")
}

// TestChangesAreBounded: while nothing can be programmed, changes are counted and forgotten beyond a bound.
func TestChangesAreBounded(t *testing.T) {
	r := newRulesRig(t)
	c := r.m.changes
	many := slices.Repeat([]time.Time{r.m.start.Add(time.Second)}, maxTriggered/2+1)
	for i := range maxBatches + 3 {
		b := batch{revision: uint64(i + 1), services: 1, endpoints: 2}
		if i >= maxBatches-1 {
			b.triggered[0] = slices.Clone(many)
		}
		c.add(b)
	}
	if s, e := c.pending(); s != maxBatches+3 || e != 2*s || len(c.batches) != maxBatches {
		t.Errorf("pending are %d and %d in %d batches", s, e, len(c.batches))
	}
	if got := len(c.programmed(cluster.IPv4, maxBatches+2)); got != 0 {
		t.Errorf("%d changes are measured that are not programmed", got)
	}
	if got := len(c.programmed(cluster.IPv4, maxBatches+3)); got != maxTriggered {
		t.Errorf("%d changes are measured, expected %d", got, maxTriggered)
	}
	c.programmed(cluster.IPv6, maxBatches+3)
	if s, e := c.pending(); s+e != 0 || len(c.batches) != 0 {
		t.Errorf("pending are %d and %d in %d batches after all was programmed", s, e, len(c.batches))
	}
}

// TestRulesMetrics: full and partial syncs, what they wrote and what was refused.
func TestRulesMetrics(t *testing.T) {
	r := newRulesRig(t)
	sync := func(report Report, err error) {
		r.m.done(outcome{part: rulesPrefix + "IPv4", start: r.m.start, end: r.m.start, report: report, err: err})
	}
	sync(Report{Full: true, WroteFilter: 3, WroteNAT: 40}, nil)
	r.want("kubeproxy_sync_proxy_rules_iptables_last", 3, "ip_family=IPv4", "table=filter")
	r.want("kubeproxy_sync_proxy_rules_iptables_last", 40, "ip_family=IPv4", "table=nat")
	sync(Report{}, nil)
	r.want("kubeproxy_sync_proxy_rules_iptables_last", 0, "ip_family=IPv4", "table=nat")
	sync(Report{Full: true}, errors.New("no"))
	r.want("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", -1, "ip_family=IPv4")
	sync(Report{Refused: 3}, errors.New("no"))
	sync(Report{Refused: 2}, nil)
	sync(Report{}, errors.New("no"))
	r.want("kubeproxy_sync_proxy_rules_duration_seconds", 6, "ip_family=IPv4")
	r.want("kubeproxy_sync_full_proxy_rules_duration_seconds", 2, "ip_family=IPv4")
	r.want("kubeproxy_sync_partial_proxy_rules_duration_seconds", 4, "ip_family=IPv4")
	r.want("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", 7, "ip_family=IPv4")
	r.want("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", 3, "ip_family=IPv4")
}

// TestMetricsAreDocumented: docs/metrics.md has every metric with its type and labels, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	r := newRulesRig(t)
	r.m = newMetrics(r.m.status, "test", func() (time.Time, error) { return time.Time{}, nil })
	r.m.registry.MustRegister(append(kube.Metrics(), droppedEvents(func() uint64 { return 0 }))...)
	r.m.registry.MustRegister(newSaver("", "", nil).metrics()...)
	requestSomething(t)
	r.goal(serviceOf("a", 0, &cluster.EndpointSlice{Family: cluster.IPv4, Triggered: r.m.start.Add(time.Second)}))
	r.m.status.queued(r.last, nil, r.m.start)
	r.m.planned(time.Second)
	r.m.healthz(http.StatusOK)
	r.m.livez(http.StatusOK)
	for _, o := range []outcome{{revision: 1, report: Report{Full: true, Wrote: true, Drift: 1, Found: finding{Drifts: []iptables.Drift{{Table: "nat", Kind: iptables.TableFlushed}}}, Flows: netfilter.FlowsReport{Deleted: 1, Duration: time.Second}}}, {revision: 1, err: errors.New("no"),
		report: Report{Notes: []cluster.Note{{Reason: cluster.ReasonQuarantined}}}}} {
		o.part, o.start, o.end = rulesPrefix+"IPv4", r.m.start, r.m.start.Add(time.Second)
		r.m.done(o)
		r.m.status.done(o)
		r.m.status.view()
	}
	r.m.registry.MustRegister(packetCounters{func() (map[string]uint64, error) {
		return map[string]uint64{iptables.InvalidCounter: 1, iptables.LocalhostCounter: 1}, nil
	}})
	r.m.registry.MustRegister((&rereader{}).metric())
	r.m.registry.MustRegister(bgpCollector{func() []speaker.Session {
		return []speaker.Session{{Families: [2]bool{true, false}}, {Peer: bgp.Peer{Node: "n2"}, State: "idle"}}
	}, func() uint64 { return 1 }, func() [2]int { return [2]int{} }})
	have := map[string]string{}
	for name, f := range byName(r.m.registry.Gather()) {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		have[name] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ", ")
	}
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (\\w+) \\| ([a-z_, ]*) ?\\| .+ \\|$").FindAllStringSubmatch(string(text), -1) {
		labels := strings.FieldsFunc(row[3], func(r rune) bool { return r == ' ' || r == ',' })
		slices.Sort(labels)
		documented[row[1]] = row[2] + " " + strings.Join(labels, ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if documented[name] != have[name] {
			t.Errorf("%s is a %q, docs/metrics.md says %q", name, have[name], documented[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		if have[name] == "" {
			t.Errorf("docs/metrics.md has %s, the agent does not", name)
		}
	}
}

// requestSomething makes a request to an API server that wants it twice.
func requestSomething(t *testing.T) {
	t.Helper()
	first := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if first {
			first = false
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"apiVersion":"v1","kind":"Status","status":"Success"}`)
	}))
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: '" + server.URL + "'}}], contexts: [{name: x, context: {cluster: c}}], current-context: x}"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.Connect(kube.Options{Kubeconfig: kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	event := &eventsv1.Event{}
	event.Namespace, event.Name = "default", "x"
	if err := client.CreateEvent(t.Context(), event); err != nil {
		t.Fatal(err)
	}
}
