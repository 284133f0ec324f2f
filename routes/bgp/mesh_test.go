package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// meshSession is what sessions between nodes are like.
func meshSession() Peer {
	p := peer("192.0.2.1")
	p.Address, p.ASN, p.Families = netip.Addr{}, 0, [2]bool{}
	return p
}

// member returns a node with these addresses and labels, and a podCIDR of each family.
func member(i int, labels string, addresses ...string) *cluster.Node {
	n := &cluster.Node{Name: fmt.Sprintf("w%d", i), PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24), pfx(fmt.Sprintf("fd00:%d::/64", i))}}
	for _, a := range addresses {
		n.InternalIPs = append(n.InternalIPs, ip(a))
	}
	if labels != "" {
		n.Labels = strings.Split(labels, " ")
	}
	return n
}

// tables are what all nodes of a Snapshot plan.
func tables(t *testing.T, s *cluster.Snapshot, c Config) (map[string]*Table, map[string][]cluster.Note) {
	t.Helper()
	byNode, notes := map[string]*Table{}, map[string][]cluster.Note{}
	for _, n := range s.Nodes {
		c.NodeName = n.Name
		pods, _ := routes.Plan(s, routes.Config{NodeName: n.Name})
		byNode[n.Name], notes[n.Name] = Plan(s, c, pods, nil)
	}
	return byNode, notes
}

// sessionsOf returns who has a session with whom, by the Tables, as "w1-w2"; every session that one end expects, the other must, too.
func sessionsOf(t *testing.T, byNode map[string]*Table) (pairs []string) {
	t.Helper()
	for name, table := range byNode {
		for _, p := range table.Peers {
			if p.Node == "" {
				continue
			}
			i := slices.IndexFunc(byNode[p.Node].Peers, func(o Peer) bool { return o.Node == name })
			if i < 0 {
				t.Errorf("%s expects a session with %s, which does not", name, p.Node)
				continue
			}
			o := byNode[p.Node].Peers[i]
			if o.Address != p.LocalAddress || o.LocalAddress != p.Address || o.ASN != table.ASN || o.Families != p.Families || o.Passive == p.Passive ||
				o.Port != p.Port || o.PasswordFile != p.PasswordFile || o.HoldTime != p.HoldTime || o.KeepaliveTime != p.KeepaliveTime {
				t.Errorf("%s and %s disagree:\n%s\n%s", name, p.Node, p, o)
			}
			if o.ClusterID.IsValid() && p.ClusterID.IsValid() {
				t.Errorf("%s and %s are clients of each other", name, p.Node)
			}
			// Whoever is asked to keep routes can do it, and is a reflector.
			if (p.RestartTime > 0) != byNode[p.Node].Reflects || p.RestartTime > 0 && !o.Helps && o.RestartTime == 0 {
				t.Errorf("%s asks %s to keep its routes: %s, %s", name, p.Node, p.RestartTime, o)
			}
			if name < p.Node {
				pairs = append(pairs, name+"-"+p.Node)
			}
		}
	}
	slices.Sort(pairs)
	return pairs
}

