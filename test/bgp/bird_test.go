package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// TestGateways: with the configurations of docs/bgp.md, the gateway learns pods and Services in both families, and outside
// clients get there. What is announced follows the endpoints.
func TestGateways(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(*testing.T, *lab.Namespace, string) *gateway
		block string
		// community is how the daemon prints 64512:100.
		community string
	}{
		{"BIRD", startBIRD, "bird", "(64512,100)"},
		{"FRR", startFRR, "frr", "64512:100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			router := r.lab.Router()
			g := c.start(t, router, example(t, c.block))
			r.start(example(t, "yaml"), r.n1, r.n2)
			for _, n := range []*lab.Node{r.n1, r.n2} {
				r.eventually(sessionBound, func() error { return r.up(n, 2) })
			}
			r.eventually(sessionBound, func() error { return kernelHas(router, cluster.IPv4, "10.244.1.0/24 via 192.0.2.11") })
			r.eventually(sessionBound, func() error { return kernelHas(router, cluster.IPv4, "10.244.2.0/24 via 192.0.2.12") })
			r.eventually(sessionBound, func() error { return kernelHas(router, cluster.IPv6, "fd00:10:244:1::/64 via 2001:db8:2::11") })
			r.eventually(sessionBound, func() error { return kernelHas(router, cluster.IPv4, localIP.String()+" via 192.0.2.11") })
			r.eventually(sessionBound, func() error { return g.learned("10.96.0.0/16", "fd00:10:96::/112", c.community) })
			r.eventually(sessionBound, func() error { return r.reaches(r.p1.Addrs[0], targetPort, "p1") })
			r.eventually(sessionBound, func() error { return r.reaches(r.p2.Addrs[1], targetPort, "p2") })
			r.eventually(sessionBound, func() error { return r.reaches(webIP, webPort, "") })
			r.eventually(sessionBound, func() error { return r.reaches(webIP6, webPort, "") })
			r.eventually(sessionBound, func() error { return r.reaches(localIP, webPort, "p1") })

			r.cluster.SetEndpoints(r.local, lab.Ready(r.p2)) // the endpoint moves to n2
			r.ok(r.cluster.Write())
			r.eventually(sessionBound, func() error { return kernelHas(router, cluster.IPv4, localIP.String()+" via 192.0.2.12") })
			r.eventually(sessionBound, func() error { return r.reaches(localIP, webPort, "p2") })
			r.cluster.SetEndpoints(r.local) // and is gone
			r.ok(r.cluster.Write())
			r.eventually(sessionBound, func() error { return g.learned("!" + localIP.String()) })
			if r.metric(r.n1, `fairway_bgp_announced_prefixes{ip_family="IPv4",peer="192.0.2.1"}`) != 2 {
				t.Error("fairway_bgp_announced_prefixes does not count a podCIDR and the service range")
			}
		})
	}
}

// ibgp is a gateway's configuration for iBGP, with both families in one session.
const ibgp = `
log stderr all;
router id 192.0.2.1;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol kernel { ipv6 { export all; }; }
protocol bgp node1 {
  local as 64512;
  neighbor 192.0.2.11 as 64512;
  direct;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
}
`

// TestIBGP: iBGP, both families in one session, local preference, MED, and all kinds of communities.
func TestIBGP(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.lab.Router(), ibgp)
	r.start(`bgp:
  asn: 64512
  peers:
  - {address: 192.0.2.1, asn: 64512, families: [IPv4, IPv6]}
  announce:
  - {addresses: [PodCIDRs], localPref: 250, med: 7, communities: ["64512:5", "64512:1:2", no-export]}
`, r.n1)
	r.eventually(sessionBound, func() error { return r.up(r.n1, 1) })
	r.eventually(sessionBound, func() error {
		return g.learned("10.244.1.0/24", "fd00:10:244:1::/64", "BGP.local_pref: 250", "BGP.med: 7", "(64512,5)", "(65535,65281)", "(64512, 1, 2)")
	})
	r.eventually(sessionBound, func() error { return kernelHas(r.lab.Router(), cluster.IPv6, "fd00:10:244:1::/64 via 2001:db8:2::11") })
	r.eventually(sessionBound, func() error { return r.reaches(r.p1.Addrs[0], targetPort, "p1") })
	r.eventually(sessionBound, func() error { return r.reaches(r.p1.Addrs[1], targetPort, "p1") })
}

