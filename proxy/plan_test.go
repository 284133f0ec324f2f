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

// An endpoint in the words of these tests: "10.0.1.1 here ready", with node and conditions as words.
func endpoint(text string) cluster.Endpoint {
	words := strings.Fields(text)
	e := cluster.Endpoint{Addr: netip.MustParseAddr(words[0]), NodeName: "there"}
	for _, w := range words[1:] {
		switch w {
		case "here":
			e.NodeName = "here"
		case "anywhere":
			e.NodeName = ""
		case "ready":
			e.Ready, e.Serving = true, true
		case "serving":
			e.Serving = true
		case "terminating":
			e.Terminating = true
		default:
			panic("unknown word " + w)
		}
	}
	return e
}

func slice(port uint16, endpoints ...string) *cluster.EndpointSlice {
	s := &cluster.EndpointSlice{Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: port}}}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(e))
	}
	return s
}

func service(name string, slices ...*cluster.EndpointSlice) *cluster.Service {
	return &cluster.Service{Namespace: "default", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}, Slices: slices}
}

func plan(services ...*cluster.Service) (*proxy.Table, []cluster.Note) {
	s := &cluster.Snapshot{Services: services, Nodes: []*cluster.Node{{Name: "here", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}}}}
	return proxy.Plan(s, cluster.IPv4, proxy.Config{NodeName: "here"}, nil)
}

