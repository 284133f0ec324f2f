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

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

// snapshot has the node n1 of the rack r1.
func snapshot(vary func(*cluster.Node)) *cluster.Snapshot {
	n := &cluster.Node{Name: "n1", InternalIPs: []netip.Addr{ip("192.0.2.11"), ip("2001:db8::11")}, Labels: []string{"rack=r1", "zone=a"}}
	if vary != nil {
		vary(n)
	}
	return &cluster.Snapshot{Nodes: []*cluster.Node{n}}
}

func service(name, announce string) *cluster.Service {
	s := &cluster.Service{Namespace: "default", Name: name}
	if announce != "" {
		s.Announce = cluster.AnnounceChoice{Given: true, ClusterIPs: strings.Contains(announce, "C"), ExternalIPs: strings.Contains(announce, "E"), LoadBalancerIPs: strings.Contains(announce, "L")}
	}
	return s
}

func peer(address string) Peer {
	p := Peer{Address: ip(address), Port: 179, ASN: 64500, HoldTime: 30 * time.Second, KeepaliveTime: 10 * time.Second, ConnectRetryTime: 5 * time.Second, RestartTime: 2 * time.Minute, MaxPrefixes: DefaultMaxPrefixes}
	p.Families[familyIndex(p.Address)] = true
	return p
}

// both carries both families in one session.
func both(p Peer) Peer {
	p.Families = [2]bool{true, true}
	return p
}

func announce(kinds ...Kind) Announcement {
	return Announcement{Kinds: kinds, Attributes: Attributes{LocalPref: DefaultLocalPref}}
}

var pods = &routes.Table{Own: []netip.Prefix{pfx("10.244.1.0/24"), pfx("fd00:1::/64")}}

func vips() []VIP {
	return []VIP{
		{Addr: ip("10.96.0.10"), Kind: ClusterIPs, Service: service("web", "")},
		{Addr: ip("10.96.0.11"), Kind: ClusterIPs, Service: service("local", ""), Local: true},
		{Addr: ip("10.96.0.12"), Kind: ClusterIPs, Service: service("never", "none")},
		{Addr: ip("10.96.0.13"), Kind: ClusterIPs, Service: service("always", "C")},
		{Addr: ip("198.51.100.7"), Kind: ExternalIPs, Service: service("web", "")},
		{Addr: ip("203.0.113.9"), Kind: LoadBalancerIPs, Service: service("web", "")},
		{Addr: ip("203.0.113.10"), Kind: LoadBalancerIPs, Service: service("never", "none"), Local: true},
		{Addr: ip("203.0.113.11"), Kind: LoadBalancerIPs, Service: service("always", "C"), Local: true},
	}
}

