package bgp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// meshUp is nil when a node has so many sessions with other nodes, and no other that is not up.
func (r *rig) meshUp(n *lab.Node, sessions int) error {
	up, all := r.metric(n, `fairway_bgp_mesh_sessions{state="established"}`), r.metric(n, "fairway_bgp_mesh_sessions")
	if up != float64(sessions) || all != up {
		return fmt.Errorf("%s has %v sessions with nodes, %v of them up, expected %d", n.Name, all, up, sessions)
	}
	return nil
}

// receives is nil when the routes that a node receives have what they should, with its next hop, as "10.244.2.0/24 192.0.2.12"; "!"
// begins what they should not have.
func (r *rig) receives(n *lab.Node, wants ...string) error {
	out, beside, _ := r.ask(n, "routes", "received")
	out = strings.Join(strings.Fields(out), " ")
	for _, want := range wants {
		text, not := strings.CutPrefix(want, "!")
		if strings.Contains(out, " "+text) == not {
			return fmt.Errorf("%s: %q is among the routes received: %v\n%s%s", n.Name, text, not, out, beside)
		}
	}
	return nil
}

// nodes are the lab's, in order.
func (r *rig) nodes() (nodes []*lab.Node) {
	for _, spec := range r.lab.Topology.Nodes {
		nodes = append(nodes, r.lab.Node(spec.Name))
	}
	return nodes
}