func TestMesh(t *testing.T) {
	dual := func(i int, labels string) *cluster.Node {
		return member(i, labels, fmt.Sprintf("192.0.2.1%d", i), fmt.Sprintf("2001:db8::1%d", i))
	}
	four := []*cluster.Node{dual(1, "rr="), dual(2, "rr="), dual(3, "role=worker"), dual(4, "role=worker")}
	reflectors := &MeshConfig{Session: meshSession(), ReflectorSelector: []string{"rr="}}
	for _, c := range []struct {
		name  string
		nodes []*cluster.Node
		mesh  *MeshConfig
		vary  func(*Config)
		want  []string
		// notes are those of w1, each a part of one, in order.
		notes []string
		// w1 are lines that w1's Table has.
		w1 []string
	}{{
		name: "full mesh", nodes: four[:3], mesh: &MeshConfig{Session: meshSession()},
		want: []string{"w1-w2", "w1-w3", "w2-w3"},
		w1:   []string{"peer 192.0.2.12:179 AS 64512 IPv4 IPv6 from 192.0.2.11 hold 30s keepalive 10s retry 5s passive # node w2\n"},
	}, {
		name: "some nodes take part", nodes: four, mesh: &MeshConfig{Session: meshSession(), NodeSelector: []string{"role=worker"}},
		want: []string{"w3-w4"},
	}, {
		name: "reflectors", nodes: four, mesh: reflectors,
		want: []string{"w1-w2", "w1-w3", "w1-w4", "w2-w3", "w2-w4"},
		w1: []string{
			"peer 192.0.2.12:179 AS 64512 IPv4 IPv6 from 192.0.2.11 hold 30s keepalive 10s retry 5s graceful-restart 2m0s passive # node w2 with 10.244.2.0/24 with fd00:2::/64\n",
			"peer 192.0.2.13:179 AS 64512 IPv4 IPv6 from 192.0.2.11 hold 30s keepalive 10s retry 5s graceful-restart helper passive client of cluster 192.0.2.11 # node w3 with 10.244.3.0/24 with fd00:3::/64\n",
			"reflect 10.96.0.0/16 ge 16 le 16\nreflect 10.96.0.0/16 ge 32 le 32\nreflect 203.0.113.0/24 ge 32 le 32\n",
			"peer 192.0.2.1:179 AS 64512 IPv4 hold 30s keepalive 10s retry 5s graceful-restart 2m0s client of cluster 192.0.2.11\n",
			"peer 192.0.2.2:179 AS 64500 IPv4 hold 30s keepalive 10s retry 5s graceful-restart 2m0s\n",
		},
		vary: func(c *Config) {
			inside := peer("192.0.2.1")
			inside.ASN = 64512
			c.Peers = []PeerConfig{{Peer: inside}, {Peer: peer("192.0.2.2")}}
			c.ServiceCIDRs = []netip.Prefix{pfx("10.96.0.0/16")}
			c.Announce = []Announcement{announce(PodCIDRs, LoadBalancerIPs, ExternalIPs)}
			c.Mesh.ServiceRanges = map[Kind][]netip.Prefix{LoadBalancerIPs: {pfx("203.0.113.0/24")}}
		},
		notes: []string{"ExternalIPs are announced, but this route reflector does not pass them on, as nothing says where they are from; right would be externalIPs.ranges"},
	}, {
		name: "reflectors take part whatever the other selector says, and have one cluster ID", nodes: four,
		mesh: &MeshConfig{Session: meshSession(), NodeSelector: []string{"role=worker"}, ReflectorSelector: []string{"rr="}, ClusterID: ip("10.0.0.1")},
		want: []string{"w1-w2", "w1-w3", "w1-w4", "w2-w3", "w2-w4"},
		w1:   []string{"client of cluster 10.0.0.1 # node w3"},
	}, {
		name: "no node is a reflector", nodes: four[2:], mesh: reflectors,
	}, {
		name: "families", nodes: []*cluster.Node{
			member(1, "", "192.0.2.11", "2001:db8::11"), member(2, "", "2001:db8::12"), member(3, "", "192.0.2.13"), member(4, "", "2001:db8::14")},
		mesh:  &MeshConfig{Session: meshSession()},
		vary:  func(c *Config) { c.RouterID = ip("192.0.2.99") },
		want:  []string{"w1-w2", "w1-w3", "w1-w4", "w2-w4"},
		w1:    []string{"peer [2001:db8::12]:179 AS 64512 IPv6 from 2001:db8::11 ", "peer 192.0.2.13:179 AS 64512 IPv4 from"},
		notes: nil,
	}, {
		name: "nodes without an address, or with that of another or of a router",
		nodes: []*cluster.Node{
			dual(1, ""), member(2, ""), member(3, "", "192.0.2.11"), dual(4, ""), member(5, "", "192.0.2.14"), member(6, "", "192.0.2.1"), member(7, "", "169.254.1.1")},
		mesh: &MeshConfig{Session: meshSession(), NodeSelector: []string{}},
		vary: func(c *Config) { c.Peers = []PeerConfig{{Peer: peer("192.0.2.1")}} },
		notes: []string{
			"There is no session with node w3: its address 192.0.2.11 is also that of this node",
			"There is no session with node w5: its address 192.0.2.14 is also that of node w4",
			"There is no session with node w6: its address 192.0.2.1 is also that of a router in bgp.peers",
			"There is no session with nodes w2, w7: no InternalIP there",
		},
		want: nil,
	}, {
		name: "kube-router's annotations", nodes: []*cluster.Node{dual(1, ""), dual(2, ""), dual(3, ""), dual(4, "")},
		mesh: &MeshConfig{Session: meshSession()},
		vary: func(c *Config) {
			p := peer("192.0.2.1")
			c.KubeRouter = &p
		},
		want:  []string{"w1-w2", "w1-w3"},
		w1:    []string{"client of cluster 10.0.0.7 # node w2"},
		notes: []string{"There is no session with node w4: another autonomous system"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "kube-router's annotations" {
				c.nodes[0].KubeRouter = &cluster.KubeRouterNode{ReflectorClusterID: ip("10.0.0.7")}
				c.nodes[3].KubeRouter = &cluster.KubeRouterNode{ASN: 64999}
			}
			mesh := *c.mesh
			config := Config{ASN: 64512, ListenPort: 179, Announce: []Announcement{announce(PodCIDRs)}, Mesh: &mesh}
			if c.vary != nil {
				c.vary(&config)
			}
			byNode, notes := tables(t, &cluster.Snapshot{Nodes: c.nodes}, config)
			if c.want != nil {
				if got := sessionsOf(t, byNode); !slices.Equal(got, c.want) {
					t.Errorf("sessions %v, expected %v", got, c.want)
				}
			}
			for _, line := range c.w1 {
				if lines := byNode["w1"].Lines(); !strings.Contains(lines, line) {
					t.Errorf("w1 has no %q:\n%s", line, lines)
				}
			}
			if byNode["w1"] == nil {
				if len(notes["w3"]) != 1 || notes["w3"][0].Reason != cluster.ReasonBGPMeshIncomplete || len(byNode["w3"].Peers) > 0 {
					t.Errorf("without a reflector: %v, %v", notes["w3"], byNode["w3"].Peers)
				}
				return
			}
			if len(notes["w1"]) != len(c.notes) {
				t.Fatalf("Notes %v, expected %q", notes["w1"], c.notes)
			}
			for i, n := range notes["w1"] {
				if !strings.Contains(n.Detail, c.notes[i]) {
					t.Errorf("Note %q, expected %q", n.Detail, c.notes[i])
				}
			}
		})
	}
}