// TestMultihop: a peer behind the router has a session with multihop, and none without.
func TestMultihop(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.outside.Namespace, `
log stderr all;
router id 198.51.100.10;
protocol device { }
protocol bgp node1 {
  local as 64500;
  neighbor 192.0.2.11 as 64512;
  multihop 2;
  ipv4 { import all; export none; };
}
protocol bgp node2 {
  local as 64500;
  neighbor 192.0.2.12 as 64512;
  multihop 2;
  ipv4 { import all; export none; };
}
`)
	r.start("bgp: {asn: 64512, peers: [{address: 198.51.100.10, asn: 64500, multihop: 2}], announce: [{addresses: [PodCIDRs], asPathPrepend: 2}]}", r.n1)
	r.start("bgp: {asn: 64512, peers: [{address: 198.51.100.10, asn: 64500}]}", r.n2)
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "BGP.as_path: 64512 64512 64512") })
	r.eventually(sessionBound, func() error { return r.noted(r.n2, cluster.ReasonBGPSessionDown, "198.51.100.10") })
	r.ok(r.up(r.n2, 0))
	r.ok(g.learned("!10.244.2.0/24"))
}

// passwords is a gateway's configuration with a password.
const passwords = `
log stderr all;
router id 192.0.2.1;
protocol device { }
template bgp nodes { local as 64500; password "secret"; ipv4 { import all; export none; }; }
protocol bgp node1 from nodes { neighbor 192.0.2.11 as 64512; }
protocol bgp node2 from nodes { neighbor 192.0.2.12 as 64512; }
`

// TestPassword: the right password makes a session, a wrong one none; without the file there is none, and a Note; and when the
// file comes, there is one.
func TestPassword(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.lab.Router(), passwords)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if text != "" {
			r.ok(os.WriteFile(path, []byte(text), 0o600))
		}
		return path
	}
	configuration := func(file string) string {
		return fmt.Sprintf("bgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, passwordFile: %s}]}\nsyncPeriod: 2s", file)
	}
	late := file("late", "")
	r.start(configuration(late), r.n1)
	r.start(configuration(file("wrong", "other\n")), r.n2)
	r.eventually(sessionBound, func() error { return r.noted(r.n1, cluster.ReasonBGPPasswordMissing, "192.0.2.1") })
	r.eventually(sessionBound, func() error { return r.noted(r.n2, cluster.ReasonBGPSessionDown, "192.0.2.1") })
	r.ok(r.up(r.n1, 0))
	r.ok(r.up(r.n2, 0))
	file("late", "secret\n")
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24") })
	r.ok(g.learned("!10.244.2.0/24"))
	for _, n := range []*lab.Node{r.n1, r.n2} {
		for _, secret := range []string{"secret", "other"} {
			if out := r.agents[n].Output(); strings.Contains(out, secret) {
				t.Errorf("%s wrote the password:\n%s", n.Name, out)
			}
		}
	}
}