func TestBackends(t *testing.T) {
	for _, c := range []struct {
		name   string
		slices []*cluster.EndpointSlice
		want   string // backends in order; those that may be here have a star
	}{
		{"no slice", nil, ""},
		{"ready ones", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 ready", "10.0.2.2 serving", "10.0.2.3")}, "10.0.2.1:8080"},
		{"in the order of their text", []*cluster.EndpointSlice{slice(8080, "10.0.2.2 ready", "10.0.2.10 ready")}, "10.0.2.10:8080 10.0.2.2:8080"},
		{"ready though terminating", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 ready terminating", "10.0.2.2 serving terminating")}, "10.0.2.1:8080"},
		{"only terminating ones", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 serving terminating", "10.0.2.2 terminating")}, "10.0.2.1:8080"},
		{"none at all", []*cluster.EndpointSlice{slice(8080, "10.0.2.1", "10.0.2.2 terminating")}, ""},
		{"one in two slices", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 ready"), slice(8080, "10.0.2.1 ready")}, "10.0.2.1:8080"},
		{"on two ports", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 ready"), slice(8081, "10.0.2.1 ready")}, "10.0.2.1:8080 10.0.2.1:8081"},
		{"ready wins over terminating", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 serving terminating", "10.0.2.2 serving terminating"), slice(8080, "10.0.2.1 ready")}, "10.0.2.1:8080"},
		{"ready wins over unready, first", []*cluster.EndpointSlice{slice(8080, "10.0.2.1 ready"), slice(8080, "10.0.2.1")}, "10.0.2.1:8080"},
		{"ready wins over unready, last", []*cluster.EndpointSlice{slice(8080, "10.0.2.1"), slice(8080, "10.0.2.1 ready")}, "10.0.2.1:8080"},
		{"here by node, podCIDR, node address and for want of knowing better",
			[]*cluster.EndpointSlice{slice(8080, "172.16.0.1 here ready", "10.0.1.9 ready", "192.168.0.1 ready", "172.16.0.2 anywhere ready", "172.16.0.3 ready")},
			"10.0.1.9:8080* 172.16.0.1:8080* 172.16.0.2:8080* 172.16.0.3:8080 192.168.0.1:8080*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, notes := plan(service("web", c.slices...))
			var got []string
			for _, b := range table.Ports[0].Cluster {
				text := b.Addr.String()
				if b.Local {
					text += "*"
				}
				got = append(got, text)
			}
			if strings.Join(got, " ") != c.want || len(notes) > 0 {
				t.Errorf("got %q %v, expected %q", got, notes, c.want)
			}
		})
	}
}

// TestPolicies: what the two policies make of where the endpoints are.
func TestPolicies(t *testing.T) {
	const local, everywhere = cluster.PolicyLocal, cluster.PolicyCluster
	for _, c := range []struct {
		name               string
		internal, external cluster.TrafficPolicy
		nodePort           uint16
		endpoints          []string
		want               string // internal, external, cluster list, local list
	}{
		{"both Cluster", everywhere, everywhere, 30000, []string{"10.0.2.1 ready", "10.0.1.1 here ready"}, "cluster cluster [10.0.1.1 10.0.2.1] []"},
		{"internal Local", local, everywhere, 0, []string{"10.0.2.1 ready", "10.0.1.1 here ready"}, "local cluster [] [10.0.1.1]"},
		{"internal Local with a node port", local, everywhere, 30000, []string{"10.0.2.1 ready", "10.0.1.1 here ready"}, "local cluster [10.0.1.1 10.0.2.1] [10.0.1.1]"},
		{"external Local", everywhere, local, 30000, []string{"10.0.2.1 ready", "10.0.1.1 here ready"}, "cluster local [10.0.1.1 10.0.2.1] [10.0.1.1]"},
		{"external Local without a node port", everywhere, local, 0, []string{"10.0.1.1 here ready"}, "cluster local [10.0.1.1] []"},
		{"none here", local, local, 30000, []string{"10.0.2.1 ready"}, "drop drop [10.0.2.1] []"},
		{"none anywhere", local, local, 30000, []string{"10.0.1.1 here"}, "reject reject [] []"},
		{"only a terminating one here", local, local, 30000, []string{"10.0.2.1 ready", "10.0.1.1 here serving terminating"}, "local local [10.0.2.1] [10.0.1.1]"},
		{"an unready one here", local, everywhere, 0, []string{"10.0.2.1 ready", "10.0.1.1 here"}, "drop cluster [] []"},
		{"one of nobody's node is not here", local, everywhere, 0, []string{"10.0.1.1 anywhere ready"}, "drop cluster [] []"},
		{"all terminating", everywhere, local, 30000, []string{"10.0.2.1 serving terminating"}, "cluster drop [10.0.2.1] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			svc := service("web", slice(8080, c.endpoints...))
			svc.InternalTrafficPolicy, svc.ExternalTrafficPolicy, svc.Ports[0].NodePort = c.internal, c.external, c.nodePort
			table, _ := plan(svc)
			p := table.Ports[0]
			if got := fmt.Sprint(p.Internal, " ", p.External, " ", addresses(p.Cluster), " ", addresses(p.Local)); got != c.want {
				t.Errorf("got %s, expected %s", got, c.want)
			}
		})
	}
}

func addresses(backends []proxy.Backend) (list []netip.Addr) {
	for _, b := range backends {
		list = append(list, b.Addr.Addr())
	}
	return list
}

// TestHints: topology hints decide only when every ready endpoint has them and one is for this node or its zone.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		name  string
		zone  string
		hints []string // of 10.0.2.1, 10.0.2.2, …: zones, and nodes with "@", separated by commas
		want  string
	}{
		{"none", "z1", []string{"", ""}, "[10.0.2.1 10.0.2.2]"},
		{"zones", "z1", []string{"z1", "z2", "z2,z1"}, "[10.0.2.1 10.0.2.3]"},
		{"one without", "z1", []string{"z1", ""}, "[10.0.2.1 10.0.2.2]"},
		{"none for our zone", "z3", []string{"z1", "z2"}, "[10.0.2.1 10.0.2.2]"},
		{"no zone", "", []string{"z1", "z2"}, "[10.0.2.1 10.0.2.2]"},
		{"nodes", "z1", []string{"@here", "@there"}, "[10.0.2.1]"},
		{"nodes come before zones", "z1", []string{"z1,@there", "z2,@here"}, "[10.0.2.2]"},
		{"no node of ours, so zones", "z1", []string{"z1,@there", "z2,@there"}, "[10.0.2.1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := slice(8080)
			for i, hints := range c.hints {
				e := endpoint(fmt.Sprintf("10.0.2.%d ready", i+1))
				for _, h := range strings.Split(hints, ",") {
					if node, isNode := strings.CutPrefix(h, "@"); isNode {
						e.ForNodes = append(e.ForNodes, node)
					} else if h != "" {
						e.ForZones = append(e.ForZones, h)
					}
				}
				s.Endpoints = append(s.Endpoints, e)
			}
			snapshot := &cluster.Snapshot{Services: []*cluster.Service{service("web", s)}, Nodes: []*cluster.Node{{Name: "here", Zone: c.zone}}}
			table, _ := proxy.Plan(snapshot, cluster.IPv4, proxy.Config{NodeName: "here"}, nil)
			if got := fmt.Sprint(addresses(table.Ports[0].Cluster)); got != c.want {
				t.Errorf("got %s, expected %s", got, c.want)
			}
			moved := *snapshot
			moved.Nodes = []*cluster.Node{{Name: "here", Zone: "z9"}}
			again, _ := proxy.Plan(&moved, cluster.IPv4, proxy.Config{NodeName: "here"}, table)
			fresh, _ := proxy.Plan(&moved, cluster.IPv4, proxy.Config{NodeName: "here"}, nil)
			if got, want := fmt.Sprint(addresses(again.Ports[0].Cluster)), fmt.Sprint(addresses(fresh.Ports[0].Cluster)); got != want {
				t.Errorf("after the node got another zone %s, expected %s", got, want)
			}
		})
	}
}

// TestConflicts: of several Services that claim the same, the oldest has it; among those of one second the first by name.
func TestConflicts(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	claim := func(name string, age time.Duration, nodePort uint16) *cluster.Service {
		s := service(name, slice(8080, "10.0.2.1 ready"))
		s.Created = start.Add(-age)
		s.Ports[0].NodePort = nodePort
		return s
	}
	other := claim("other", 0, 30001)
	other.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2")
	table, notes := plan(claim("a", time.Hour, 30000), claim("b", 2*time.Hour, 30000), claim("c", 2*time.Hour, 30000), claim("d", time.Minute, 30001), other)
	served := func(table *proxy.Table) string {
		var addresses, nodePorts []string
		for _, p := range table.Ports {
			if p.ClusterIP.IsValid() {
				addresses = append(addresses, p.Name.Service)
			}
			if p.NodePort != 0 {
				nodePorts = append(nodePorts, p.Name.Service)
			}
		}
		return fmt.Sprint(addresses, nodePorts)
	}
	if got := served(table); got != "[b other] [b d]" {
		t.Errorf("served are %s, expected [b other] [b d]", got)
	}
	var told []string
	for _, n := range notes {
		if n.Reason != cluster.ReasonAddressConflict || !strings.Contains(n.Detail, "default/b") && n.Object.Name != "other" {
			t.Errorf("note %v, expected one that names the oldest", n)
		}
		told = append(told, n.Object.Name)
	}
	slices.Sort(told)
	if got := strings.Join(told, " "); got != "a a c c d other" {
		t.Errorf("notes are about %s: %v", got, notes)
	}
}

func TestLocalTraffic(t *testing.T) {
	pods := proxy.PairOf([]netip.Prefix{netip.MustParsePrefix("fd00::/48"), netip.MustParsePrefix("10.0.0.0/16")})
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: "here", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}}}
	for _, c := range []struct {
		config proxy.Config
		family cluster.Family
		want   proxy.LocalTraffic
	}{
		{proxy.Config{ClusterCIDRs: pods}, cluster.IPv4, proxy.LocalTraffic{CIDR: netip.MustParsePrefix("10.0.0.0/16")}},
		{proxy.Config{ClusterCIDRs: pods}, cluster.IPv6, proxy.LocalTraffic{CIDR: netip.MustParsePrefix("fd00::/48")}},
		{proxy.Config{}, cluster.IPv4, proxy.LocalTraffic{}},
		{proxy.Config{Detect: proxy.DetectNodeCIDR}, cluster.IPv4, proxy.LocalTraffic{CIDR: netip.MustParsePrefix("10.0.1.0/24")}},
		{proxy.Config{Detect: proxy.DetectNodeCIDR}, cluster.IPv6, proxy.LocalTraffic{}},
		{proxy.Config{Detect: proxy.DetectBridgeInterface, Interface: "cni0"}, cluster.IPv6, proxy.LocalTraffic{Interface: "cni0"}},
		{proxy.Config{Detect: proxy.DetectInterfaceNamePrefix, Interface: "veth"}, cluster.IPv4, proxy.LocalTraffic{Interface: "veth+"}},
		{proxy.Config{Detect: proxy.DetectInterfaceNamePrefix, Interface: "veth+"}, cluster.IPv4, proxy.LocalTraffic{Interface: "veth+"}},
	} {
		c.config.NodeName = "here"
		table, _ := proxy.Plan(s, c.family, c.config, nil)
		if table.Local != c.want || table.Local.Known() != (c.want != proxy.LocalTraffic{}) {
			t.Errorf("%+v, %s: %+v, expected %+v", c.config, c.family, table.Local, c.want)
		}
	}
}
