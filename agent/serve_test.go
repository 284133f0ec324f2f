package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
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
	s := &server{what: "health", addr: addr}
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
		return v.parts[good.name].programmed == 1 && v.parts[bad.name].err != nil
	})
	handler := metricsHandler(l.metrics, l.config, time.Now)
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
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
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

// TestLivezOfFailingParts: a minute of failures is for a liveness probe when rules fail, not when routes do; both are for a
// load balancer, and so is a part that does not answer at all.
func TestLivezOfFailingParts(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: "a"}, Offline, nil)
	for _, c := range []struct {
		part           string
		err            error
		livez, healthz int
	}{
		{routesName, errors.New("/proc/sys is read-only"), http.StatusOK, http.StatusServiceUnavailable},
		{routesName, nil, http.StatusServiceUnavailable, http.StatusServiceUnavailable},
		{rulesPrefix + "IPv4", errors.New("the lock is held"), http.StatusServiceUnavailable, http.StatusServiceUnavailable},
	} {
		s := newStatus([]Part{&fakePart{name: c.part}}, 30*time.Second)
		s.queued(goal{1, plan}, plan.Snapshot.Nodes[0], start)
		if c.err != nil {
			s.done(outcome{part: c.part, revision: 1, err: c.err})
		}
		livez, _ := healthBody(s.view(), start.Add(time.Minute), false)
		healthz, _ := healthBody(s.view(), start.Add(time.Minute), true)
		if livez != c.livez || healthz != c.healthz {
			t.Errorf("%s, %v: /livez %d and /healthz %d, expected %d and %d", c.part, c.err, livez, healthz, c.livez, c.healthz)
		}
	}
}