func TestPlan(t *testing.T) {
	config := Config{NodeName: "n1", ASN: 64512, Peers: []PeerConfig{{Peer: peer("192.0.2.1")}}}
	const identity = "AS 64512 router-id 192.0.2.11\n"
	const gateway = "peer 192.0.2.1:179 AS 64500 IPv4 hold 30s keepalive 10s retry 5s graceful-restart 2m0s\n"
	for _, c := range []struct {
		name  string
		node  func(*cluster.Node)
		vary  func(*Config)
		want  string
		notes string
	}{{
		name: "pods",
		vary: func(c *Config) { c.Announce = []Announcement{announce(PodCIDRs)} },
		want: identity + gateway + "10.96.0.13/32 # ClusterIP of default/always\n10.244.1.0/24 # PodCIDR\nfd00:1::/64 # PodCIDR\n",
	}, {
		name: "single addresses, each with its attributes",
		vary: func(c *Config) {
			c.Announce = []Announcement{{Kinds: []Kind{ClusterIPs}, Attributes: Attributes{LocalPref: 200, MED: 5, Prepend: 2,
				Communities: []Community{64512<<16 | 1, 0xffffff01}, LargeCommunities: []LargeCommunity{{64512, 1, 2}}}}, announce(ExternalIPs, LoadBalancerIPs)}
		},
		want: identity + gateway +
			"10.96.0.10/32 communities 64512:1 no-export 64512:1:2 local-pref 200 med 5 prepend 2 # ClusterIP of default/web\n" +
			"10.96.0.11/32 communities 64512:1 no-export 64512:1:2 local-pref 200 med 5 prepend 2 # ClusterIP of default/local\n" +
			"10.96.0.13/32 communities 64512:1 no-export 64512:1:2 local-pref 200 med 5 prepend 2 # ClusterIP of default/always\n" +
			"198.51.100.7/32 # ExternalIP of default/web\n203.0.113.9/32 # LoadBalancerIP of default/web\n",
	}, {
		name: "the service range, with what is local",
		vary: func(c *Config) {
			c.Announce, c.ServiceCIDRs = []Announcement{announce(ServiceCIDRs)}, []netip.Prefix{pfx("10.96.0.0/16")}
		},
		want: identity + gateway + "10.96.0.0/16 # ServiceCIDR\n10.96.0.11/32 # ClusterIP of default/local\n10.96.0.13/32 # ClusterIP of default/always\n",
	}, {
		name:  "no service range is known",
		vary:  func(c *Config) { c.Announce = []Announcement{announce(ServiceCIDRs)} },
		want:  identity + gateway + "10.96.0.11/32 # ClusterIP of default/local\n10.96.0.13/32 # ClusterIP of default/always\n",
		notes: "Node n1: InvalidField: bgp.announce has ServiceCIDRs",
	}, {
		name: "a node that is excluded from load balancers has its pods",
		node: func(n *cluster.Node) { n.Excluded = true },
		vary: func(c *Config) { c.Announce = []Announcement{announce(PodCIDRs, LoadBalancerIPs)} },
		want: identity + gateway + "10.244.1.0/24 # PodCIDR\nfd00:1::/64 # PodCIDR\n",
	}, {
		name: "which the configuration can override",
		node: func(n *cluster.Node) { n.Excluded = true },
		vary: func(c *Config) { c.Announce, c.FromExcluded = []Announcement{announce(LoadBalancerIPs)}, true },
		want: identity + gateway + "10.96.0.13/32 # ClusterIP of default/always\n203.0.113.9/32 # LoadBalancerIP of default/web\n",
	}, {
		name: "peers by label",
		vary: func(c *Config) {
			c.Peers = []PeerConfig{{peer("192.0.2.3"), []string{"rack=r2"}}, {peer("192.0.2.2"), []string{"rack=r1", "zone=a"}}, {Peer: peer("192.0.2.1")}, {peer("192.0.2.4"), []string{"rack=r1", "zone=b"}}}
			c.Announce = []Announcement{}
		},
		want: identity + gateway + strings.Replace(gateway, "192.0.2.1", "192.0.2.2", 1) + "10.96.0.13/32 # ClusterIP of default/always\n",
	}, {
		name: "two peers of one address",
		vary: func(c *Config) {
			c.Peers = append(c.Peers, PeerConfig{peer("192.0.2.1"), []string{"rack=r1"}})
		},
		want:  identity + gateway + "10.96.0.13/32 # ClusterIP of default/always\n",
		notes: "Node n1: InvalidField: Two of bgp.peers have the address 192.0.2.1",
	}, {
		name: "both families in one session name the next hop of the other",
		vary: func(c *Config) {
			c.Peers, c.Announce = []PeerConfig{{Peer: both(peer("192.0.2.1"))}}, []Announcement{announce(PodCIDRs)}
		},
		want: identity + strings.Replace(gateway, "IPv4", "IPv4 IPv6", 1) + "10.96.0.13/32 # ClusterIP of default/always\n10.244.1.0/24 # PodCIDR\nfd00:1::/64 via 2001:db8::11 # PodCIDR\n",
	}, {
		name: "without such a next hop there is one family",
		node: func(n *cluster.Node) { n.InternalIPs = n.InternalIPs[:1] },
		vary: func(c *Config) {
			c.Peers = []PeerConfig{{Peer: both(peer("192.0.2.1"))}}
		},
		want:  identity + gateway + "10.96.0.13/32 # ClusterIP of default/always\n",
		notes: "Node n1: NodeIncomplete: The node has no IPv6 InternalIP, which would be the next hop in the session with 192.0.2.1",
	}, {
		name:  "no identifier",
		node:  func(n *cluster.Node) { n.InternalIPs = n.InternalIPs[1:] },
		notes: "Node n1: NodeIncomplete: The node has no IPv4 InternalIP, which would be its BGP identifier",
	}, {
		name: "an identifier and a port of the configuration's",
		node: func(n *cluster.Node) { n.InternalIPs = n.InternalIPs[1:] },
		vary: func(c *Config) { c.RouterID, c.ListenPort, c.Peers = ip("192.0.2.99"), 1790, nil },
		want: "AS 64512 router-id 192.0.2.99 listen 1790\n10.96.0.13/32 # ClusterIP of default/always\n",
	}, {
		name: "another node",
		vary: func(c *Config) { c.NodeName = "n2" },
	}} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config
			cfg.Peers = slices.Clone(config.Peers)
			if c.vary != nil {
				c.vary(&cfg)
			}
			table, notes := Plan(snapshot(c.node), cfg, pods, vips())
			if got := table.Lines(); got != c.want {
				t.Errorf("got\n%s\nexpected\n%s", got, c.want)
			}
			text := ""
			for _, n := range notes {
				text += n.String()
			}
			if !strings.HasPrefix(text, c.notes) || c.notes == "" && text != "" {
				t.Errorf("the notes are %q, expected %q", text, c.notes)
			}
			for range 5 {
				shuffled := vips()
				rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
				again, _ := Plan(snapshot(c.node), cfg, &routes.Table{Own: []netip.Prefix{pods.Own[1], pods.Own[0]}}, shuffled)
				if again.Lines() != table.Lines() {
					t.Errorf("in another order it is\n%s", again.Lines())
				}
			}
		})
	}
}

