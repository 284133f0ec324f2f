package agent

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// What was done about flows, and what the kernel has counted, are kube-proxy's metrics.
func TestFlowMetrics(t *testing.T) {
	m := newMetrics(newStatus(nil, time.Minute), "", nil)
	counted, fails := map[string]uint64{iptables.InvalidCounter: 7}, error(nil)
	m.registry.MustRegister(packetCounters{func() (map[string]uint64, error) { return counted, fails }})
	for _, flows := range []netfilter.FlowsReport{{Deleted: 3, Duration: time.Millisecond}, {}, {Deleted: 2, Duration: time.Second}} {
		m.done(outcome{part: "rules-IPv4", report: Report{Flows: flows}})
	}
	scrape := func() string {
		w := httptest.NewRecorder()
		metricsHandler(m, func() Config { return Config{} }, time.Now).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	text := scrape()
	for _, want := range []string{
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 5`,
		`kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"} 2`,
		`kubeproxy_iptables_ct_state_invalid_dropped_packets_total 7`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "localhost_nodeports_accepted") {
		t.Error("a counter that the kernel does not have is shown")
	}
	counted, fails = nil, errors.New("no")
	if text := scrape(); strings.Contains(text, "ct_state_invalid_dropped_packets_total 7") {
		t.Errorf("a counter that can't be read is shown:\n%s", text)
	}
}
