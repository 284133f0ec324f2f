package proxy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// portText shows what a port does in the words of these tests.
func portText(p *proxy.Port) string {
	list := func(backends []proxy.Backend) string {
		var s []string
		for _, b := range backends {
			s = append(s, b.Addr.String())
		}
		return strings.Join(s, " ")
	}
	return fmt.Sprintf("%s %v node port %d external %v balancer %v, %s/%s cluster [%s] local [%s]", p.Name, p.ClusterIP, p.NodePort,
		p.ExternalIPs, p.LoadBalancerIPs, p.Internal, p.External, list(p.Cluster), list(p.Local))
}

// A refused Service keeps of its older value what it still is, and nothing that it is not any more.
func TestKeeping(t *testing.T) {
	build := func(change func(*cluster.Service), endpoints ...string) *cluster.Service {
		s := service("web", slice(8080, endpoints...))
		s.Ports[0].NodePort = 30080
		s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}
		if change != nil {
			change(s)
		}
		return s
	}
	other := service("a-other", slice(1, "10.0.3.1 ready"))
	other.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2")
	old := build(nil, "10.0.1.1 here ready", "10.0.2.1 ready", "10.0.2.2 ready")
	before, _ := plan(other, old)
	oldPorts := before.Ports[1:]
	const addresses = "10.96.0.1 node port 30080 external [] balancer [203.0.113.1 203.0.113.2]"
	for _, c := range []struct {
		name string
		next *cluster.Service
		want string // "" for nothing
	}{
		{"the form changed alone", build(func(s *cluster.Service) { s.Affinity = 5 }, "10.0.1.1 here ready", "10.0.2.1 ready", "10.0.2.2 ready"),
			addresses + ", cluster/cluster cluster [10.0.1.1:8080 10.0.2.1:8080 10.0.2.2:8080] local []"},
		{"endpoints came, went and ended", build(nil, "10.0.1.1 here terminating", "10.0.2.2 serving terminating", "10.0.2.9 ready"),
			addresses + ", cluster/cluster cluster [10.0.2.2:8080] local []"},
		{"all others", build(nil, "10.0.2.9 ready"), ""},
		{"policy Local", build(func(s *cluster.Service) { s.ExternalTrafficPolicy = cluster.PolicyLocal }, "10.0.2.1 ready"),
			addresses + ", cluster/cluster cluster [10.0.2.1:8080] local []"},
		{"another node port, an address less", build(func(s *cluster.Service) { s.Ports[0].NodePort, s.LoadBalancerIPs = 30081, s.LoadBalancerIPs[1:] }, "10.0.2.1 ready"),
			"10.96.0.1 node port 0 external [] balancer [203.0.113.2], cluster/cluster cluster [10.0.2.1:8080] local []"},
		{"other sources", build(func(s *cluster.Service) {
			s.LoadBalancerSourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		}, "10.0.2.1 ready"),
			"10.96.0.1 node port 30080 external [] balancer [], cluster/cluster cluster [10.0.2.1:8080] local []"},
		{"another name", build(func(s *cluster.Service) { s.Ports[0].Name, s.Slices[0].Ports[0].Name = "web", "web" }, "10.0.2.1 ready"),
			addresses + ", cluster/cluster cluster [10.0.2.1:8080] local []"},
		{"another port", build(func(s *cluster.Service) { s.Ports[0].Port = 81 }, "10.0.2.1 ready"), ""},
		{"another protocol", build(func(s *cluster.Service) {
			s.Ports[0].Protocol, s.Slices[0].Ports[0].Protocol = cluster.SCTP, cluster.SCTP
		}, "10.0.2.1 ready"), ""},
	} {
		next, _ := plan(other, c.next)
		kept := next.Keeping(map[cluster.Ref]proxy.Earlier{c.next.Ref(): {Ports: oldPorts}})
		if len(kept.Ports) == 0 || kept.Ports[0] != next.Ports[0] {
			t.Fatalf("%s: the other Service is not as planned", c.name)
		}
		got := ""
		for _, p := range kept.Ports[1:] {
			got += strings.TrimPrefix(portText(p), "default/web:http ")
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if bare := next.Keeping(map[cluster.Ref]proxy.Earlier{c.next.Ref(): {}}); len(bare.Ports) != 1 {
			t.Errorf("%s: without older ports there are %d", c.name, len(bare.Ports))
		}
		if next.Keeping(nil) != next {
			t.Errorf("%s: with nobody refused it is another Table", c.name)
		}
	}
	same, _ := plan(other, build(nil, "10.0.1.1 here ready", "10.0.2.1 ready", "10.0.2.2 ready", "10.0.2.3 ready"))
	if kept := same.Keeping(map[cluster.Ref]proxy.Earlier{old.Ref(): {Ports: oldPorts}}); !slices.Equal(kept.Ports[1:], oldPorts) {
		t.Error("a port of which nothing went is another one")
	}

	moved, _ := plan(other, build(nil, "10.0.2.9 ready"))
	if kept := moved.Keeping(map[cluster.Ref]proxy.Earlier{old.Ref(): {Ports: oldPorts, Whole: true}}); !slices.Equal(kept.Ports[1:], oldPorts) {
		t.Error("kept whole it is another one")
	}

	local := build(func(s *cluster.Service) {
		s.ExternalTrafficPolicy, s.InternalTrafficPolicy = cluster.PolicyLocal, cluster.PolicyLocal
	}, "10.0.1.1 here ready", "10.0.2.1 ready")
	before, _ = plan(local)
	next, _ := plan(build(nil, "10.0.2.1 ready"))
	kept := next.Keeping(map[cluster.Ref]proxy.Earlier{local.Ref(): {Ports: before.Ports}})
	if got := portText(kept.Ports[0]); !strings.HasSuffix(got, ", drop/drop cluster [10.0.2.1:8080] local []") {
		t.Errorf("the last endpoint here went: %s", got)
	}
}
