package bgp

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// TestKubeRouter: a Node's annotations stand beside the configuration, or in its place, and do not count unless it says so.
func TestKubeRouter(t *testing.T) {
	router := cluster.KubeRouterPeer{Address: ip("192.0.2.1"), ASN: 64500}
	for _, c := range []struct {
		name  string
		node  cluster.KubeRouterNode
		vary  func(*Config)
		want  []string
		not   []string
		notes string
	}{
		{name: "its peers, from the node's own address and with both of its families", node: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{router, {Address: ip("2001:db8::1"), ASN: 64501, LocalAddress: ip("2001:db8::99"), Port: 1790, Password: cluster.NewSecret("hunter2")}}},
			want: []string{"AS 64512 ", "peer 192.0.2.1:179 AS 64500 IPv4 IPv6 from 192.0.2.11 hold 30s", "peer [2001:db8::1]:1790 AS 64501 IPv4 IPv6 from 2001:db8::99 password hold 30s", "fd00:1::/64 via 2001:db8::11 # PodCIDR"}},
		{name: "not where the configuration has peers for the node", node: cluster.KubeRouterNode{ASN: 64513, Peers: []cluster.KubeRouterPeer{router}},
			vary: func(c *Config) { c.Peers = []PeerConfig{{peer("192.0.2.7"), []string{"rack=r1"}}} }, want: []string{"AS 64513 ", "peer 192.0.2.7:179"}, not: []string{"192.0.2.1:179"}},
		{name: "but where it has some for others", node: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{router}},
			vary: func(c *Config) { c.Peers = []PeerConfig{{peer("192.0.2.7"), []string{"rack=r2"}}} }, want: []string{"peer 192.0.2.1:179"}, not: []string{"192.0.2.7:179"}},
		{name: "they do not count", node: cluster.KubeRouterNode{ASN: 64513, Peers: []cluster.KubeRouterPeer{router}, Communities: []uint32{7}, Prepend: 2, PrependASN: 64513, Notes: []cluster.Note{{Detail: "x"}}},
			vary: func(c *Config) { c.KubeRouter = nil }, want: []string{"AS 64512 ", "10.244.1.0/24 # PodCIDR"}, not: []string{"peer "}},
		{name: "communities and path, also of what only a Service asks for", node: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{router}, Communities: []uint32{7}, Prepend: 2, PrependASN: 64512},
			want: []string{"10.244.1.0/24 communities 0:7 prepend 2 # PodCIDR", "10.96.0.13/32 communities 0:7 prepend 2 # ClusterIP of default/always"}},
		{name: "somebody else's number in the path", node: cluster.KubeRouterNode{Peers: []cluster.KubeRouterPeer{router}, Prepend: 2, PrependASN: 65000}, want: []string{"10.244.1.0/24 prepend 2 # PodCIDR"},
			notes: "path-prepend.as has 65000, and the path is prepended with the node's own ASN 64512"},
		{name: "no longer path for an iBGP peer", node: cluster.KubeRouterNode{ASN: 64500, Peers: []cluster.KubeRouterPeer{router}, Prepend: 2, PrependASN: 64500}, want: []string{"10.244.1.0/24 # PodCIDR"},
			notes: "path-prepend.as does not count: a peer of this node has its own ASN 64500"},
		{name: "its notes", node: cluster.KubeRouterNode{Notes: []cluster.Note{{Detail: "no BFD"}}}, notes: "no BFD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defaults := peer("192.0.2.1")
			config := Config{NodeName: "n1", ASN: 64512, Announce: []Announcement{announce(PodCIDRs)}, KubeRouter: &Peer{Port: 179, HoldTime: defaults.HoldTime, KeepaliveTime: defaults.KeepaliveTime, ConnectRetryTime: defaults.ConnectRetryTime}}
			if c.vary != nil {
				c.vary(&config)
			}
			before := config.Announce[0].Attributes
			table, notes := Plan(snapshot(func(n *cluster.Node) { n.KubeRouter = &c.node }), config, pods, vips())
			text := table.Lines()
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is missing in\n%s", want, text)
				}
			}
			for _, not := range append(c.not, "hunter2") {
				if strings.Contains(text, not) {
					t.Errorf("%q is in\n%s", not, text)
				}
			}
			if got := len(notes); got > 1 || (got == 1) != (c.notes != "") || got == 1 && !strings.Contains(notes[0].Detail, c.notes) {
				t.Errorf("the notes are %v, expected %q", notes, c.notes)
			}
			if !before.equal(&config.Announce[0].Attributes) {
				t.Error("the configuration was changed")
			}
		})
	}
}

// TestKubeRouterServices: a Service's annotations decide for each kind of address alone, and fairway's own wins.
func TestKubeRouterServices(t *testing.T) {
	yes := &cluster.KubeRouterService{ClusterIPs: cluster.Yes}
	no := &cluster.KubeRouterService{LoadBalancerIPs: cluster.No}
	for _, c := range []struct {
		name    string
		service *cluster.Service
		counts  bool
		want    string
	}{
		{"none", service("a", ""), true, "203.0.113.1/32"},
		{"yes", &cluster.Service{KubeRouter: yes}, true, "10.96.0.1/32 203.0.113.1/32"},
		{"no", &cluster.Service{KubeRouter: no}, true, ""},
		{"not counted", &cluster.Service{KubeRouter: no}, false, "203.0.113.1/32"},
		{"fairway's own", &cluster.Service{KubeRouter: no, Announce: cluster.AnnounceChoice{Given: true, LoadBalancerIPs: true}}, true, "203.0.113.1/32"},
	} {
		config := Config{NodeName: "n1", ASN: 64512, Announce: []Announcement{announce(LoadBalancerIPs)}}
		if c.counts {
			config.KubeRouter = &Peer{}
		}
		table, _ := Plan(snapshot(nil), config, &routes.Table{}, []VIP{{Addr: ip("10.96.0.1"), Kind: ClusterIPs, Service: c.service}, {Addr: ip("203.0.113.1"), Kind: LoadBalancerIPs, Service: c.service}})
		var got []string
		for _, p := range table.Paths {
			got = append(got, p.Prefix.String())
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %q, expected %q", c.name, s, c.want)
		}
	}
}

// TestKubeRouterImportReject: what a Node's annotation rejects is part of its Table when annotations count.
func TestKubeRouterImportReject(t *testing.T) {
	node := func(n *cluster.Node) {
		n.KubeRouter = &cluster.KubeRouterNode{ImportReject: []netip.Prefix{pfx("172.16.0.0/16")}}
	}
	for _, counts := range []bool{false, true} {
		config := Config{NodeName: "n1", ASN: 64512}
		if counts {
			config.KubeRouter = &Peer{}
		}
		table, _ := Plan(snapshot(node), config, pods, nil)
		if got := len(table.ImportReject) == 1; got != counts {
			t.Errorf("annotations count: %v, and %v is rejected", counts, table.ImportReject)
		}
	}
}
