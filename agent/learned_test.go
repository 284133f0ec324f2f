package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// TestToldAll: what an earlier agent left goes when all peers have told what they have, or when they have had time enough.
func TestToldAll(t *testing.T) {
	now := time.Now()
	complete := speaker.Session{State: "established", Since: now, Complete: true}
	silent := speaker.Session{State: "established", Since: now.Add(-tellingPatience - time.Second)}
	for _, c := range []struct {
		name     string
		sessions []speaker.Session
		age      time.Duration
		want     bool
	}{
		{"before there are sessions", nil, time.Second, false},
		{"all told", []speaker.Session{complete, complete}, time.Second, true},
		{"one has just come", []speaker.Session{complete, {State: "established", Since: now}}, time.Second, false},
		{"one does not say when it is done", []speaker.Session{complete, silent}, time.Second, true},
		{"one is down", []speaker.Session{complete, {State: "active", Since: now.Add(-time.Hour)}}, time.Second, false},
		{"one was lost", []speaker.Session{complete, {State: "active", Since: now, BeenUp: true}}, time.Second, true},
		{"one stays down", []speaker.Session{complete, {State: "active"}}, peersPatience + time.Second, true},
		{"there are none", nil, peersPatience + time.Second, true},
	} {
		if got := toldAll(c.sessions, now.Add(-c.age), now); got != c.want {
			t.Errorf("%s: %v, expected %v", c.name, got, c.want)
		}
	}
}

// TestLearnedCounted: routes that wait for their link are not counted.
func TestLearnedCounted(t *testing.T) {
	route := func(s string) routes.Route { return routes.Route{Dst: netip.MustParsePrefix(s)} }
	p := &learnedPart{}
	p.counted(&routes.Table{Routes: []routes.Route{route("172.16.0.0/12"), route("172.17.0.0/16"), route("2001:db8::/32")}}, rtnl.Report{Waiting: []routes.Route{route("172.17.0.0/16")}})
	if got := p.installed(); got != [2]int{1, 1} {
		t.Errorf("it counts %v", got)
	}
}
