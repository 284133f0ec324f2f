package agent

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestConfigz: the configuration in force is shown whole, in the words of the configuration file.
func TestConfigz(t *testing.T) {
	a := &AgentConfiguration{NodeName: "worker-1", ClusterCIDRs: []string{"10.244.0.0/16", "fd00::/48"}, ExternalIPs: AddressRanges{Ranges: []string{"192.0.2.0/24"}}}
	c, err := a.Config()
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	metricsHandler(newMetrics(newStatus(nil, time.Minute), "test", nil), func() Config { return c }, time.Now).ServeHTTP(w, httptest.NewRequest("GET", "/configz", nil))
	var shown map[string]map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%s: %v", w.Body, err)
	}
	for _, want := range []string{`"nodeName":"worker-1"`, `"clusterCIDRs":["10.244.0.0/16","fd00::/48"]`, `"externalIPs":["192.0.2.0/24"]`, `"syncPeriod":"30s"`,
		`"masqueradeBit":14`, `"metricsBindAddress":"127.0.0.1:10249"`, `"detect":"ClusterCIDR"`, `"oomScoreAdj":`, `"masqueradeAll":false`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/configz lacks %s: %s", want, w.Body)
		}
	}
	if len(shown["fairway.dev"]) == 0 || strings.Contains(w.Body.String(), "invalid") {
		t.Errorf("/configz is %s", w.Body)
	}
}

func TestStatusz(t *testing.T) {
	s := newStatus([]Part{&fakePart{name: "good"}, &fakePart{name: "bad"}, &fakePart{name: "new"}}, time.Minute)
	m := newMetrics(s, "v1.2.3", nil)
	m.start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.queued(goal{revision: 7, plan: &Plan{}}, nil, m.start)
	s.done(outcome{part: "good", revision: 7, end: m.start.Add(time.Second)})
	s.done(outcome{part: "bad", revision: 7, err: errors.New("the lock\nis held")})
	got := statusz(m, m.start.Add(26*time.Hour+time.Second))
	for _, want := range []string{"Version:     v1.2.3\n", "Started:     2026-01-02T03:04:05Z\n", "Up:          26h0m1s\n", "Revision:    7\n",
		"\ngood  7           2026-01-02T03:04:06Z  none\n", "\nbad   0           never                 \"the lock\\nis held\"\n", "\nnew   0           never                 none\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("/statusz lacks %q:\n%s", want, got)
		}
	}
}