// TestNoTransit: what one gateway announces to a node does not reach the other one, in either direction and family, by eBGP or iBGP,
// whether the node uses it or not. It uses it only when it is to be imported.
func TestNoTransit(t *testing.T) {
	for _, c := range []struct {
		name       string
		as1, as2   int
		imports    string
		wantRoutes bool
	}{
		{"eBGP", 64500, 64501, "", false},
		{"eBGP, imported", 64500, 64501, "  import: [{prefixes: [100.64.0.0/10, \"2001:db8:a0::/44\"]}]\n", true},
		{"iBGP, imported", 64512, 64512, "  import: [{prefixes: [100.64.0.0/10, \"2001:db8:a0::/44\"]}]\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			g1 := startBIRD(t, r.lab.Router(), birdWith(c.as1, gw1, announced{[]string{"100.64.1.0/24", "0.0.0.0/0"}, []string{"2001:db8:a1::/48", "::/0"}}, ""))
			g2 := startBIRD(t, r.lab.Client("gw2").Namespace, birdWith(c.as2, gw2, announced{[]string{"100.64.2.0/24", "0.0.0.0/0"}, []string{"2001:db8:a2::/48", "::/0"}}, ""))
			r.start(fmt.Sprintf("bgp:\n  asn: 64512\n  peers:\n  - {address: 192.0.2.1, asn: %d, families: [IPv4, IPv6]}\n  - {address: 192.0.2.2, asn: %d, families: [IPv4, IPv6]}\n", c.as1, c.as2)+c.imports, r.n1)
			r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
			r.eventually(sessionBound, func() error {
				if v := r.metric(r.n1, "fairway_bgp_received_prefixes"); v != 8 {
					return fmt.Errorf("the node was sent %v prefixes, expected 2 in 2 families of 2 gateways", v)
				}
				return nil
			})
			for _, g := range []*gateway{g1, g2} {
				r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "fd00:10:244:1::/64") })
			}
			var want []string
			if c.wantRoutes {
				want = []string{viaOne("100.64.1.0/24", gw1), viaOne("100.64.2.0/24", gw2), viaOne("2001:db8:a1::/48", gw1v6), viaOne("2001:db8:a2::/48", gw2v6)}
			}
			r.hasLearned(r.n1, want...)
			time.Sleep(2 * time.Second) // that much time it has for doing wrong
			r.ok(g1.learned("!100.64.2.0/24", "!2001:db8:a2::/48", "100.64.1.0/24"))
			r.ok(g2.learned("!100.64.1.0/24", "!2001:db8:a1::/48", "100.64.2.0/24"))
			r.hasLearned(r.n1, want...)
		})
	}
}

// TestTTLSecurity: with ttlSecurity on both sides there is a session; a peer further away than it says has none.
func TestTTLSecurity(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.lab.Router(), `
log stderr all;
router id 192.0.2.1;
protocol device { }
protocol bgp node1 {
  local as 64500;
  neighbor 192.0.2.11 as 64512;
  ttl security on;
  ipv4 { import all; export none; };
}
`)
	far := startBIRD(t, r.outside.Namespace, `
log stderr all;
router id 198.51.100.10;
protocol device { }
protocol bgp node2 {
  local as 64500;
  neighbor 192.0.2.12 as 64512;
  multihop;
  ipv4 { import all; export none; };
}
`)
	r.start("bgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500, ttlSecurity: 1}]}", r.n1)
	r.start("bgp: {asn: 64512, peers: [{address: 198.51.100.10, asn: 64500, ttlSecurity: 1}]}", r.n2)
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24") })
	r.eventually(sessionBound, func() error { return r.noted(r.n2, cluster.ReasonBGPSessionDown, "198.51.100.10") })
	r.ok(far.learned("!10.244.2.0/24"))
}

// TestListen: a router that can't be connected to connects itself, to the node's port.
func TestListen(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.lab.Router(), `
log stderr all;
router id 192.0.2.1;
protocol device { }
protocol bgp node1 {
  local 192.0.2.1 port 1179 as 64500;
  neighbor 192.0.2.11 port 1790 as 64512;
  password "secret";
  connect delay time 1;
  connect retry time 2;
  ipv4 { import all; export none; };
}
`)
	file := filepath.Join(t.TempDir(), "password")
	r.ok(os.WriteFile(file, []byte("secret"), 0o600))
	r.start(fmt.Sprintf("bgp: {asn: 64512, listenPort: 1790, peers: [{address: 192.0.2.1, asn: 64500, passwordFile: %s}]}", file), r.n1)
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24") })
}

