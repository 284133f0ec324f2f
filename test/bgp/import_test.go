package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

// A network is what a gateway announces of both families, in BIRD's words.
type announced struct{ v4, v6 []string }

// birdWith is a gateway's configuration that announces networks to n1, both families in one session; more goes into the session.
func birdWith(asn int, id string, networks announced, more string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device { }\n", id)
	for _, f := range []struct {
		name string
		list []string
	}{{"ipv4", networks.v4}, {"ipv6", networks.v6}} {
		fmt.Fprintf(&b, "protocol static { %s;\n", f.name)
		for _, n := range f.list {
			fmt.Fprintf(&b, "route %s blackhole;\n", n)
		}
		b.WriteString("}\n")
	}
	fmt.Fprintf(&b, `
filter to_nodes { if net = 172.30.0.0/16 then bgp_path.prepend(64512); accept; }
protocol bgp node1 {
  local as %d;
  neighbor 192.0.2.11 as 64512;
  direct;
  ipv4 { import all; export filter to_nodes; next hop self; };
  ipv6 { import all; export all; next hop self; };
  %s
}
`, asn, more)
	return b.String()
}

// importing is a node's configuration with two gateways, that imports nearly everything.
func importing(asn1, asn2 int) string {
	return fmt.Sprintf(`clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
serviceCIDRs: [10.96.0.0/16, "fd00:10:96::/112"]
bgp:
  asn: 64512
  peers:
  - {address: 192.0.2.1, asn: %d, families: [IPv4, IPv6]}
  - {address: 192.0.2.2, asn: %d, families: [IPv4, IPv6]}
  import:
  - {prefixes: [0.0.0.0/0], le: 25}
  - {prefixes: ["::/0"], le: 64}
`, asn1, asn2)
}

// learned returns the routes of a node that it learned, one a line, with their next hops.
func (r *rig) learned(n *lab.Node) string {
	r.Helper()
	text := ""
	for _, family := range []string{"-4", "-6"} {
		out, err := n.Run("ip", "-o", family, "route")
		r.ok(err)
		for line := range strings.Lines(out) {
			if strings.Contains(line, "proto 103") {
				text += strings.Join(strings.Fields(strings.ReplaceAll(line, "\\", "")), " ") + "\n"
			}
		}
	}
	return text
}

// hasLearned waits until a node has these learned routes and no others.
func (r *rig) hasLearned(n *lab.Node, want ...string) {
	r.Helper()
	r.eventually(sessionBound, func() error {
		if got := r.learned(n); got != strings.Join(want, "\n")+"\n" && got != strings.Join(want, "") {
			return fmt.Errorf("the learned routes are\n%s, expected\n%s", got, strings.Join(want, "\n"))
		}
		return nil
	})
}

// viaOne and viaBoth are routes of n1 to a network, as ip shows them.
func viaOne(network, gateway string) string {
	text := network + " via " + gateway + " dev eth0 proto 103 metric 2048"
	if strings.Contains(network, "::") {
		text += " pref medium"
	}
	return text
}

func viaBoth(network, one, two string) string {
	text := network + " proto 103 metric 2048"
	if strings.Contains(network, "::") {
		text += " pref medium"
	}
	return text + " nexthop via " + one + " dev eth0 weight 1 nexthop via " + two + " dev eth0 weight 1"
}

const (
	gw1, gw2   = "192.0.2.1", "192.0.2.2"
	gw1v6      = "2001:db8:2::1"
	gw2v6      = "2001:db8:2::2"
	everywhere = "172.20.0.0/16"
)

// serving opens connections from a pod of n1 to a Service from now on; the function that it returns ends that, and fails the test when one has
// failed.
func (r *rig) serving() (stop func()) {
	r.Helper()
	ask := tcp(webIP, webPort)
	ask.Timeout = attemptTimeout
	r.eventually(startBound, func() error { return r.p1.Ask(ask).Expect(lab.OK) })
	p, err := r.p1.Probe(lab.ProbeConfig{Dial: ask, Rate: 50, NoRepeats: true})
	r.ok(err)
	return func() {
		r.Helper()
		report := p.Stop()
		r.Logf("a pod of n1 to a Service: %v", report)
		measured.Flow(r.T, report.Failed(), report.Attempts, report.LongestOutage)
		if report.Failed() > 0 || report.Attempts == 0 {
			r.Errorf("a pod of n1 to a Service: %v, want none failed", report)
		}
	}
}

