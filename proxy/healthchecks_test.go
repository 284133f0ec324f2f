package proxy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// checked gives a Service a health check node port.
func checked(port uint16, svc *cluster.Service) *cluster.Service {
	svc.Type, svc.ExternalTrafficPolicy, svc.HealthCheckNodePort = "LoadBalancer", cluster.PolicyLocal, port
	return svc
}

// named is a slice for a port of another name.
func named(name string, s *cluster.EndpointSlice) *cluster.EndpointSlice {
	s.Ports[0].Name = name
	return s
}

// healthChecks writes health checks as "name port:endpoints".
func healthChecks(t *proxy.Table) string {
	var out []string
	for _, h := range t.HealthChecks {
		out = append(out, fmt.Sprintf("%s %d:%d", h.Service.Name, h.Port, h.LocalEndpoints))
	}
	return strings.Join(out, ", ")
}

func TestHealthCheckCounts(t *testing.T) {
	six := slice(8080, "10.0.2.1 here ready")
	six.Family = cluster.IPv6
	for _, c := range []struct {
		name   string
		slices []*cluster.EndpointSlice
		want   int
	}{
		{"no slice", nil, 0},
		{"ready ones here", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here ready", "10.0.1.2 here ready", "10.0.2.1 ready")}, 2},
		{"not ready", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here", "10.0.1.2 here serving")}, 0},
		{"only terminating", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here serving terminating")}, 0},
		{"ready though terminating", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here ready terminating")}, 1},
		{"only the slice says where", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 ready", "10.0.1.2 anywhere ready", "192.168.0.1 ready")}, 0},
		{"an address in two slices", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here ready"), slice(8080, "10.0.1.1 here ready")}, 1},
		{"an address on two ports", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here ready"), slice(8081, "10.0.1.1 here ready")}, 1},
		{"an address under two names", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here ready"), named("dns", slice(53, "10.0.1.1 here ready", "10.0.1.2 here ready"))}, 2},
		{"ready under one name only", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here"), named("dns", slice(8080, "10.0.1.1 here ready"))}, 1},
		{"ready in one slice only", []*cluster.EndpointSlice{slice(8080, "10.0.1.1 here serving terminating"), slice(8080, "10.0.1.1 here ready")}, 1},
		{"another family", []*cluster.EndpointSlice{six}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, notes := plan(checked(32000, service("web", c.slices...)))
			if got, want := healthChecks(table), fmt.Sprintf("web 32000:%d", c.want); got != want || len(notes) > 0 {
				t.Errorf("health checks %q, expected %q; notes %v", got, want, notes)
			}
		})
	}
}

// TestHealthChecks: who has one, and who keeps a contested one.
func TestHealthChecks(t *testing.T) {
	at := func(seconds int, svc *cluster.Service) *cluster.Service {
		svc.Created = time.Unix(int64(seconds), 0)
		return svc
	}
	plain, other := service("plain", slice(8080, "10.0.1.1 here ready")), checked(32001, service("other"))
	other.ClusterIPs = []netip.Addr{netip.MustParseAddr("fd00::1")}
	table, notes := plan(
		checked(32000, at(3, service("a", slice(8080, "10.0.1.1 here ready")))),
		checked(32000, at(1, service("b"))),
		checked(32000, at(2, service("c", slice(8080, "10.0.1.1 here ready")))),
		checked(32002, at(9, service("d"))),
		other, plain)
	if got, want := healthChecks(table), "b 32000:0, d 32002:0"; got != want {
		t.Errorf("health checks %q, expected %q", got, want)
	}
	var lost []string
	for _, n := range notes {
		if strings.Contains(n.Detail, "health check") {
			lost = append(lost, n.String())
		}
	}
	want := []string{
		"Service default/a: AddressConflict: health check node port 32000 already belongs to Service default/b, which is older; this Service does not get it",
		"Service default/c: AddressConflict: health check node port 32000 already belongs to Service default/b, which is older; this Service does not get it",
	}
	if !slices.Equal(lost, want) {
		t.Errorf("notes %q, expected %q", lost, want)
	}
}

// TestHealthChecksMemo: with a memo the counts are those of the new snapshot.
func TestHealthChecksMemo(t *testing.T) {
	node := &cluster.Node{Name: "here"}
	kept := checked(32000, service("kept", slice(8080, "10.0.1.1 here ready")))
	snapshot := func(services ...*cluster.Service) *cluster.Snapshot {
		return &cluster.Snapshot{Nodes: []*cluster.Node{node}, Services: services}
	}
	c := proxy.Config{NodeName: "here"}
	first, _ := proxy.Plan(snapshot(kept, checked(32001, service("web", slice(8080, "10.0.1.2 here ready")))), cluster.IPv4, c, nil)
	second, _ := proxy.Plan(snapshot(kept, checked(32001, service("web"))), cluster.IPv4, c, first)
	third, _ := proxy.Plan(snapshot(kept, service("web")), cluster.IPv4, c, second)
	for i, want := range []string{"kept 32000:1, web 32001:1", "kept 32000:1, web 32001:0", "kept 32000:1"} {
		if got := healthChecks([]*proxy.Table{first, second, third}[i]); got != want {
			t.Errorf("table %d has %q, expected %q", i, got, want)
		}
	}
}
