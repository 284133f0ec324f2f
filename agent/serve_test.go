package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// TestOpenWaits: an address that is in use for a moment is waited for, and the end of the context ends the wait.
func TestOpenWaits(t *testing.T) {
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := holder.Addr().String()
	ended, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2*listenAgain, cancel)
	s := &server{what: "health", addr: addr, patience: bound}
	err = s.open(ended)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "serve health: listen tcp "+addr) {
		t.Errorf("while it is in use: %v", err)
	}
	time.AfterFunc(2*listenAgain, func() { holder.Close() })
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	if err := (&server{what: "health", addr: "192.0.2.1:80"}).open(t.Context()); err == nil || errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("an address of nobody's: %v", err)
	}
}

// TestMetrics: what dashboards and probes of a kube-proxy ask for is there.
func TestMetrics(t *testing.T) {
	good, bad := &fakePart{name: rulesPrefix + "IPv4"}, &fakePart{name: rulesPrefix + "IPv6", fail: errors.New("no")}
	good.notes = []cluster.Note{{Object: cluster.Ref{Kind: "Service", Name: "web"}, Reason: cluster.ReasonQuarantined}}
	l, _ := startLoop(t, good, bad)
	l.setHost(&cluster.Host{})
	l.publish(aSnapshot("10.0.0.1"))
	eventually(t, "both parts ran", func() bool {
		v := l.status.view()
		return v.parts[good.name].programmed > 0 && v.parts[bad.name].err != nil
	})
	handler := metricsHandler(l.metrics, l.configuration, time.Now)
	get := func(path string) string {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s answers %d", path, w.Code)
		}
		return w.Body.String()
	}
	if mode, health := get("/proxyMode"), get("/healthz"); mode != "iptables" || health != "ok" {
		t.Errorf("/proxyMode is %q, /healthz %q", mode, health)
	}
	if ping := get("/healthz/ping"); ping != "ok" {
		t.Errorf("/healthz/ping is %q", ping)
	}
	healthHandler(l.status, l.metrics, time.Now).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/livez", nil))
	text := get("/metrics")
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} `, // 1, or 2 when the host came after the Snapshot
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 0`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1.`,
		`kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} `,
		`kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} `,
		`kubeproxy_proxy_livez_total{code="200"} 1`,
		`fairway_programmed{part="rules-IPv4"} 1`,
		`fairway_programmed{part="rules-IPv6"} 0`,
		`fairway_notes{reason="Quarantined"} 1`,
		`fairway_quarantined_services 1`,
		`fairway_service_ports{ip_family="IPv4"} 1`,
		`fairway_build_info{version="test"} 1`,
		`process_resident_memory_bytes `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// TestLivezOfFailingParts: what waits for a minute or fails is for a load balancer, but nothing for a liveness probe. A restart
// would meet the same.
func TestLivezOfFailingParts(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: "a"}, Offline, nil)
	for _, c := range []struct {
		part           string
		err            error
		livez, healthz int
	}{
		{routesName, errors.New("/proc/sys is read-only"), http.StatusOK, http.StatusServiceUnavailable},
		{routesName, nil, http.StatusOK, http.StatusServiceUnavailable},
		{rulesPrefix + "IPv4", errors.New("the lock is held"), http.StatusOK, http.StatusServiceUnavailable},
	} {
		s := newStatus([]Part{&fakePart{name: c.part}}, 30*time.Second)
		s.queued(goal{1, plan}, plan.Snapshot.Nodes[0], start)
		if c.err != nil {
			s.done(outcome{part: c.part, revision: 1, err: c.err})
		}
		livez, _ := healthBody(s.view(), start.Add(time.Minute), false)
		healthz, _ := healthBody(s.view(), start.Add(time.Minute), true)
		if proxyHealthy := s.view().healthy(start.Add(time.Minute)); proxyHealthy != (healthz == http.StatusOK) {
			t.Errorf("%s, %v: for load balancers of Services it is healthy: %v, and /healthz %d", c.part, c.err, proxyHealthy, healthz)
		}
		if livez != c.livez || healthz != c.healthz {
			t.Errorf("%s, %v: /livez %d and /healthz %d, expected %d and %d", c.part, c.err, livez, healthz, c.livez, c.healthz)
		}
	}
}

// TestLivezOfWhatHangs: a loop that does not go round, or a sync that does not end, is for a liveness probe.
func TestLivezOfWhatHangs(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	part := rulesPrefix + "IPv4"
	for what, hang := range map[string]func(*status){
		"the loop": func(s *status) { s.beat(start) },
		"a sync":   func(s *status) { s.began(part, start) },
	} {
		s := newStatus([]Part{&fakePart{name: part}}, 30*time.Second)
		hang(s)
		for after, want := range map[time.Duration]int{stuckAfter: http.StatusOK, stuckAfter + time.Second: http.StatusServiceUnavailable} {
			if code, _ := healthBody(s.view(), start.Add(after), false); code != want {
				t.Errorf("%s hangs for %s: /livez is %d, expected %d", what, after, code, want)
			}
		}
		s.beat(start.Add(time.Hour))
		s.done(outcome{part: part, err: errors.New("at last")})
		if code, _ := healthBody(s.view(), start.Add(time.Hour), false); code != http.StatusOK {
			t.Errorf("%s goes on: /livez is %d", what, code)
		}
	}
}

// TestReadyzSaysWhatIsVerified: ready is what is programmed and not in doubt; the age runs from the last write, or from what the
// watch says, which a failure or a doubt stops.
func TestReadyzSaysWhatIsVerified(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC) }
	plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: "a"}, Offline, nil)
	suspects := &suspicions{}
	part := &rulesPart{suspects: suspects}
	s := newStatus([]Part{part}, 30*time.Second)
	check := func(what string, now int, code int, want partReadiness) {
		t.Helper()
		got, body := readyBody(s.view(), at(now))
		have := body.(readiness).Parts[part.Name()]
		have.LastUpdated, have.Error = time.Time{}, ""
		if got != code || have != want {
			t.Errorf("%s: %d %+v, expected %d %+v", what, got, have, code, want)
		}
	}
	s.queued(goal{1, plan}, plan.Snapshot.Nodes[0], at(0))
	check("before anything", 1, http.StatusServiceUnavailable, partReadiness{})
	s.done(outcome{part: part.Name(), revision: 1, end: at(2)})
	check("written", 5, http.StatusOK, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "3s"})
	suspects.quietAt(at(9))
	check("the watch is quiet", 10, http.StatusOK, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "1s"})
	suspects.changed(netfilter.Change{})
	suspects.quietAt(at(11))
	check("in doubt", 12, http.StatusServiceUnavailable, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "10s", InDoubt: true})
	suspects.take()
	suspects.settle()
	s.done(outcome{part: part.Name(), revision: 1, end: at(13)})
	check("looked into", 13, http.StatusOK, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "0s"})
	s.done(outcome{part: part.Name(), revision: 1, end: at(14), err: errors.New("the lock is held")})
	suspects.quietAt(at(15))
	check("a failed audit", 16, http.StatusOK, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "3s"})
	suspects.lost()
	s.done(outcome{part: part.Name(), revision: 1, end: at(17)})
	check("no watch", 20, http.StatusOK, partReadiness{Programmed: 1, Verified: 1, VerifiedAge: "3s"})
}

// TestServeAgain: an address that can't be bound is told once and tried again until it can.
func TestServeAgain(t *testing.T) {
	holder, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 10)
	s := &server{what: "metrics", addr: holder.Addr().String(), reason: "FailedToStartMetricServer", handler: http.NotFoundHandler(), again: time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, func(_ *server, err error) { told <- err }) }()
	if err := <-told; !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "serve metrics: ") {
		t.Errorf("it says %v", err)
	}
	holder.Close()
	eventually(t, "it serves", func() bool {
		r, err := http.Get("http://" + s.addr)
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusNotFound
	})
	cancel()
	if err := <-ended; err != nil || len(told) > 0 {
		t.Errorf("it ends with %v, and has told %d failures more", err, len(told))
	}
}

// An eventWriter keeps Events and has nothing else to do.
type eventWriter struct {
	fakeReporter
	events []string
}

func (*eventWriter) Run(context.Context) error { return nil }
func (*eventWriter) Dropped() uint64           { return 0 }

func (w *eventWriter) Event(about cluster.Ref, eventType, reason, _ string) {
	w.events = append(w.events, about.String()+" "+eventType+" "+reason)
}

// TestHardFail: with bindAddressHardFail an address that can't be bound is an error before anything is done, and an Event.
func TestHardFail(t *testing.T) {
	reporter := &eventWriter{}
	s := newStatus(nil, time.Minute)
	serve := func(c Config) (int, error) {
		l := newLoop(c, Facts{}, nil, newMetrics(s, "test", nil), s, nil)
		tasks, err := Options{Config: c}.servers(t.Context(), world{reporter: reporter}, cluster.Ref{Kind: "Node", Name: "a"}, l)
		return len(tasks), err
	}
	nobodys := "192.0.2.1:10249"
	if n, err := serve(Config{MetricsBindAddress: nobodys, BindAddressHardFail: true}); n != 0 || err == nil || !strings.Contains(err.Error(), "serve metrics: listen tcp "+nobodys) {
		t.Errorf("%d tasks, %v", n, err)
	}
	if want := []string{"Node a Warning FailedToStartMetricServer"}; !slices.Equal(reporter.events, want) {
		t.Errorf("Events %q, expected %q", reporter.events, want)
	}
	if n, err := serve(Config{MetricsBindAddress: nobodys, HealthzBindAddress: nobodys}); n != 2 || err != nil {
		t.Errorf("without: %d tasks, %v", n, err)
	}
	if n, err := serve(Config{}); n != 0 || err != nil {
		t.Errorf("with no address at all: %d tasks, %v", n, err)
	}
}

// TestProfiling: it is there when asked for, and the verbosity of the log can be set by it.
func TestProfiling(t *testing.T) {
	before := verbosity(t)
	t.Cleanup(func() {
		var level klog.Level
		if err := level.Set(before); err != nil {
			t.Error(err)
		}
	})
	s := newStatus(nil, time.Minute)
	handler := func(profiling bool) http.Handler {
		return metricsHandler(newMetrics(s, "test", nil), func() Config { return Config{EnableProfiling: profiling} }, time.Now)
	}
	for _, c := range []struct {
		profiling          bool
		method, path, body string
		code               int
	}{
		{false, "GET", "/debug/pprof/", "", http.StatusNotFound},
		{false, "PUT", "/debug/flags/v", "5", http.StatusNotFound},
		{false, "GET", "/debug/quarantine", "", http.StatusNotFound},
		{true, "GET", "/debug/pprof/", "", http.StatusOK},
		{true, "GET", "/debug/pprof/goroutine", "", http.StatusOK},
		{true, "GET", "/debug/flags/v", "", http.StatusMethodNotAllowed},
		{true, "PUT", "/debug/flags/v", "much", http.StatusBadRequest},
		{true, "PUT", "/debug/flags/v", strings.Repeat("1", 100), http.StatusBadRequest},
		{true, "PUT", "/debug/flags/v", "5", http.StatusOK},
	} {
		w := httptest.NewRecorder()
		handler(c.profiling).ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.code {
			t.Errorf("profiling %v: %s %s %q answers %d %s, expected %d", c.profiling, c.method, c.path, c.body, w.Code, w.Body, c.code)
		}
	}
	if v := verbosity(t); v != "5" {
		t.Errorf("the verbosity is %s", v)
	}
}

// TestQuarantinez: what iptables-restore was given and said is shown to who debugs.
func TestQuarantinez(t *testing.T) {
	rules := &fakePart{name: rulesPrefix + "IPv4"}
	s := newStatus([]Part{rules}, time.Minute)
	s.done(outcome{part: rules.name, report: Report{Quarantined: []netfilter.Quarantine{{
		Note:  cluster.Note{Object: cluster.Ref{Kind: "Service", Namespace: "default", Name: "web"}, Reason: cluster.ReasonQuarantined, Detail: "why"},
		Input: "*nat\n-A KUBE-SVC-X -j NONSENSE\nCOMMIT\n", Stderr: "line 2 failed"}}}})
	w := httptest.NewRecorder()
	metricsHandler(newMetrics(s, "test", nil), func() Config { return Config{EnableProfiling: true} }, time.Now).ServeHTTP(w, httptest.NewRequest("GET", "/debug/quarantine", nil))
	if got, want := w.Body.String(), "Service default/web: Quarantined: why\n\nline 2 failed\n\n*nat\n-A KUBE-SVC-X -j NONSENSE\nCOMMIT\n\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// verbosity returns the verbosity of the log.
func verbosity(t *testing.T) string {
	t.Helper()
	for v := 20; v > 0; v-- {
		if klog.V(klog.Level(v)).Enabled() {
			return strconv.Itoa(v)
		}
	}
	return "0"
}

// TestOOMScore: the score is written as it is, and a file that can't be written ends nothing.
func TestOOMScore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oom_score_adj")
	if err := os.WriteFile(path, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	adjustOOMScore(path, -999)
	if text, err := os.ReadFile(path); err != nil || string(text) != "-999" {
		t.Errorf("it is %q, %v", text, err)
	}
	adjustOOMScore(filepath.Join(path, "not"), -999)
}

// TestHealthForm: the answers have kube-proxy's form. Eligibility is a matter of /healthz alone and not part of "healthy"; a
// good answer is of now, a bad one of the last success, which before the first one is the start; and what is no rules is not in
// "status".
func TestHealthForm(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC) }
	plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: "a"}, Offline, nil)
	four, six := &fakePart{name: rulesPrefix + "IPv4"}, &fakePart{name: rulesPrefix + "IPv6"}
	s := newStatus([]Part{&fakePart{name: routesName}, four, six, &fakePart{name: healthChecksPrefix + "IPv4"}}, 30*time.Second)
	s.started = at(0)
	body := func(second int, eligibility bool) string {
		code, body := healthBody(s.view(), at(second), eligibility)
		w := httptest.NewRecorder()
		answer(w, code, body)
		if w.Header().Get("Content-Type") != "application/json" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers are %v", w.Header())
		}
		r := strings.NewReplacer("2026-01-01T00:00:", "", "Z", "", "2026-01-01T00:0", "")
		return strconv.Itoa(w.Code) + " " + strings.TrimSpace(r.Replace(w.Body.String()))
	}
	check := func(what string, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: it is\n%s\nexpected\n%s", what, got, want)
		}
	}
	check("/livez before anything", body(3, false),
		`200 {"lastUpdated":"03","currentTime":"03","healthy":true,"status":{"IPv4":{"lastUpdated":"00","healthy":true},"IPv6":{"lastUpdated":"00","healthy":true}}}`)
	check("/healthz before anything", body(3, true),
		`503 {"lastUpdated":"00","currentTime":"03","nodeEligible":false,"healthy":true,"status":{"IPv4":{"lastUpdated":"00","healthy":true},"IPv6":{"lastUpdated":"00","healthy":true}}}`)
	s.queued(goal{1, plan}, plan.Snapshot.Nodes[0], at(4))
	s.done(outcome{part: routesName, revision: 1, end: at(9)})
	s.done(outcome{part: healthChecksPrefix + "IPv4", revision: 1, end: at(9)})
	s.done(outcome{part: four.name, revision: 1, end: at(5)})
	check("/healthz while one waits", body(10, true),
		`200 {"lastUpdated":"10","currentTime":"10","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"05","healthy":true},"IPv6":{"lastUpdated":"00","healthy":true}}}`)
	for _, eligibility := range []bool{false, true} {
		want := `200 {"lastUpdated":"1:04","currentTime":"1:04","healthy":true,"status":{"IPv4":{"lastUpdated":"05","healthy":true},"IPv6":{"lastUpdated":"00","healthy":false}}}`
		if eligibility {
			want = strings.Replace(want, `200 {"lastUpdated":"1:04","currentTime":"1:04","healthy":true`, `503 {"lastUpdated":"05","currentTime":"1:04","nodeEligible":true,"healthy":false`, 1)
		}
		check("after a minute", body(64, eligibility), want)
	}
	s.done(outcome{part: six.name, revision: 1, end: at(65)})
	leaving := &cluster.Node{Name: "a", ToBeDeleted: true}
	s.queued(goal{2, plan}, leaving, at(66))
	check("/livez of a leaving node", body(67, false),
		`200 {"lastUpdated":"1:07","currentTime":"1:07","healthy":true,"status":{"IPv4":{"lastUpdated":"05","healthy":true},"IPv6":{"lastUpdated":"1:05","healthy":true}}}`)
	check("/healthz of a leaving node", body(67, true),
		`503 {"lastUpdated":"1:05","currentTime":"1:07","nodeEligible":false,"healthy":true,"status":{"IPv4":{"lastUpdated":"05","healthy":true},"IPv6":{"lastUpdated":"1:05","healthy":true}}}`)
}
