package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
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

// TestImplausibleServiceRange: a service range that overlaps the pods' network costs nobody a route, and is told.
func TestImplausibleServiceRange(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	s.Nodes = append(s.Nodes, &cluster.Node{Name: "b", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.2")}})
	config := Config{NodeName: "a", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	var prev *Plan
	for _, c := range []struct {
		ranges        []string
		routes, notes int
		ours          []string
	}{{nil, 1, 0, nil}, {[]string{"10.0.0.0/24", "10.0.0.0/8", "10.1.2.0/28"}, 1, 2, []string{"10.0.0.0/24"}}, {[]string{"10.0.0.0/24"}, 1, 0, []string{"10.0.0.0/24"}}} {
		changed := *s
		for _, r := range c.ranges {
			changed.ServiceCIDRs = append(changed.ServiceCIDRs, netip.MustParsePrefix(r))
		}
		given := slices.Clone(changed.ServiceCIDRs)
		plan := MakePlan(&changed, config, Offline, prev)
		told := slices.DeleteFunc(slices.Clone(plan.Notes), func(n cluster.Note) bool { return n.Object.Kind != "ServiceCIDR" })
		if len(plan.Routes.Routes) != c.routes || len(told) != c.notes || len(plan.Snapshot.ServiceCIDRs) != len(c.ours) {
			t.Errorf("with %v: routes %v, notes %v, ranges %v", c.ranges, plan.Routes.Routes, told, plan.Snapshot.ServiceCIDRs)
		}
		if !slices.Equal(changed.ServiceCIDRs, given) {
			t.Errorf("the Snapshot was changed: %v", changed.ServiceCIDRs)
		}
		prev = plan
	}
}

// TestNothingToWrite: what becomes of endpoints that are used nowhere changes no rules, and of one in use none of the other family.
func TestNothingToWrite(t *testing.T) {
	s := synth.Even(3, 20, 3)
	condition := func(s *cluster.Snapshot, ready, serving bool) *cluster.Snapshot {
		s = synth.Changed(s, 7, 200)
		e := &s.Services[7].Slices[0].Endpoints[0]
		e.Ready, e.Serving = ready, serving
		return s
	}
	config := Config{NodeName: synth.NodeName, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}}
	used := condition(s, true, true)
	unused := condition(s, false, false)
	elsewhere := synth.Changed(unused, 7, 201)
	e := &elsewhere.Services[7].Slices[0].Endpoints[0]
	e.Ready, e.Serving = false, false
	plan := MakePlan(used, config, Offline, nil)
	writes := func(s *cluster.Snapshot) (families [2]bool) {
		next := MakePlan(s, config, Offline, plan)
		for i := range families {
			families[i] = !iptables.Diff(plan.Services[i].Rules, next.Services[i].Rules).Empty()
		}
		plan = next
		return families
	}
	if got := writes(unused); got != [2]bool{true, false} {
		t.Errorf("an endpoint that is no longer ready has IPv4 and IPv6 written: %v", got)
	}
	if got := writes(elsewhere); got != [2]bool{} {
		t.Errorf("another endpoint that is not ready has IPv4 and IPv6 written: %v", got)
	}
	if got := writes(used); got != [2]bool{true, false} {
		t.Errorf("a ready endpoint has IPv4 and IPv6 written: %v", got)
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