// TestImport: what two gateways announce goes into the kernel of a node that imports, over both where both announce it, and out
// again; what is the cluster's own does not; and somebody else's changes are repaired. A restart of the agent changes no route, and
// one without BGP leaves none.
func TestImport(t *testing.T) {
	r := newRig(t)
	ns2 := r.lab.Client("gw2").Namespace
	_, err := ns2.Run("ip", "addr", "add", "172.22.0.1/32", "dev", "lo")
	r.ok(err)
	_, err = ns2.Serve(lab.Server{Name: "behind", Proto: lab.TCP, Port: targetPort})
	r.ok(err)
	hostile := announced{
		v4: []string{everywhere, "172.21.0.0/16", "172.30.0.0/16", "0.0.0.0/0", "10.244.2.0/25", "10.96.0.0/24", "192.0.2.0/25", "100.64.1.1/32"},
		v6: []string{"2001:db8:20::/48", "2001:db8:21::/48", "::/0", "fd00:10:244:2::/64"},
	}
	g1 := startBIRD(t, r.lab.Router(), birdWith(64500, gw1, hostile, ""))
	r.start("clusterCIDRs: [10.244.0.0/16]", r.n2) // Services have endpoints there
	r.start(importing(64500, 64501), r.n1)
	one := []string{"172.20.0.0/16", "172.21.0.0/16", "2001:db8:20::/48", "2001:db8:21::/48"}
	alone := make([]string, len(one))
	for i, n := range one {
		alone[i] = viaOne(n, map[bool]string{true: gw1v6, false: gw1}[strings.Contains(n, "::")])
	}
	r.hasLearned(r.n1, alone...)
	serves := r.serving()
	for _, note := range []string{"0.0.0.0/0, ::/0 is not imported", "10.244.2.0/25 is not imported", "10.96.0.0/24 is not imported", "192.0.2.0/25 is not imported", "fd00:10:244:2::/64 is not imported"} {
		r.eventually(sessionBound, func() error { return r.noted(r.n1, cluster.ReasonImportRefused, note) })
	}
	behind := func() error {
		if result := r.n1.Ask(tcp(addr("172.22.0.1"), targetPort)); result.Outcome != lab.OK {
			return fmt.Errorf("what is behind the second gateway: %s", result)
		}
		return nil
	}
	if behind() == nil {
		t.Error("what is behind the second gateway is reached before there is a route")
	}

	g2 := startFRR(t, ns2, `
frr defaults traditional
route-map SELF permit 10
 set ipv6 next-hop global 2001:db8:2::2
router bgp 64501
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.11 remote-as 64512
 address-family ipv4 unicast
  network 172.20.0.0/16
  network 172.22.0.0/16
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:20::/48
  network 2001:db8:22::/48
  neighbor 192.0.2.11 activate
  neighbor 192.0.2.11 route-map SELF out
 exit-address-family
`)
	both := []string{viaBoth(everywhere, gw1, gw2), alone[1], viaOne("172.22.0.0/16", gw2),
		viaBoth("2001:db8:20::/48", gw1v6, gw2v6), alone[3], viaOne("2001:db8:22::/48", gw2v6)}
	r.hasLearned(r.n1, both...)
	r.eventually(sessionBound, behind)
	if v := r.metric(r.n1, `fairway_bgp_imported_routes{ip_family="IPv4"}`); v != 3 {
		t.Errorf("fairway_bgp_imported_routes counts %v, expected 3", v)
	}
	r.ok(g1.learned("!172.22.0.0/16", "!2001:db8:22::/48", "10.244.1.0/24"))
	r.ok(g2.learned("!172.21.0.0/16", "!2001:db8:21::/48", "10.244.1.0/24"))

	for _, s := range []string{"-4 route del 172.22.0.0/16", "-4 route replace 172.20.0.0/16 via 192.0.2.2 proto 103 metric 2048", "-6 route del 2001:db8:20::/48 via 2001:db8:2::1",
		"-4 route add 172.31.0.0/16 via 192.0.2.2 proto 103"} {
		_, err := r.n1.Run("ip", strings.Fields(s)...)
		r.ok(err)
		start := time.Now()
		r.hasLearned(r.n1, both...)
		t.Logf("ip %s: repaired after %.2f s", s, time.Since(start).Seconds())
	}

	monitor, err := r.n1.Start(lab.Command{Path: "ip", Args: []string{"monitor", "route"}})
	r.ok(err)
	for range 2 {
		r.agents[r.n1].Kill()
		time.Sleep(time.Second)
		r.restart(r.n1)
		r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
		time.Sleep(3 * time.Second) // that much time it has for doing wrong
		r.ok(r.agents[r.n1].KillBGP())
		r.eventually(sessionBound, func() error { return r.up(r.n1, 0) })
		r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
		time.Sleep(3 * time.Second)
	}
	if out := monitor.Output(); strings.Contains(out, "proto 103") {
		t.Errorf("a restart of the agent, or of its BGP process, changes routes:\n%s", out)
	}
	r.hasLearned(r.n1, both...)

	killed := time.Now()
	g2.procs[1].Kill() // bgpd; FRR asks nobody to keep its routes
	r.hasLearned(r.n1, alone...)
	t.Logf("%.2f s after the second gateway's end its routes are gone", time.Since(killed).Seconds())
	r.eventually(startBound, func() error {
		if !strings.Contains(monitor.Output(), "proto 103") {
			return errors.New("ip monitor saw nothing")
		}
		return nil
	})
	if behind() == nil {
		t.Error("what is behind the second gateway is reached without a route")
	}

	serves()
	r.ok(r.agents[r.n1].Stop(startBound))
	if r.learned(r.n1) == "" {
		t.Error("an agent that ends takes its routes along")
	}
	r.start("clusterCIDRs: [10.244.0.0/16]", r.n1)
	r.hasLearned(r.n1)
}