// TestGoBGP: gobgpd as the gateway, with both families in one session.
func TestGoBGP(t *testing.T) {
	r := newRig(t)
	g := startGoBGP(t, r.lab.Router(), `
[global.config]
  as = 64500
  router-id = "192.0.2.1"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "192.0.2.11"
    peer-as = 64512
  [neighbors.transport.config]
    passive-mode = true
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv6-unicast"
`)
	r.start(`bgp:
  asn: 64512
  peers:
  - {address: 192.0.2.1, asn: 64500, families: [IPv4, IPv6]}
  announce:
  - {addresses: [PodCIDRs, ClusterIPs, LoadBalancerIPs]}
`, r.n1)
	r.eventually(sessionBound, func() error {
		return g.learned("10.244.1.0/24", "192.0.2.11", "fd00:10:244:1::/64", "2001:db8:2::11", webIP.String()+"/32", webIP6.String()+"/128", localIP.String()+"/32")
	})
	// gobgpd keeps nothing over a restart unless it is told to.
	r.eventually(sessionBound, func() error { return r.noted(r.n1, cluster.ReasonBGPNoGracefulRestart, "192.0.2.1") })
	r.cluster.SetEndpoints(r.web)
	r.ok(r.cluster.Write())
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "!"+webIP.String(), "!"+webIP6.String()) })
}

// TestRoutersReturn: a gateway that is gone and comes back has a session again within seconds, and everything that was announced
// and withdrawn meanwhile.
func TestRoutersReturn(t *testing.T) {
	r := newRig(t)
	config := example(t, "bird")
	g := startBIRD(t, r.lab.Router(), config)
	r.start(example(t, "yaml"), r.n1)
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", localIP.String()) })
	g.procs[0].Kill()
	r.eventually(sessionBound, func() error { return r.noted(r.n1, cluster.ReasonBGPSessionDown, "192.0.2.1") })
	r.ok(r.up(r.n1, 0))
	r.cluster.SetEndpoints(r.local)
	r.ok(r.cluster.Write())
	time.Sleep(5 * time.Second) // some attempts in vain
	g = startBIRD(t, r.lab.Router(), config)
	back := time.Now()
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "fd00:10:244:1::/64", "!"+localIP.String()) })
	t.Logf("%.1f s after the gateway's return both sessions are back", time.Since(back).Seconds())
	r.eventually(sessionBound, func() error { return r.reaches(r.p1.Addrs[0], targetPort, "p1") })
}

// TestRulesFirst: while the rules can't be written, as somebody holds iptables' lock, a new Service is not announced, and one that
// goes is withdrawn all the same.
func TestRulesFirst(t *testing.T) {
	r := newRig(t)
	r.backend = lab.Legacy
	g := startBIRD(t, r.lab.Router(), example(t, "bird"))
	r.start(example(t, "yaml"), r.n1)
	r.eventually(sessionBound, func() error { return g.learned(localIP.String()) })

	lock, err := os.OpenFile(r.n1.LockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	r.ok(err)
	defer lock.Close()
	r.ok(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	const late = "203.0.113.8"
	balanced := lab.Service("late", []netip.Addr{addr("10.96.0.30")}, lab.TCPPort("", webPort, targetPort))
	balanced.Spec.Type = corev1.ServiceTypeLoadBalancer
	balanced.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: late}}
	r.cluster.SetService(balanced)
	r.cluster.SetEndpoints(balanced, lab.Ready(r.p1))
	r.cluster.SetEndpoints(r.local) // it has no endpoint any more
	r.ok(r.cluster.Write())
	r.eventually(sessionBound, func() error { return g.learned("!" + localIP.String()) })
	rules, err := r.n1.Run("iptables-legacy-save", "-t", "nat")
	r.ok(err)
	if !strings.Contains(rules, localIP.String()) || strings.Contains(rules, late) {
		t.Errorf("the rules were written, although the lock is held:\n%s", rules)
	}
	time.Sleep(2 * time.Second) // that much time it has for doing wrong
	r.ok(g.learned("!"+late, "10.244.1.0/24"))
	r.ok(unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	r.eventually(sessionBound, func() error { return g.learned(late) })
	r.eventually(sessionBound, func() error { return r.reaches(addr(late), webPort, "p1") })
}