// TestFullMesh: three nodes have a session each with each, with a password, and both families in it; each knows what the others announce,
// and uses nothing of it. Who is no node gets no answer. Edits reset what docs/bgp.md says, and nothing else.
func TestFullMesh(t *testing.T) {
	r := newRigOf(t, 3)
	password := filepath.Join(t.TempDir(), "password")
	r.ok(os.WriteFile(password, []byte("secret\n"), 0o600))
	wrong := filepath.Join(t.TempDir(), "password")
	r.ok(os.WriteFile(wrong, []byte("other\n"), 0o600))
	mesh := func(file, more string) string {
		return fmt.Sprintf("syncPeriod: 2s\nbgp: {asn: 64512, mesh: {passwordFile: %s%s}}\n", file, more)
	}
	for _, n := range r.nodes() { // each with a file of its own, which can be edited
		r.start(mesh(password, ""), n)
	}
	nodes := r.nodes()
	for _, n := range nodes {
		r.eventually(sessionBound, func() error { return r.meshUp(n, 2) })
	}
	r.eventually(sessionBound, func() error {
		return r.receives(nodes[0], "10.244.2.0/24 192.0.2.12", "10.244.3.0/24 192.0.2.13", "fd00:10:244:2::/64 2001:db8:2::12", "fd00:10:244:3::/64 2001:db8:2::13", "!10.244.1.0/24")
	})
	if out := r.learned(nodes[0]); out != "" {
		t.Errorf("what nodes announce is in the kernel:\n%s", out)
	}
	// A connection of somebody else is closed before anything is said in it.
	out, err := r.lab.Client("gw2").Run("bash", "-c", "exec 3<>/dev/tcp/192.0.2.11/179; timeout 5 cat <&3 | wc -c")
	if err != nil || strings.TrimSpace(out) != "0" {
		t.Errorf("a node says something to who is no peer: %q, %v", out, err)
	}

	ups := func() (counts [3]int) {
		for i, n := range nodes {
			counts[i] = strings.Count(r.agents[n].Output(), `"A BGP session is up"`)
		}
		return counts
	}
	if got := ups(); got != [3]int{2, 2, 2} {
		t.Errorf("sessions came up so often: %v, expected each once", got)
	}
	shows := func(n *lab.Node, text string) func() error {
		return func() error {
			if out, _, _ := r.ask(n, "-o", "json"); strings.Count(out, text) != 2 {
				return fmt.Errorf("the settings have no %q:\n%s", text, out)
			}
			return nil
		}
	}
	same := filepath.Join(filepath.Dir(password), "same")
	r.ok(os.WriteFile(same, []byte("secret\n"), 0o600))
	rows := documentedResets(t)
	before := ups()
	for _, e := range []struct {
		rows, configuration string
		applied             func() error
	}{
		{"mesh.connectRetryTime", mesh(password, ", connectRetryTime: 2s"), shows(nodes[2], "retry 2s")},
		{"mesh.maxPrefixes", mesh(password, ", maxPrefixes: 500"), shows(nodes[2], "max-prefixes 500")},
		{"mesh.passwordFile", mesh(same, ""), shows(nodes[2], "retry 5s #")},
		{"mesh.holdTime; mesh.keepaliveTime", mesh(password, ", holdTime: 12s, keepaliveTime: 2s"), shows(nodes[2], "hold 12s keepalive 2s")},
	} {
		resets := r.documented(rows, e.rows)
		r.edit(nodes[2], e.configuration)
		r.eventually(sessionBound, e.applied)
		time.Sleep(time.Second) // that much time it has for doing wrong
		r.eventually(sessionBound, func() error {
			for i, n := range nodes {
				if err := r.meshUp(n, 2); err != nil {
					return err
				}
				want := before[i]
				if resets == resetsThese {
					want += map[bool]int{true: 2, false: 1}[i == 2]
				}
				if got := ups()[i]; got != want {
					return fmt.Errorf("%s resets %q: %s has seen %d sessions come up, expected %d", e.rows, resets, n.Name, got, want)
				}
			}
			return nil
		})
		before = ups()
	}
	// Taken away from one node, and given again: with it the agent listens.
	if resets := r.documented(rows, "mesh, given or taken away"); resets != resetsAll {
		t.Errorf("docs/bgp.md says that a mesh which is given or taken away resets %q", resets)
	}
	for _, c := range []struct {
		configuration  string
		sessions, down int
	}{{"syncPeriod: 2s\nbgp: {asn: 64512, peers: [{address: 192.0.2.1, asn: 64500}]}\n", 0, 1}, {mesh(password, ""), 2, 0}} {
		r.edit(nodes[2], c.configuration)
		r.eventually(2*sessionBound, func() error {
			out, err := nodes[2].Run("ss", "-Htln", "sport = :179")
			if (out != "") != (c.sessions > 0) {
				err = errors.Join(err, fmt.Errorf("with %d sessions of the mesh, listening is %q", c.sessions, out))
			}
			return errors.Join(err, r.meshUp(nodes[2], c.sessions), r.meshDown(nodes[0], c.down), r.meshDown(nodes[1], c.down))
		})
	}
	// Another password on one node: it has no session any more, the others go on.
	r.edit(nodes[2], mesh(wrong, ""))
	r.eventually(sessionBound, func() error {
		return errors.Join(r.meshDown(nodes[2], 2), r.meshDown(nodes[0], 1), r.meshDown(nodes[1], 1))
	})
	r.eventually(sessionBound, func() error {
		return r.noted(nodes[0], cluster.ReasonBGPSessionDown, "The session with node n3 (bgp.mesh)")
	})
	r.edit(nodes[2], mesh(password, ""))
	r.eventually(2*sessionBound, func() error { return r.meshUp(nodes[2], 2) })
	if got, want := strings.Count(r.agents[nodes[0]].Output(), `"A BGP session is up" peer="192.0.2.12"`), 1; got != want {
		t.Errorf("the session between n1 and n2 came up %d times, expected %d", got, want)
	}
	// Without a password, after there was one, also at the sockets that had it.
	for _, n := range nodes {
		r.edit(n, "syncPeriod: 2s\nbgp: {asn: 64512, mesh: {}}\n")
	}
	for _, n := range nodes {
		r.eventually(sessionBound, func() error {
			if out, _, _ := r.ask(n, "-o", "json"); strings.Contains(out, "password") {
				return fmt.Errorf("%s has a password:\n%s", n.Name, out)
			}
			return r.meshUp(n, 2)
		})
	}
	for _, n := range nodes {
		if out := r.agents[n].Output(); strings.Contains(out, "secret\n") {
			t.Errorf("%s wrote the password", n.Name)
		}
	}
}

// resetsThese is what an edit of the section mesh resets, which has sessions of its own.
const resetsThese = "sessions between nodes"

// meshRows are the rows about it of the table in docs/bgp.md, which TestFullMesh and TestReflectors try.
var meshRows = []string{"mesh, given or taken away", "mesh.nodeSelector, mesh.reflectorSelector", "mesh.clusterID", "mesh.passwordFile", "mesh.holdTime", "mesh.keepaliveTime",
	"mesh.connectRetryTime", "mesh.maxPrefixes", "mesh.gracefulRestart"}

