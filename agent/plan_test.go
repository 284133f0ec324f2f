package agent

import (
	"slices"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// TestUnknownNode: an agent that was told a wrong name says so, about that name.
func TestUnknownNode(t *testing.T) {
	for name, want := range map[string]bool{"a": false, "b": true} {
		plan := MakePlan(aSnapshot("10.0.0.1"), Config{NodeName: name}, Offline, nil)
		got := slices.ContainsFunc(plan.Notes, func(n cluster.Note) bool {
			return n.Reason == cluster.ReasonNodeIncomplete && n.Object == cluster.Ref{Kind: "Node", Name: "b"}
		})
		if got != want {
			t.Errorf("as node %q: %v", name, plan.Notes)
		}
	}
}