// TestMeshAgreement: whatever the nodes are like, both ends of each session expect it, and everybody reaches a reflector.
func TestMeshAgreement(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var nodes []*cluster.Node
		for i := range 1 + rnd.IntN(9) {
			var addresses, labels []string
			if rnd.IntN(4) > 0 {
				addresses = append(addresses, fmt.Sprintf("192.0.2.%d", 1+rnd.IntN(250)))
			}
			if rnd.IntN(3) > 0 {
				addresses = append(addresses, fmt.Sprintf("2001:db8::%x", 1+i))
			}
			for _, l := range []string{"part=", "rr="} {
				if rnd.IntN(2) > 0 {
					labels = append(labels, l)
				}
			}
			nodes = append(nodes, member(i+1, strings.Join(labels, " "), addresses...))
		}
		mesh := &MeshConfig{Session: meshSession()}
		if rnd.IntN(2) > 0 {
			mesh.NodeSelector = []string{"part="}
		}
		if rnd.IntN(2) > 0 {
			mesh.ReflectorSelector = []string{"rr="}
		}
		seen := map[netip.Addr]bool{}
		for _, n := range nodes { // who has whose address is told by a Note, and not here
			n.InternalIPs = slices.DeleteFunc(n.InternalIPs, func(a netip.Addr) bool { was := seen[a]; seen[a] = true; return was })
		}
		byNode, _ := tables(t, &cluster.Snapshot{Nodes: nodes}, Config{ASN: 64512, RouterID: ip("192.0.2.99"), Mesh: mesh})
		sessionsOf(t, byNode)
		for name, table := range byNode {
			if !slices.IsSortedFunc(table.Peers, func(a, b Peer) int { return a.Address.Compare(b.Address) }) {
				t.Errorf("%s: the peers are in no order", name)
			}
		}
	}
}