// TestImportOverRestart: the routes of a gateway that restarts gracefully stay, and what it does not announce any more goes when it
// is done; without graceful restart they go at once.
func TestImportOverRestart(t *testing.T) {
	r := newRig(t)
	more := "graceful restart on; graceful restart time 60;"
	before := announced{v4: []string{everywhere, "172.21.0.0/16"}, v6: []string{"2001:db8:20::/48"}}
	after := announced{v4: []string{everywhere}, v6: []string{"2001:db8:20::/48"}}
	g1 := startBIRD(t, r.lab.Router(), birdWith(64500, gw1, before, more))
	g2 := startBIRD(t, r.lab.Client("gw2").Namespace, birdWith(64501, gw2, announced{v4: []string{"172.22.0.0/16"}}, ""))
	r.start(importing(64500, 64501), r.n1)
	v4, v6 := viaOne(everywhere, gw1), viaOne("2001:db8:20::/48", gw1v6)
	r.hasLearned(r.n1, v4, viaOne("172.21.0.0/16", gw1), viaOne("172.22.0.0/16", gw2), v6)
	g1.procs[0].Kill()
	g2.procs[0].Kill()
	r.hasLearned(r.n1, v4, viaOne("172.21.0.0/16", gw1), v6)
	r.eventually(sessionBound, func() error { return r.up(r.n1, 0) })
	monitor, err := r.n1.Start(lab.Command{Path: "ip", Args: []string{"monitor", "route"}})
	r.ok(err)
	time.Sleep(3 * time.Second)
	startBIRDWith(t, r.lab.Router(), birdWith(64500, gw1, after, more), "-R")
	r.hasLearned(r.n1, v4, v6)
	for line := range strings.Lines(monitor.Output()) {
		if strings.Contains(line, "proto 103") && !strings.Contains(line, "172.21.0.0/16") {
			t.Errorf("a route of the gateway that restarted was touched: %s", line)
		}
	}
}

// TestTooManyPrefixes: a gateway sends as many prefixes as it may, all of which go into the kernel; then five times as many. Its
// session ends, and all its routes go; the other gateway's stay, and so does everything else.
func TestTooManyPrefixes(t *testing.T) {
	r := newRig(t)
	many := func(n int) announced {
		var a announced
		for i := range n {
			a.v4 = append(a.v4, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(100 + i>>16), byte(i >> 8), byte(i), 0}), 24).String())
		}
		return a
	}
	const may = 20_000
	g1 := startBIRD(t, r.lab.Router(), birdWith(64500, gw1, many(may), ""))
	startBIRD(t, r.lab.Client("gw2").Namespace, birdWith(64501, gw2, announced{v4: []string{everywhere}}, ""))
	r.start("clusterCIDRs: [10.244.0.0/16]", r.n2)
	r.start(importing(64500, 64501), r.n1)
	serves := r.serving()
	began := time.Now()
	count := func(want int) func() error {
		return func() error {
			if n := strings.Count(r.learned(r.n1), "\n"); n != want {
				return fmt.Errorf("%d learned routes, expected %d", n, want)
			}
			return nil
		}
	}
	r.eventually(2*sessionBound, count(may+1))
	figures := func(what string) {
		t.Logf("%s: %.1f s after the start, %.1f CPU s, %.0f MiB resident", what, time.Since(began).Seconds(), r.metric(r.n1, "process_cpu_seconds_total"), r.metric(r.n1, "process_resident_memory_bytes")/(1<<20))
	}
	figures(fmt.Sprintf("%d prefixes are in the kernel", may))
	time.Sleep(5 * time.Second)
	figures("at rest")
	began = time.Now()
	g1.write("bird.conf", birdWith(64500, gw1, many(5*may), ""))
	_, err := r.lab.Router().Run(g1.show[0], append(g1.show[1:3:3], "configure")...)
	r.ok(err)
	r.eventually(2*sessionBound, func() error { return r.noted(r.n1, cluster.ReasonBGPTooManyPrefixes, gw1) })
	r.hasLearned(r.n1, viaOne(everywhere, gw2))
	figures(fmt.Sprintf("%d prefixes are refused", 5*may))
	r.ok(r.up(r.n1, 1))
	serves()
	for name, n := range r.p1.Spread(tcp(webIP, webPort), 20) {
		if name != "p1" && name != "p2" {
			t.Errorf("of 20 connections to a Service %d came to %s", n, name)
		}
	}
}