// documented returns what docs/bgp.md says that an edit resets, of some rows of its table, with semicolons between them.
func (r *rig) documented(table map[string]string, rows string) (resets string) {
	r.Helper()
	for row := range strings.SplitSeq(rows, "; ") {
		resets = table[row]
		if !slices.Contains([]string{resetsNone, resetsThese, resetsAll}, resets) || !slices.Contains(meshRows, row) {
			r.Errorf("docs/bgp.md does not say what an edit of %s resets: %q", row, resets)
		}
	}
	return resets
}

// meshDown is nil when so many of a node's sessions with others are down.
func (r *rig) meshDown(n *lab.Node, sessions int) error {
	up, all := r.metric(n, `fairway_bgp_mesh_sessions{state="established"}`), r.metric(n, "fairway_bgp_mesh_sessions")
	if all-up != float64(sessions) {
		return fmt.Errorf("%s has %v sessions with nodes, %v of them up, expected %d that are down", n.Name, all, up, sessions)
	}
	return nil
}

// birdOfReflectors is a gateway's configuration for iBGP with the reflectors n1 and n2 alone; its arguments are the identifier, and what it
// announces.
const birdOfReflectors = `
log stderr all;
router id %s;
protocol device { }
protocol kernel { ipv4 { export all; }; }
protocol kernel { ipv6 { export all; }; }
protocol static { ipv4; %s }
template bgp reflectors {
  local as 64512;
  direct;
  error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
  ipv6 { import all; export none; };
}
protocol bgp node1 from reflectors { neighbor 192.0.2.11 as 64512; }
protocol bgp node2 from reflectors { neighbor 192.0.2.12 as 64512; }
`

// frrOfReflectors is that of a gateway that knows only one of them.
const frrOfReflectors = `
frr defaults traditional
router bgp 64512
 bgp router-id 192.0.2.2
 neighbor R peer-group
 neighbor R remote-as 64512
 neighbor 192.0.2.11 peer-group R
 address-family ipv4 unicast
  neighbor R activate
 exit-address-family
 address-family ipv6 unicast
  neighbor R activate
 exit-address-family
`

// reflecting is a configuration with the reflectors that have a label. Its argument is the rest of the section mesh.
func reflecting(mesh string) string {
	return "clusterCIDRs: [10.244.0.0/16, \"fd00:10:244::/48\"]\nserviceCIDRs: [10.96.0.0/16, \"fd00:10:96::/112\"]\nloadBalancerIPs: {ranges: [203.0.113.0/24]}\nbgp:\n  asn: 64512\n  leave: {noticeTime: 2s, quietTime: 1s}\n" +
		"  mesh: {reflectorSelector: {fairway.dev/reflector: \"true\"}" + before(", ", mesh) + "}\n" +
		"  announce: [{addresses: [PodCIDRs, LoadBalancerIPs]}]\n" +
		"  peers:\n" +
		"  - {address: 192.0.2.1, asn: 64512, families: [IPv4, IPv6], nodeSelector: {fairway.dev/reflector: \"true\"}}\n" +
		"  - {address: 192.0.2.2, asn: 64512, families: [IPv4, IPv6], nodeSelector: {fairway.dev/reflector: \"true\"}}\n"
}

// newReflectors returns a rig of four nodes, of which n1 and n2 have the label of reflectors.
func newReflectors(t *testing.T) *rig {
	t.Helper()
	r := newRigOf(t, 4)
	for i := range 2 {
		r.changeNode(i, reflector)
	}
	return r
}

func reflector(n *corev1.Node) { n.Labels["fairway.dev/reflector"] = "true" }