// TestMeshEdits: a node that comes, goes, gets other labels or another address changes its own session and no other's; a podCIDR resets none.
func TestMeshEdits(t *testing.T) {
	build := func() []*cluster.Node {
		return []*cluster.Node{member(1, "rr=", "192.0.2.11"), member(2, "rr=", "192.0.2.12"), member(3, "", "192.0.2.13"), member(4, "", "192.0.2.14")}
	}
	gateway := peer("192.0.2.1")
	gateway.ASN = 64512
	config := Config{NodeName: "w1", ASN: 64512, Mesh: &MeshConfig{Session: meshSession(), ReflectorSelector: []string{"rr="}}, Peers: []PeerConfig{{Peer: gateway}}}
	plan := func(nodes []*cluster.Node, c Config) *Table {
		s := &cluster.Snapshot{Nodes: nodes}
		pods, _ := routes.Plan(s, routes.Config{NodeName: c.NodeName})
		table, _ := Plan(s, c, pods, nil)
		return table
	}
	for _, e := range []struct {
		name string
		edit func([]*cluster.Node, *Config) []*cluster.Node
		want string
	}{
		{"nothing", func(n []*cluster.Node, _ *Config) []*cluster.Node { return n }, ""},
		{"one more", func(n []*cluster.Node, _ *Config) []*cluster.Node { return append(n, member(5, "", "192.0.2.15")) }, "add 192.0.2.15"},
		{"one less", func(n []*cluster.Node, _ *Config) []*cluster.Node { return n[:3] }, "remove 192.0.2.14"},
		{"another address", func(n []*cluster.Node, _ *Config) []*cluster.Node { n[2].InternalIPs[0] = ip("192.0.2.33"); return n }, "remove 192.0.2.13 add 192.0.2.33"},
		{"another podCIDR", func(n []*cluster.Node, _ *Config) []*cluster.Node { n[2].PodCIDRs[0] = pfx("10.244.33.0/24"); return n }, "update 192.0.2.13"},
		{"a client becomes a reflector", func(n []*cluster.Node, _ *Config) []*cluster.Node { n[2].Labels = []string{"rr="}; return n }, "reset 192.0.2.13"},
		{"this node is none any more", func(n []*cluster.Node, _ *Config) []*cluster.Node { n[0].Labels = nil; return n },
			"remove 192.0.2.13 192.0.2.14 reset 192.0.2.1 192.0.2.12"},
		{"cluster ID", func(n []*cluster.Node, c *Config) []*cluster.Node { c.Mesh.ClusterID = ip("10.0.0.1"); return n }, "reset 192.0.2.1 192.0.2.13 192.0.2.14"},
		{"hold time", func(n []*cluster.Node, c *Config) []*cluster.Node { c.Mesh.Session.HoldTime = time.Minute; return n }, "reset 192.0.2.12 192.0.2.13 192.0.2.14"},
		{"graceful restart", func(n []*cluster.Node, c *Config) []*cluster.Node { c.Mesh.Session.RestartTime = time.Minute; return n }, "reset 192.0.2.12"},
		{"maxPrefixes", func(n []*cluster.Node, c *Config) []*cluster.Node { c.Mesh.Session.MaxPrefixes = 7; return n }, "update 192.0.2.12 192.0.2.13 192.0.2.14"},
		{"no mesh", func(n []*cluster.Node, c *Config) []*cluster.Node { c.Mesh = nil; return n }, "remove 192.0.2.12 192.0.2.13 192.0.2.14 reset 192.0.2.1"},
	} {
		before := plan(build(), config)
		edited, mesh := config, *config.Mesh
		edited.Mesh = &mesh
		nodes := e.edit(build(), &edited)
		c := Diff(before, plan(nodes, edited))
		var words []string
		list := func(word string, addresses []netip.Addr) {
			if len(addresses) > 0 {
				words = append(words, word)
			}
			for _, a := range addresses {
				words = append(words, a.String())
			}
		}
		of := func(peers []Peer) (addresses []netip.Addr) {
			for _, p := range peers {
				addresses = append(addresses, p.Address)
			}
			return addresses
		}
		list("remove", c.Remove)
		list("reset", of(c.Reset))
		list("update", of(c.Update))
		list("add", of(c.Add))
		if got := strings.Join(words, " "); got != e.want {
			t.Errorf("%s: %q, expected %q", e.name, got, e.want)
		}
	}
}

