package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
)

// TestDrainNotice: what peers know of is announced with notice before it is withdrawn, once. What they do not know of, as the agent
// has just started, is not announced for that.
func TestDrainNotice(t *testing.T) {
	const notice = 5 * time.Second
	begin := time.Unix(1000, 0)
	plan := balanced("a", "b").BGP
	drained := *plan
	drained.Draining = bgp.Leaving(plan.Paths[:1])
	drained.Draining = append(drained.Draining, bgp.Leaving(plan.Paths[2:])...)
	drained.Paths = plan.Paths[1:2]
	shown := func(paths []bgp.Path) string {
		var list []string
		for _, p := range paths {
			text := p.Prefix.String()
			if len(p.Attributes.Communities) > 0 {
				text += "!"
			}
			list = append(list, text)
		}
		return strings.Join(list, " ")
	}
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	for _, c := range []struct {
		when  string
		table *bgp.Table
		after time.Duration
		want  string
		wait  time.Duration
	}{
		{"started while it drains", &drained, 0, "10.244.1.0/24", 0},
		{"drains no more", plan, 0, "10.96.0.0/16 10.244.1.0/24 203.0.113.1/32 203.0.113.2/32", 0},
		{"drains", &drained, 0, "10.96.0.0/16! 10.244.1.0/24 203.0.113.1/32! 203.0.113.2/32!", notice},
		{"goes on", &drained, 3 * time.Second, "10.96.0.0/16! 10.244.1.0/24 203.0.113.1/32! 203.0.113.2/32!", 2 * time.Second},
		{"is drained", &drained, notice, "10.244.1.0/24", 0},
		{"stays so", &drained, time.Hour, "10.244.1.0/24", 0},
		{"is back", plan, time.Hour, "10.96.0.0/16 10.244.1.0/24 203.0.113.1/32 203.0.113.2/32", 0},
		{"drains again", &drained, 2 * time.Hour, "10.96.0.0/16! 10.244.1.0/24 203.0.113.1/32! 203.0.113.2/32!", notice},
	} {
		table := *c.table
		wait := p.drain(&table, notice, begin.Add(c.after))
		if got := shown(table.Paths); got != c.want || wait != c.wait {
			t.Errorf("%s: %s for %s; expected %s for %s", c.when, got, wait, c.want, c.wait)
		}
		p.announced = table.Paths
	}
}

// TestDeparts: the end of an agent is the node's when the Node is shutting down, by what the API says now.
func TestDeparts(t *testing.T) {
	for _, c := range []struct {
		name string
		vary func(*bgpPart, *Plan)
		want bool
	}{
		{"a restart", func(*bgpPart, *Plan) {}, false},
		{"a shutdown", func(_ *bgpPart, plan *Plan) { plan.Snapshot.Nodes[0].ShuttingDown = true }, true},
		{"an earlier shutdown", func(_ *bgpPart, plan *Plan) {
			plan.Snapshot.Nodes[0].ShuttingDown, plan.Snapshot.Saved = true, time.Unix(1, 0)
		}, false},
		{"a leave under way", func(p *bgpPart, _ *Plan) { p.stage = stageSilent }, true},
		{"no Plan", func(p *bgpPart, _ *Plan) { p.plan = nil }, false},
	} {
		p := newBGPPart("n1", nil, process.New(process.Options{}))
		p.plan = balanced()
		c.vary(p, p.plan)
		if got := p.departs(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestLeaveStages: a node that has left stays so, whatever is planned, and says it; undone, it is as before. Somebody who asks
// is told each step. (What peers see of it, test/bgp shows.)
func TestLeaveStages(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	kicked := 0
	server := httptest.NewServer(controlHandler(p, func(string) { kicked++ }))
	defer server.Close()
	ask := func(path, want string) {
		t.Helper()
		res, err := http.Post(server.URL+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || !strings.Contains(string(body), want) || res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v; expected %s", path, body, err, want)
		}
	}
	ask(undoPath, "the node has not left its peers")
	ask(leavePath, "0 sessions are ended")
	if kicked != 2 {
		t.Errorf("the Part was run again %d times, expected 2", kicked)
	}
	notes := func() string {
		t.Helper()
		plan := balanced()
		plan.config.BGP = &bgp.Config{}
		plan.BGP.RouterID = netip.Addr{} // so there is no speaker
		r, err := p.Sync(t.Context(), plan, false)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, n := range r.Notes {
			text += n.Reason
		}
		return text
	}
	if got := notes(); got != cluster.ReasonBGPLeft {
		t.Errorf("after the leave the Notes are %q", got)
	}
	ask(leavePath, "the node has left its peers already")
	ask(undoPath, "the sessions begin anew")
	if got := notes(); got != "" {
		t.Errorf("after it was undone the Notes are %q", got)
	}
}

// TestLeaveWithoutBGP: an agent without peers says so.
func TestLeaveWithoutBGP(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	if _, err := p.Sync(t.Context(), &Plan{Snapshot: &cluster.Snapshot{}}, false); err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	controlHandler(p, nil).ServeHTTP(answer, httptest.NewRequest(http.MethodPost, leavePath, nil))
	if answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), errNoBGP.Error()) {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}