// TestReflectors: a gateway that has sessions with two reflectors alone knows all nodes' podCIDRs, each with its own node as the next hop, and
// addresses of Services; who is outside reaches all. When a client's agent is restarted, or a reflector's is killed, nothing is lost, not even by a
// gateway that knows one reflector alone. Without graceful restart, a client's restart takes its route away for a moment.
func TestReflectors(t *testing.T) {
	r := newReflectors(t)
	nodes, router, second := r.nodes(), r.lab.Router(), r.lab.Client("gw2").Namespace
	bird := startBIRD(t, router, fmt.Sprintf(birdOfReflectors, "192.0.2.1", ""))
	startFRR(t, second, frrOfReflectors)
	r.cluster.SetEndpoints(r.local, lab.Ready(r.lab.Pod("p3"))) // a load balancer's address is announced by n3 alone
	r.ok(r.cluster.Write())
	r.start(reflecting(""), nodes...)
	for i, n := range nodes {
		sessions := []int{3, 3, 2, 2}[i]
		r.eventually(sessionBound, func() error { return r.meshUp(n, sessions) })
	}
	routes := func() error {
		errs := []error{kernelHas(router, cluster.IPv4, localIP.String()+" via 192.0.2.13")}
		for i := 1; i <= 4; i++ {
			errs = append(errs, kernelHas(router, cluster.IPv4, fmt.Sprintf("10.244.%d.0/24 via 192.0.2.1%[1]d", i)),
				kernelHas(router, cluster.IPv6, fmt.Sprintf("fd00:10:244:%d::/64 via 2001:db8:2::1%[1]d", i)))
		}
		return errors.Join(errs...)
	}
	routesOfSecond := func() error {
		var errs []error
		for i := 1; i <= 4; i++ {
			errs = append(errs, kernelHas(second, cluster.IPv4, fmt.Sprintf("10.244.%d.0/24 via 192.0.2.1%[1]d", i)))
		}
		return errors.Join(errs...)
	}
	r.eventually(sessionBound, routes)
	r.eventually(sessionBound, routesOfSecond)
	for i := 1; i <= 4; i++ {
		p := r.lab.Pod(fmt.Sprintf("p%d", i))
		for _, a := range p.Addrs {
			r.eventually(sessionBound, func() error { return r.reaches(a, targetPort, p.Name) })
		}
	}
	r.eventually(sessionBound, func() error { return r.reaches(localIP, webPort, "p3") })
	// Each prefix has one path of each reflector, and nothing goes in circles.
	r.eventually(sessionBound, func() error {
		out, err := bird.routes()
		if n := strings.Count(out, "BGP.originator_id: 192.0.2.13"); err == nil && n != 6 {
			return fmt.Errorf("the gateway has %d paths of n3, expected of each reflector one in each family, and one to the Service:\n%s", n, out)
		}
		return err
	})
	r.eventually(sessionBound, func() error {
		return r.receives(nodes[3], "10.244.3.0/24 192.0.2.13", localIP.String()+"/32 192.0.2.13")
	})
	if out, _, code := r.ask(nodes[3]); code != 0 || strings.Count(out, " yes ") != 2 || !strings.Contains(out, "NODE") {
		t.Errorf("a client's fairway bgp: exit code %d\n%s", code, out)
	}

	lossless := func(what string, lost bool, do func()) {
		t.Helper()
		monitor, err := router.Start(lab.Command{Path: "ip", Args: []string{"monitor", "route"}})
		r.ok(err)
		monitorOfSecond, err := second.Start(lab.Command{Path: "ip", Args: []string{"-4", "monitor", "route"}})
		r.ok(err)
		var probes []*lab.Prober
		for _, a := range []lab.Dial{tcp(r.lab.Pod("p3").Addrs[0], targetPort), tcp(r.lab.Pod("p3").Addrs[1], targetPort), tcp(localIP, webPort), tcp(r.lab.Pod("p4").Addrs[0], targetPort)} {
			a.Timeout = attemptTimeout
			p, err := r.outside.Probe(lab.ProbeConfig{Dial: a, Rate: 50, NoRepeats: true})
			r.ok(err)
			probes = append(probes, p)
		}
		do()
		failed := 0
		for _, p := range probes {
			failed += p.Stop().Failed()
		}
		deleted, bySecond := strings.Count(monitor.Output(), "Deleted "), strings.Count(monitorOfSecond.Output(), "Deleted 10.244.")
		monitor.Kill()
		monitorOfSecond.Kill()
		t.Logf("%s: %d attempts failed, %d routes of the gateway were deleted, %d of the second one", what, failed, deleted, bySecond)
		if lost != (failed > 0) || lost != (deleted > 0) || lost != (bySecond > 0) {
			t.Errorf("%s: that was not expected:\n%s\n%s", what, monitor.Output(), monitorOfSecond.Output())
		}
	}
	kill := func(n *lab.Node) { r.agents[n].Kill() }
	stop := func(n *lab.Node) { r.ok(r.agents[n].Stop(startBound)) }
	restart := func(end func(*lab.Node), n *lab.Node, sessions int) func() {
		return func() {
			end(n)
			time.Sleep(2 * time.Second)
			r.restart(n)
			r.eventually(sessionBound, func() error { return r.meshUp(n, sessions) })
			time.Sleep(4 * time.Second) // past the time for which updates are held back
			r.ok(errors.Join(routes(), routesOfSecond()))
		}
	}
	// A drain's notice gets through.
	r.changeNode(2, annotated)
	r.eventually(sessionBound, func() error { return bird.learned(localIP.String(), "(65535,0)", "BGP.local_pref: 0") })
	r.eventually(sessionBound, func() error { return bird.learned("!"+localIP.String(), "10.244.3.0/24") })
	r.changeNode(2, nil)
	r.eventually(sessionBound, routes)

	lossless("a client's agent is restarted", false, restart(kill, nodes[2], 2))
	lossless("a reflector's agent is restarted", false, func() {
		restart(stop, nodes[0], 3)()
		r.eventually(sessionBound, func() error { return r.up(nodes[0], 2) })
		time.Sleep(2 * time.Second)
		r.ok(routesOfSecond())
	})
	lossless("a reflector's agent is killed, and stays away", false, func() {
		r.agents[nodes[0]].Kill()
		time.Sleep(3 * time.Second)
		r.ok(routes())
	})
	r.restart(nodes[0])
	r.eventually(sessionBound, func() error { return errors.Join(r.meshUp(nodes[0], 3), r.up(nodes[0], 2)) })

	// Edits, of the file that all nodes share.
	rows := documentedResets(t)
	for _, e := range []struct {
		rows, mesh string
		sessions   []int
		applied    func() error
	}{
		{"mesh.clusterID; mesh.gracefulRestart", "clusterID: 10.0.0.1, gracefulRestart: {enabled: false}", []int{3, 3, 2, 2}, func() error {
			if err := bird.learned("cluster_list: 10.0.0.1", "!cluster_list: 192.0.2.11"); err != nil {
				return err
			}
			if out, _, _ := r.ask(nodes[2]); strings.Count(out, "not asked") != 2 {
				return fmt.Errorf("a client still asks for graceful restart:\n%s", out)
			}
			return nil
		}},
		{"mesh.nodeSelector, mesh.reflectorSelector", "clusterID: 10.0.0.1, gracefulRestart: {enabled: false}, nodeSelector: {kubernetes.io/hostname: n3}", []int{2, 2, 2, 0}, func() error { return bird.learned("!10.244.4.0/24") }},
		{"mesh.nodeSelector, mesh.reflectorSelector", "clusterID: 10.0.0.1, gracefulRestart: {enabled: false}", []int{3, 3, 2, 2}, routes},
	} {
		if resets := r.documented(rows, e.rows); resets != resetsThese {
			t.Errorf("docs/bgp.md says that an edit of %s resets %q", e.rows, resets)
		}
		came := strings.Count(r.agents[nodes[2]].Output(), `"A BGP session is up"`)
		r.edit(nodes[0], reflecting(e.mesh))
		r.eventually(sessionBound, e.applied)
		for i, n := range nodes {
			r.eventually(sessionBound, func() error { return r.meshUp(n, e.sessions[i]) })
		}
		// Both of n3's sessions begin anew, but for what is about n4 alone.
		want := came
		if !strings.Contains(e.rows, "Selector") {
			want += 2
		}
		if now := strings.Count(r.agents[nodes[2]].Output(), `"A BGP session is up"`); now != want {
			t.Errorf("%s: %d sessions of n3 came up, expected %d", e.mesh, now-came, want-came)
		}
	}
	r.eventually(sessionBound, routes)
	lossless("a client's agent is restarted, without graceful restart", true, func() {
		r.agents[nodes[2]].Kill()
		time.Sleep(2 * time.Second)
		r.restart(nodes[2])
		r.eventually(sessionBound, routes)
	})

	// n3 becomes a reflector, and n1 none any more: the gateways have no session with n3, but know all by n2.
	r.changeNode(2, reflector)
	r.eventually(sessionBound, func() error { return r.meshUp(nodes[3], 3) })
	r.changeNode(0, nil)
	r.eventually(sessionBound, func() error { return errors.Join(r.meshUp(nodes[3], 2), r.meshUp(nodes[0], 2)) })
	r.eventually(sessionBound, routes)
	r.eventually(sessionBound, func() error { return r.receives(nodes[0], "10.244.4.0/24 192.0.2.14") })
}

