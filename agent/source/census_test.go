package source

import (
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// More than half of a kind deserves a second look; of few, only all.
func TestCensus(t *testing.T) {
	full := Census{Nodes: 20, Services: 40, Endpoints: 100}
	for _, c := range []struct {
		before, after Census
		want          string
	}{
		{full, full, ""},
		{full, Census{10, 20, 50}, ""},
		{full, Census{9, 40, 100}, "9 of 20 Nodes are left"},
		{full, Census{20, 19, 100}, "19 of 40 Services are left"},
		{full, Census{20, 40, 49}, "49 of 100 endpoints are left"},
		{full, Census{}, "0 of 20 Nodes are left"},
		{Census{9, 9, 9}, Census{4, 4, 4}, ""},
		{Census{9, 9, 9}, Census{0, 9, 9}, "0 of 9 Nodes are left"},
		{Census{}, full, ""},
		{Census{10, 0, 0}, Census{4, 5, 5}, "4 of 10 Nodes are left"},
	} {
		if got := c.before.Shrunk(c.after); got != c.want {
			t.Errorf("from %+v to %+v: %q, want %q", c.before, c.after, got, c.want)
		}
	}
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{}, {}}, Services: []*cluster.Service{{Slices: []*cluster.EndpointSlice{
		{Endpoints: make([]cluster.Endpoint, 3)}, {Endpoints: make([]cluster.Endpoint, 4)}}}}}
	if got := Count(s); got != (Census{2, 1, 7}) || Count(nil) != (Census{}) {
		t.Errorf("counted %+v", got)
	}
}
