package agent

import (
	"net/netip"
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

// TestAbsentFamily: in a family without iptables nothing is planned, and so nothing announced or counted.
func TestAbsentFamily(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	s.Services[0].ClusterIPs = append(s.Services[0].ClusterIPs, netip.MustParseAddr("fd00::1"))
	facts := Offline
	for _, absent := range [][2]bool{{false, false}, {false, true}, {true, false}} {
		facts.Absent = absent
		plan := MakePlan(s, Config{NodeName: "a"}, facts, nil)
		for i, services := range plan.Services {
			if served := len(services.Table.Ports) > 0; served == absent[i] {
				t.Errorf("absent %v: %s is served: %v", absent, services.Family, served)
			}
		}
	}
}