// TestReflectorsPassOnNothingElse: what a gateway announces to a reflector gets to no node and no other gateway. A machine that has a node's
// address announces what is not that node's: that is passed on neither, but its own podCIDR and the address of a Service are, to
// iBGP peers and to no eBGP peer.
func TestReflectorsPassOnNothingElse(t *testing.T) {
	r := newReflectors(t)
	nodes, router := r.nodes(), r.lab.Router()
	inside := startBIRD(t, router, fmt.Sprintf(birdOfReflectors, "192.0.2.1", "route 0.0.0.0/0 blackhole; route 203.0.113.0/24 blackhole; route 203.0.113.99/32 blackhole; route 10.244.4.0/24 blackhole;"))
	outside := startBIRD(t, r.lab.Client("gw2").Namespace, birdWith(64500, gw2, announced{[]string{"100.64.2.0/24", "0.0.0.0/0"}, nil}, ""))
	configuration := strings.Replace(reflecting(""), "192.0.2.2, asn: 64512", "192.0.2.2, asn: 64500", 1)
	r.start(configuration, nodes[:3]...)
	// n4 is somebody else's.
	startBIRD(t, nodes[3].Namespace, `
log stderr all;
router id 192.0.2.14;
protocol device { }
protocol static { ipv4;
  route 10.244.4.0/24 via 192.0.2.14; route 203.0.113.8/32 via 192.0.2.14;
  route 0.0.0.0/0 via 192.0.2.14; route 10.244.3.0/24 via 192.0.2.14; route 10.244.3.128/25 via 192.0.2.14; route 10.244.4.0/25 via 192.0.2.14; route 203.0.113.0/25 via 192.0.2.14;
  route 192.0.2.1/32 via 192.0.2.14; route 198.51.100.0/24 via 192.0.2.14;
}
template bgp reflectors { local 192.0.2.14 as 64512; direct; error wait time 1, 2; connect delay time 1; ipv4 { import all; export where source = RTS_STATIC; next hop self; }; ipv6 { import all; export none; }; }
protocol bgp node1 from reflectors { neighbor 192.0.2.11 as 64512; }
protocol bgp node2 from reflectors { neighbor 192.0.2.12 as 64512; }
`)
	r.eventually(sessionBound, func() error { return errors.Join(r.meshUp(nodes[0], 3), r.meshUp(nodes[1], 3), r.up(nodes[0], 2)) })
	// The reflectors have heard all of it.
	r.eventually(sessionBound, func() error {
		return r.receives(nodes[0], "0.0.0.0/0 192.0.2.14", "10.244.3.0/24 192.0.2.14", "203.0.113.99/32 192.0.2.1", "0.0.0.0/0 192.0.2.1", "100.64.2.0/24 192.0.2.2")
	})
	// And pass on what is right.
	r.eventually(sessionBound, func() error { return inside.learned("10.244.3.0/24", "192.0.2.13", "203.0.113.8/32") })
	r.eventually(sessionBound, func() error {
		return r.receives(nodes[2], "10.244.4.0/24 192.0.2.14", "203.0.113.8/32 192.0.2.14", "10.244.1.0/24 192.0.2.11")
	})
	r.eventually(sessionBound, func() error { return outside.learned("10.244.1.0/24") })
	time.Sleep(2 * time.Second) // that much time they have for doing wrong
	wrong := []string{"!0.0.0.0/0 ", "!203.0.113.0/2", "!203.0.113.99/32", "!10.244.3.128/25", "!10.244.4.0/25", "!192.0.2.1/32", "!198.51.100.0/24", "!100.64.2.0/24", "!10.244.3.0/24 192.0.2.14"}
	r.ok(r.receives(nodes[2], wrong...))
	r.ok(r.receives(nodes[2], "10.244.4.0/24 192.0.2.14"))
	out, err := router.Run(inside.show[0], append(inside.show[1:], "where", "source", "=", "RTS_BGP")...)
	r.ok(err)
	for _, text := range slices.Concat(wrong[1:8], []string{"!0.0.0.0/0"}) {
		if strings.Contains(out, text[1:]) {
			t.Errorf("the iBGP gateway has learned %s:\n%s", text[1:], out)
		}
	}
	if strings.Count(out, "BGP.next_hop: 192.0.2.14") != 4 {
		t.Errorf("the iBGP gateway has other than two paths to each of n4's prefixes:\n%s", out)
	}
	r.ok(outside.learned("!10.244.3.0/24", "!10.244.4.0/24", "!203.0.113.8", "!203.0.113.0", "!203.0.113.99", "100.64.2.0/24"))
}