// TestOneOfTwo: an address that two Services share is announced once, and stays the same one's whatever the order.
func TestOneOfTwo(t *testing.T) {
	shared := []VIP{{Addr: ip("203.0.113.9"), Kind: LoadBalancerIPs, Service: service("b", "")}, {Addr: ip("203.0.113.9"), Kind: LoadBalancerIPs, Service: service("a", "")},
		{Addr: ip("203.0.113.9"), Kind: ExternalIPs, Service: service("c", "")}}
	c := Config{NodeName: "n1", ASN: 64512, Announce: []Announcement{announce(ExternalIPs, LoadBalancerIPs)}}
	for range 6 {
		rand.Shuffle(len(shared), func(i, j int) { shared[i], shared[j] = shared[j], shared[i] })
		table, _ := Plan(snapshot(nil), c, &routes.Table{}, shared)
		if got := table.Lines(); got != "AS 64512 router-id 192.0.2.11\n203.0.113.9/32 # ExternalIP of default/c\n" {
			t.Fatalf("got\n%s", got)
		}
	}
}

// apply does to a Table what Changes say, or tells what of them makes no sense.
func apply(t *Table, c Changes) (*Table, error) {
	paths := map[netip.Prefix]Path{}
	for _, p := range t.Paths {
		paths[p.Prefix] = p
	}
	for _, w := range c.Withdraw {
		if _, ok := paths[w]; !ok {
			return nil, fmt.Errorf("%s is withdrawn, and was not announced", w)
		}
		delete(paths, w)
	}
	for _, p := range c.Announce {
		paths[p.Prefix] = p
	}
	peers := map[netip.Addr]Peer{}
	for _, p := range t.Peers {
		peers[p.Address] = p
	}
	for _, a := range c.Remove {
		if _, ok := peers[a]; !ok {
			return nil, fmt.Errorf("%s is removed, and was not there", a)
		}
		delete(peers, a)
	}
	for _, p := range c.Add {
		if _, ok := peers[p.Address]; ok {
			return nil, fmt.Errorf("%s is added, and was there", p.Address)
		}
		peers[p.Address] = p
	}
	for _, p := range slices.Concat(c.Reset, c.Update) {
		if _, ok := peers[p.Address]; !ok {
			return nil, fmt.Errorf("%s is changed, and was not there", p.Address)
		}
		peers[p.Address] = p
	}
	after := &Table{ASN: t.ASN, RouterID: t.RouterID}
	for _, p := range paths {
		after.Paths = append(after.Paths, p)
	}
	for _, p := range peers {
		after.Peers = append(after.Peers, p)
	}
	slices.SortFunc(after.Paths, func(a, b Path) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(after.Peers, func(a, b Peer) int { return a.Address.Compare(b.Address) })
	return after, nil
}

// TestAnyTableToAnyOther: the difference leads from any Table to any other, and nowhere from one to itself.
func TestAnyTableToAnyOther(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := func() *Table {
		table := &Table{ASN: 64512, RouterID: ip("192.0.2.11")}
		for i := range 20 {
			if r.IntN(2) == 0 {
				continue
			}
			a := &Attributes{LocalPref: DefaultLocalPref, MED: uint32(r.IntN(2)), Prepend: uint8(r.IntN(2))}
			if r.IntN(2) == 0 {
				a.Communities = []Community{Community(r.IntN(2))}
			}
			p := Path{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Attributes: a}
			if r.IntN(3) == 0 {
				p.NextHop = ip("192.0.2.11")
			}
			table.Paths = append(table.Paths, p)
		}
		for i := range 4 {
			if r.IntN(2) == 0 {
				continue
			}
			p := peer(fmt.Sprintf("192.0.2.%d", i+1))
			p.ASN += uint32(r.IntN(2))
			p.ConnectRetryTime += time.Duration(r.IntN(2)) * time.Second
			table.Peers = append(table.Peers, p)
		}
		return table
	}
	have := &Table{ASN: 64512, RouterID: ip("192.0.2.11")}
	for range 500 {
		want := random()
		after, err := apply(have, Diff(have, want))
		if err != nil {
			t.Fatal(err)
		}
		if after.Lines() != want.Lines() {
			t.Fatalf("got\n%s\nexpected\n%s", after.Lines(), want.Lines())
		}
		if d := Diff(after, want); fmt.Sprint(d) != fmt.Sprint(Changes{}) {
			t.Fatalf("there is left: %+v", d)
		}
		have = after
	}
}

// TestWhatResets: every setting of a peer but the pause between attempts, and the name of the password's file, is settled when its
// session begins.
func TestWhatResets(t *testing.T) {
	old := peer("192.0.2.1")
	for name, vary := range map[string]func(*Peer){
		"port": func(p *Peer) { p.Port++ }, "ASN": func(p *Peer) { p.ASN++ }, "families": func(p *Peer) { p.Families[1] = true },
		"multihop": func(p *Peer) { p.Multihop = 2 }, "TTL security": func(p *Peer) { p.TTLSecurity = 1 }, "local address": func(p *Peer) { p.LocalAddress = ip("192.0.2.12") },
		"password file": func(p *Peer) { p.PasswordFile = "/p" }, "password of an annotation": func(p *Peer) { p.Password = cluster.NewSecret("p") }, "hold time": func(p *Peer) { p.HoldTime *= 2 }, "keepalive time": func(p *Peer) { p.KeepaliveTime /= 2 },
		"restart time": func(p *Peer) { p.RestartTime = 0 }, "connect retry time": func(p *Peer) { p.ConnectRetryTime *= 2 },
	} {
		now := old
		vary(&now)
		d := Diff(&Table{Peers: []Peer{old}}, &Table{Peers: []Peer{now}})
		resets := name != "connect retry time" && name != "password file"
		if len(d.Reset) == 1 != resets || len(d.Update) == 1 == resets || len(d.Add)+len(d.Remove) > 0 {
			t.Errorf("another %s: %+v", name, d)
		}
	}
}

func TestCommunities(t *testing.T) {
	for text, want := range map[string]string{
		"64512:100": " communities 64512:100", "4294967295:1:2": " communities 4294967295:1:2", "No-Export": " communities no-export",
		"65535:0": " communities graceful-shutdown", "65536:1": `"65536" is no number from 0 to 65535`, "1:2:4294967296": `"4294967296" is no number from 0 to 4294967295`,
		"100": "expected two numbers", "": "expected two numbers", "no-such": "no-advertise", "1:2:3:4": "expected two numbers", "-1:2": "is no number",
	} {
		a := Attributes{LocalPref: DefaultLocalPref}
		got := ""
		if err := a.AddCommunity(text); err != nil {
			got = err.Error()
		} else {
			got = a.String()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, expected %s", text, got, want)
		}
	}
}

// BenchmarkPlan10000 plans for 10,000 addresses, in the order of their Services' names.
func BenchmarkPlan10000(b *testing.B) {
	list := make([]VIP, 10_000)
	for i, at := range rand.New(rand.NewPCG(1, 2)).Perm(len(list)) {
		addr := netip.AddrFrom4([4]byte{10, 96, byte(at >> 8), byte(at)})
		list[i] = VIP{Addr: addr, Kind: ClusterIPs, Service: service(fmt.Sprint("service-", i), "")}
	}
	c := Config{NodeName: "n1", ASN: 64512, Announce: []Announcement{announce(PodCIDRs, ClusterIPs)}}
	for b.Loop() {
		if t, _ := Plan(snapshot(nil), c, pods, list); len(t.Paths) != len(list)+len(pods.Own) {
			b.Fatalf("%d paths", len(t.Paths))
		}
	}
}
