package proxy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// TestNodePorts: at which addresses node ports are.
func TestNodePorts(t *testing.T) {
	link := func(name string, addrs ...string) cluster.Link {
		l := cluster.Link{Name: name}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
		}
		return l
	}
	host := &cluster.Host{Links: []cluster.Link{
		link("lo", "127.0.0.1/8", "::1/128"),
		link("eth0", "192.168.0.3/24", "192.168.0.2/24", "fd00:192:168::2/64"),
		link("cni0", "10.244.1.1/24", "fd00:10:244:1::1/64"),
	}}
	self := &cluster.Node{Name: "here", InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("fd00:192:168::2")}}
	for _, c := range []struct {
		name   string
		policy *proxy.NodePortPolicy
		host   *cluster.Host
		node   *cluster.Node
		want   [2]string
	}{
		{"no policy", nil, host, self, [2]string{"everywhere", "everywhere"}},
		{"localhost", &proxy.NodePortPolicy{Localhost: true}, host, self, [2]string{"everywhere localhost", "everywhere"}},
		{"all of IPv4, with others", policy(true, "192.168.0.0/24", "0.0.0.0/0"), host, self, [2]string{"everywhere localhost", "everywhere"}},
		{"one address; the other family has all", policy(true, "192.168.0.2/32"), host, self, [2]string{"[192.168.0.2]", "everywhere"}},
		{"networks", policy(true, "192.168.0.0/24", "10.0.0.0/8", "fd00:192::/32"), host, self, [2]string{"[10.244.1.1 192.168.0.2 192.168.0.3]", "[fd00:192:168::2]"}},
		{"loopback", policy(true, "127.0.0.0/8", "::1/128"), host, self, [2]string{"[127.0.0.1] localhost", "[]"}},
		{"loopback, but not localhost", policy(false, "127.0.0.0/8", "192.168.0.2/32"), host, self, [2]string{"[192.168.0.2]", "everywhere"}},
		{"none that the machine has", policy(true, "203.0.113.0/24"), host, self, [2]string{"[]", "everywhere"}},
		{"offline", policy(true, "192.168.0.0/24"), nil, self, [2]string{"[192.168.0.2]", "everywhere"}},
		{"primary", &proxy.NodePortPolicy{Primary: true, Localhost: true}, host, self, [2]string{"[192.168.0.2]", "[fd00:192:168::2]"}},
		{"primary without an address", &proxy.NodePortPolicy{Primary: true}, host, &cluster.Node{Name: "here"}, [2]string{"[] noted", "[] noted"}},
		{"primary without a Node", &proxy.NodePortPolicy{Primary: true}, host, &cluster.Node{Name: "there"}, [2]string{"[]", "[]"}},
		{"primary of one family", &proxy.NodePortPolicy{Primary: true}, host, &cluster.Node{Name: "here", ExternalIPs: self.InternalIPs[:1]}, [2]string{"[192.168.0.2]", "[]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &cluster.Snapshot{Nodes: []*cluster.Node{c.node}, Host: c.host}
			for i, f := range cluster.Families {
				table, notes := proxy.Plan(s, f, proxy.Config{NodeName: "here", NodePorts: c.policy}, nil)
				got := fmt.Sprint(table.NodePorts.Addrs)
				if table.NodePorts.Everywhere {
					got = strings.Replace(got, "[]", "everywhere", 1)
				}
				if table.NodePorts.Localhost {
					got += " localhost"
				}
				if len(notes) > 0 {
					got += " noted"
				}
				if got != c.want[i] {
					t.Errorf("%s: %s, expected %s", f, got, c.want[i])
				}
			}
		})
	}
}

func policy(localhost bool, networks ...string) *proxy.NodePortPolicy {
	p := &proxy.NodePortPolicy{Localhost: localhost}
	for _, n := range networks {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(n))
	}
	return p
}

// TestRangesOfTable: what the configuration and the cluster say of ClusterIPs' networks counts together, by family.
func TestRangesOfTable(t *testing.T) {
	s := &cluster.Snapshot{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.32.0.0/24"), netip.MustParsePrefix("fd00:96::/112")}}
	c := proxy.Config{NodeName: "here", Addresses: &proxy.AddressPolicy{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}}
	for i, want := range []string{"[10.32.0.0/24 10.96.0.0/12]", "[fd00:96::/112]"} {
		table, _ := proxy.Plan(s, cluster.Families[i], c, nil)
		if got := fmt.Sprint(table.ServiceRanges); got != want || !table.RejectUnknown {
			t.Errorf("%s: ranges are %s (rejected: %v), expected %s", cluster.Families[i], got, table.RejectUnknown, want)
		}
	}
}
