package routes

import (
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// TestSameInput changes one thing at a time.
func TestSameInput(t *testing.T) {
	service := func(ip string, s *cluster.Service) *cluster.Service {
		s.Namespace, s.Name, s.ClusterIPs = "default", "db", []netip.Addr{netip.MustParseAddr(ip)}
		return s
	}
	nodes := []*cluster.Node{node("b", 2, "10.240.0.12 10.200.2.0/24"), node("own", 1, usualOwn)}
	base := cluster.Snapshot{Nodes: nodes, Host: usualHost(), Services: []*cluster.Service{service("10.32.0.1", &cluster.Service{})}}
	for _, c := range []struct {
		name   string
		change func(*cluster.Snapshot)
		same   bool
	}{
		{"nothing", func(*cluster.Snapshot) {}, true},
		{"an equal host", func(s *cluster.Snapshot) { s.Host = usualHost() }, true},
		{"an endpoint", func(s *cluster.Snapshot) {
			s.Services = []*cluster.Service{service("10.32.0.1", &cluster.Service{Slices: []*cluster.EndpointSlice{{Name: "db-1"}}})}
		}, true},
		{"a ClusterIP", func(s *cluster.Snapshot) {
			s.Services = []*cluster.Service{service("10.200.2.1", &cluster.Service{})}
		}, false},
		{"a service less", func(s *cluster.Snapshot) { s.Services = nil }, false},
		{"a service range", func(s *cluster.Snapshot) { s.ServiceCIDRs = prefixes("10.200.0.0/16") }, false},
		{"a node less", func(s *cluster.Snapshot) { s.Nodes = nodes[1:] }, false},
		{"a node's range", func(s *cluster.Snapshot) {
			s.Nodes = []*cluster.Node{node("b", 2, "10.240.0.12 10.200.3.0/24"), nodes[1]}
		}, false},
		{"a link more", func(s *cluster.Snapshot) { s.Host = usualHost(link(9, "eth1", "10.1.0.1/24")) }, false},
		{"a link down", func(s *cluster.Snapshot) {
			s.Host = usualHost()
			s.Host.Links[1].Up = false
		}, false},
		{"an address", func(s *cluster.Snapshot) {
			s.Host = usualHost()
			s.Host.Links[1].Addrs = prefixes("10.240.0.10/24")
		}, false},
		{"no host", func(s *cluster.Snapshot) { s.Host = nil }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := base
			c.change(&changed)
			if got := SameInput(&base, &changed); got != c.same {
				t.Errorf("same: %t", got)
			}
			config := Config{NodeName: "own"}
			if was, is := text(Plan(&base, config)), text(Plan(&changed, config)); c.same && was != is {
				t.Errorf("the plan was:\n%sand is:\n%s", was, is)
			}
		})
	}
}

func BenchmarkSameInput(b *testing.B) {
	s, _ := bigCluster(5000, 10000)
	other := *s
	for b.Loop() {
		if !SameInput(s, &other) {
			b.Fatal("not the same")
		}
	}
}
