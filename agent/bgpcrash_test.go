package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// TestCrashes: the first crash of the BGP process holds nothing back, further ones longer and longer, until there was none for a while.
// Each is told.
func TestCrashes(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	node := cluster.Ref{Kind: "Node", Name: "n1"}
	now := time.Now()
	for i, c := range []struct{ after, want time.Duration }{
		{0, 0}, {time.Minute, 20 * time.Second}, {time.Minute, 200 * time.Second}, {time.Hour, crashMost}, {crashMemory, crashMost},
		{crashMemory + time.Second, 0}, {time.Second, 20 * time.Second},
	} {
		now = now.Add(c.after)
		told := ""
		p.crashed(process.End{PID: 4711, Why: "panic: so"}, func(about cluster.Ref, eventType, reason, message string) {
			told = strings.Join([]string{about.Name, eventType, reason, message}, " ")
		}, node, now)
		if want := "n1 Warning BGPCrashed the BGP process has ended (panic: so) and is begun again in " + c.want.String(); !strings.HasPrefix(told, want) {
			t.Errorf("crash %d is told by %q, expected %q", i, told, want)
		}
		crashes, wait := p.held(now)
		if wait != c.want {
			t.Errorf("crash %d holds back for %s, expected %s", i, wait, c.want)
		}
		if _, wait := p.held(now.Add(c.want)); wait > 0 {
			t.Errorf("crash %d holds back for %s longer", i, wait)
		}
		if detail := crashes.note(node).Detail; !strings.Contains(detail, "(panic: so)") || !strings.Contains(detail, c.want.String()) {
			t.Errorf("crash %d has the Note %q", i, detail)
		}
	}
}

// A countingSpeaker counts what it is told.
type countingSpeaker struct {
	*process.Speaker
	synced, stopped int
}

func (s *countingSpeaker) Sync(t *bgp.Table) (speaker.Result, error) {
	s.synced++
	return s.Speaker.Sync(t)
}

func (s *countingSpeaker) Stop(patience time.Duration) error {
	s.stopped++
	return s.Speaker.Stop(patience)
}

// TestHeldBack: while BGP is held back, its Part waits and says why, and nothing is told to anybody. When BGP is taken out of the
// configuration, it is stopped all the same.
func TestHeldBack(t *testing.T) {
	s := &countingSpeaker{Speaker: process.New(process.Options{})}
	p := newBGPPart("n1", nil, s)
	plan := balanced("a")
	without := *plan
	without.BGP = nil
	crash := func() {
		p.crashed(process.End{Why: "panic: so"}, func(cluster.Ref, string, string, string) {}, cluster.Ref{}, time.Now())
	}
	for _, c := range []struct {
		when            string
		plan            *Plan
		crashes         int
		synced, stopped int
		note            string
	}{
		{"it begins", plan, 0, 1, 0, ""},
		{"it crashed once", plan, 1, 2, 0, ""},
		{"it crashed again", plan, 1, 2, 0, cluster.ReasonBGPHeldBack},
		{"nothing happened", plan, 0, 2, 0, cluster.ReasonBGPHeldBack},
		{"the configuration is without", &without, 0, 2, 1, ""},
	} {
		for range c.crashes {
			crash()
		}
		r, err := p.Sync(t.Context(), c.plan, false)
		if err != nil {
			t.Fatal(err)
		}
		note := ""
		for _, n := range r.Notes {
			note += n.Reason
		}
		if s.synced != c.synced || s.stopped != c.stopped || note != c.note || (note != "") != (r.Retry > 0 && r.Retry <= crashPause) {
			t.Errorf("%s: told %d times, stopped %d times, the Note %q, again in %s; expected %+v", c.when, s.synced, s.stopped, note, r.Retry, c)
		}
	}
}