// TestMeshPods: what a reflector takes of a node are the podCIDRs that are routed to it: none that another node has, and no network that
// is too wide.
func TestMeshPods(t *testing.T) {
	nodes := []*cluster.Node{member(1, "rr=", "192.0.2.11"), member(2, "", "192.0.2.12"), member(3, "", "192.0.2.13"), member(4, "", "192.0.2.14")}
	nodes[1].Created = time.Unix(1, 0)
	nodes[2].PodCIDRs = []netip.Prefix{nodes[1].PodCIDRs[0], pfx("fd00:3::/64")} // which w2 has
	nodes[2].Created = time.Unix(2, 0)
	nodes[3].PodCIDRs = []netip.Prefix{pfx("0.0.0.0/0")}
	table, _ := tables(t, &cluster.Snapshot{Nodes: nodes}, Config{ASN: 64512, Mesh: &MeshConfig{Session: meshSession(), ReflectorSelector: []string{"rr="}}})
	var got []string
	for _, p := range table["w1"].Peers {
		got = append(got, fmt.Sprint(p.Node, p.Pods))
	}
	want := []string{"w2[10.244.2.0/24 fd00:2::/64]", "w3[invalid Prefix fd00:3::/64]", "w4[invalid Prefix invalid Prefix]"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, expected %q", got, want)
	}
}

func TestLargeMesh(t *testing.T) {
	var nodes []*cluster.Node
	for i := range fullMeshMost + 1 {
		nodes = append(nodes, member(1000+i, "", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i + 1)}).String()))
		nodes[i].PodCIDRs = nil
	}
	c := Config{NodeName: "w1000", ASN: 64512, Mesh: &MeshConfig{Session: meshSession()}}
	for n, large := range map[int]bool{fullMeshMost: false, fullMeshMost + 1: true} {
		_, notes := Plan(&cluster.Snapshot{Nodes: nodes[:n]}, c, &routes.Table{}, nil)
		if is := slices.ContainsFunc(notes, func(n cluster.Note) bool { return n.Reason == cluster.ReasonBGPMeshLarge }); is != large {
			t.Errorf("%d nodes: %v", n, notes)
		}
	}
}

// BenchmarkMesh is a reflector's whole Table of 5,000 nodes, made anew because one of them has changed, and the difference.
func BenchmarkMesh(b *testing.B) {
	var nodes []*cluster.Node
	for i := range 5000 {
		n := member(i, "", fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250), fmt.Sprintf("2001:db8::%x", i+1))
		n.Name = fmt.Sprintf("w%04d", i)
		n.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i>>8), byte(i), 0}), 24), pfx(fmt.Sprintf("fd00:0:%x::/64", i))}
		nodes = append(nodes, n)
	}
	nodes[0].Labels = []string{"rr="}
	s := &cluster.Snapshot{Nodes: nodes}
	c := Config{NodeName: "w0000", ASN: 64512, Mesh: &MeshConfig{Session: meshSession(), ReflectorSelector: []string{"rr="}}}
	pods, _ := routes.Plan(s, routes.Config{NodeName: "w0000"})
	before, notes := Plan(s, c, pods, nil)
	if len(before.Peers) != 4999 {
		b.Fatal(len(before.Peers), notes)
	}
	for b.Loop() {
		table, _ := Plan(s, c, pods, nil)
		if d := Diff(before, table); len(d.Reset) > 0 {
			b.Fatal(d)
		}
	}
}
