package faults

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/hostile"
	"github.com/fairway-net/fairway/test/lab"
)

const (
	// sessionBound is how long a session may take to come up.
	sessionBound = 60 * time.Second
	// holdTime is that of the sessions with the gateway.
	holdTime = 9 * time.Second

	gatewayIP = "10.240.0.1"

	outsidePod     = "outside to a pod, TCP"
	outsideService = "outside to a service, TCP"
)

// A bgpRig is a rig whose router, running BIRD, learns of n1's pods and of the Services from n1's agent, and of nobody else. Whoever
// is outside, "o", gets there by that alone.
type bgpRig struct {
	*rig
	o *lab.Client
	// restart is the session's gracefulRestart; peers are further ones of the agent's configuration, and stateDir is its directory.
	restart, peers, stateDir string
	// announced are the networks that the router announces.
	announced []string

	dir  string
	bird *lab.Process
}

// The settings of gracefulRestart: with the default time, and without.
const (
	graceful    = "{enabled: true}"
	notGraceful = "{enabled: false}"
)

// newBGPRig makes one; under is a command that runs n1's agent, if any.
func newBGPRig(t *testing.T, restart, peers string, under ...string) *bgpRig {
	t.Helper()
	if _, err := exec.LookPath("bird"); err != nil {
		if os.Getenv(lab.RequireEnv) == "require" {
			t.Fatal("BIRD, of Debian's package bird2, is not here")
		}
		t.Skip("it needs BIRD, of Debian's package bird2")
	}
	top := topology()
	top.Networks = append(top.Networks, lab.NetworkSpec{Name: "internet",
		Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("198.51.100.1")}})
	top.Clients = append(top.Clients, lab.ClientSpec{Name: "o", Network: "internet", Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.10")}})
	r := &bgpRig{rig: newCluster(t, lab.NFT, top), restart: restart, peers: peers, stateDir: t.TempDir(), dir: t.TempDir()}
	r.o = r.lab.Client("o")
	r.startGateway()
	file := filepath.Join(r.dir, "agent.yaml")
	r.ok(os.WriteFile(file, []byte(r.configuration()), 0o600))
	r.start(r.n1, lab.AgentOptions{Cluster: r.cluster, Backend: lab.NFT, Flags: []string{"--config=" + file}, Under: under})
	for _, n := range []*lab.Node{r.n2, r.n3} {
		r.start(n, lab.AgentOptions{Cluster: r.cluster, Backend: lab.NFT})
	}
	r.ready(r.n1, r.n2, r.n3)
	r.eventually(sessionBound, r.learned)
	return r
}

// configuration is that of n1's agent.
func (r *bgpRig) configuration() string {
	return fmt.Sprintf(`apiVersion: fairway.dev/v1alpha1
kind: AgentConfiguration
stateDir: %s
bgp:
  asn: 64512
  announce: [{addresses: [PodCIDRs, ClusterIPs]}]
  peers:
  - {address: %s, asn: 64500, holdTime: %s, connectRetryTime: 1s, gracefulRestart: %s}
%s`, r.stateDir, gatewayIP, holdTime, r.restart, r.peers)
}

// startGateway starts BIRD. With graceful restart it waits for the nodes to tell again what it had in the kernel (-R).
func (r *bgpRig) startGateway() {
	r.Helper()
	config := r.configureGateway()
	args := []string{"-f", "-c", config, "-s", filepath.Join(r.dir, "bird.ctl"), "-P", filepath.Join(r.dir, "bird.pid")}
	if r.restart != notGraceful {
		args = append(args, "-R")
	}
	p, err := r.lab.Router().Start(lab.Command{Path: "bird", Args: args})
	r.ok(err)
	r.bird = p
	r.Cleanup(func() {
		if r.Failed() {
			r.Logf("bird (%s):\n%s", p.State(), p.Output())
		}
	})
}

// configureGateway writes BIRD's configuration, and returns the file.
func (r *bgpRig) configureGateway() string {
	r.Helper()
	mode := "on"
	if r.restart == notGraceful {
		mode = "off"
	}
	var routes strings.Builder
	for _, prefix := range r.announced {
		fmt.Fprintf(&routes, " route %s blackhole;", prefix)
	}
	config := filepath.Join(r.dir, "bird.conf")
	r.ok(os.WriteFile(config, fmt.Appendf(nil, `
log stderr all;
router id %s;
graceful restart wait 20;
protocol device { }
protocol static { ipv4;%s }
protocol kernel { ipv4 { export where source = RTS_BGP; }; graceful restart; }
protocol bgp n1 {
  local as 64500;
  neighbor 10.240.0.11 as 64512;
  graceful restart %s;
  connect delay time 1; connect retry time 2; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`, gatewayIP, routes.String(), mode), 0o644))
	return config
}

// announce has the router announce these networks and no others.
func (r *bgpRig) announce(networks ...string) {
	r.Helper()
	r.announced = networks
	r.configureGateway()
	_, err := r.lab.Router().Run("birdc", "-s", filepath.Join(r.dir, "bird.ctl"), "configure")
	r.ok(err)
}

// learned is nil when the session is up, and the gateway's kernel sends n1's pods and the Service to n1.
func (r *bgpRig) learned() error {
	if err := r.session(gatewayIP, 1); err != nil {
		return err
	}
	return r.forwards(true)
}

func (r *bgpRig) session(peer string, want float64) error {
	if v := r.metric(r.n1, fmt.Sprintf("fairway_bgp_session_up{peer=%q}", peer)); v != want {
		return fmt.Errorf("the session with %s is up: %v", peer, v)
	}
	return nil
}

// forwards is nil when the gateway's kernel has the routes, or has none of them.
func (r *bgpRig) forwards(want bool) error {
	out, err := r.lab.Router().Run("ip", "-4", "route")
	for _, prefix := range []string{"10.200.1.0/24", webIPs[0].String()} {
		if strings.Contains(out, prefix+" via 10.240.0.11") != want {
			err = errors.Join(err, fmt.Errorf("the gateway has a route to %s: %v", prefix, !want))
		}
	}
	return err
}

// flows starts what goes on all the while: from outside through the gateway, and within the cluster.
func (r *bgpRig) flows() *traffic {
	r.Helper()
	inside := r.podFlows()
	return r.flow(map[string]flow{
		outsidePod:     flowTo(r.o.Namespace, lab.TCP, r.p2.Addr(cluster.IPv4), targetPort, 0, 100),
		outsideService: flowTo(r.o.Namespace, lab.TCP, webIPs[0], webPort, 0, 100),
		podTCP:         inside[podTCP], serviceTCP: inside[serviceTCP], serviceUDP: inside[serviceUDP],
	})
}

// inside are the flows that have nothing to do with the gateway.
var inside = []string{podTCP, serviceTCP, serviceUDP}

// downs counts how often n1's agent has lost a session with a peer.
func (r *bgpRig) downs(peer string) int {
	return strings.Count(r.agents["n1"].Output(), fmt.Sprintf(`"A BGP session is down" peer=%q`, peer))
}

// again starts n1's agent as it was, and waits until it is ready and has its session with the gateway.
func (r *bgpRig) again() {
	r.Helper()
	r.start(r.n1, r.agents["n1"].Options)
	r.ready(r.n1)
	r.eventually(sessionBound, r.learned)
}

// settle waits until the agent has told the gateway everything again. A router that loses the session before that drops what it has
// kept (RFC 4724, section 4.2).
func (r *bgpRig) settle() { time.Sleep(2 * time.Second) }

// router runs iptables commands on the gateway, for as long as during takes.
func (r *bgpRig) router(rules []string, during func()) {
	r.Helper()
	run := func(action string) {
		for _, rule := range rules {
			_, err := r.lab.Router().Run("iptables-nft", strings.Fields(action+" "+rule)...)
			r.ok(err)
		}
	}
	run("-I")
	during()
	run("-D")
}

// bgpIn are rules for what comes to the gateway over the session, whoever opened it.
func bgpIn(target string) []string {
	return []string{"INPUT -p tcp --sport 179 -s 10.240.0.11 " + target, "INPUT -p tcp --dport 179 -s 10.240.0.11 " + target}
}

// keepsRoutes fails the test if the gateway's kernel loses a route meanwhile, for however short.
func (r *bgpRig) keepsRoutes(meanwhile func()) {
	r.Helper()
	m, err := r.lab.Router().Start(lab.Command{Path: "ip", Args: []string{"-4", "monitor", "route"}})
	r.ok(err)
	n := 0
	mark := func() { // which the monitor tells, after all that came before; again, as it may not listen yet
		from := n
		r.eventually(eventBound, func() error {
			n++
			_, err := r.lab.Router().Run("ip", "route", "add", "blackhole", "192.0.2.0", "metric", fmt.Sprint(n))
			for told := from + 1; told <= n; told++ {
				if strings.Contains(m.Output(), fmt.Sprintf("192.0.2.0 metric %d ", told)) {
					return err
				}
			}
			return errors.Join(err, errors.New("ip monitor does not tell"))
		})
	}
	mark()
	meanwhile()
	mark()
	m.Kill()
	if out := m.Output(); strings.Contains(out, "Deleted 10.") {
		r.Errorf("the gateway lost routes for a moment:\n%s", out)
	}
}

// Fault 39: the connection is reset, the hold time expires, the router's daemon is killed and comes back; and the agent is killed and
// does not come back. With graceful restart the router keeps the routes for its time and no longer.
func TestFault39SessionEnds(t *testing.T) {
	t.Parallel()
	r := newBGPRig(t, "{restartTime: 15s}", "")
	r.settle()
	flows := r.flows()
	down := func() error { return r.session(gatewayIP, 0) }
	ended := func(what string, unharmed bool) {
		t.Helper()
		began := time.Now()
		r.eventually(sessionBound, r.learned)
		t.Logf("%s: the session is back after %.1f s", what, time.Since(began).Seconds())
		r.settle()
		names := inside
		if unharmed {
			names = nil // all of them
		}
		flows.stop(names...)
		flows = r.flows()
	}
	r.keepsRoutes(func() {
		r.router(bgpIn("-j REJECT --reject-with tcp-reset"), func() { r.eventually(sessionBound, down) })
		ended("connection reset", true)
	})
	r.router(append(bgpIn("-j DROP"), "OUTPUT -p tcp --dport 179 -j DROP", "OUTPUT -p tcp --sport 179 -j DROP"), func() { r.eventually(sessionBound, down) })
	ended("hold time expired", false) // a router that has heard nothing for so long believes in the node no more
	r.keepsRoutes(func() {
		r.bird.Kill()
		r.eventually(sessionBound, down)
		r.startGateway()
		ended("router killed and started", true)
	})

	r.agents["n1"].Kill()
	began := time.Now()
	flows.more(100)
	r.ok(r.forwards(true))
	flows.stop()
	r.eventually(sessionBound, func() error { return r.forwards(false) })
	kept := time.Since(began)
	t.Logf("without an agent, the router kept the routes for %.1f s", kept.Seconds())
	if kept < 10*time.Second {
		t.Errorf("the router kept the routes for %s, restartTime is 15s", kept)
	}
}

// Fault 39 without graceful restart: with the agent the routes are gone.
func TestFault39WithoutGracefulRestart(t *testing.T) {
	t.Parallel()
	r := newBGPRig(t, notGraceful, "")
	flows := r.flows()
	r.agents["n1"].Kill()
	r.eventually(sessionBound, func() error { return r.forwards(false) })
	flows.more(20)
	r.again()
	flows.works(outsidePod, outsideService)
	reports := flows.stop(inside...)
	for _, name := range []string{outsidePod, outsideService} {
		if reports[name].Failed() == 0 {
			t.Errorf("%s: nothing failed, although the router had no route", name)
		}
	}
}

// listen has a hostile peer wait at an address of the client c, for one session in which its case is sent if once is set.
func (r *bgpRig) listen(address string, p *hostile.Peer, once bool) {
	r.Helper()
	var l net.Listener
	r.ok(r.c.Do(func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(address, "179"))
		return err
	}))
	if once {
		p.Sending = func() { l.Close() }
	}
	go p.Serve(l)
	r.Cleanup(func() { l.Close() })
}

// hostilePeers are n further peers of a configuration.
func hostilePeers(n int) (addresses []string, configuration string) {
	for i := range n {
		addresses = append(addresses, fmt.Sprintf("10.240.1.%d", i+1))
		configuration += fmt.Sprintf("  - {address: %s, asn: 64500, connectRetryTime: 1s, gracefulRestart: {enabled: false}}\n", addresses[i])
	}
	return addresses, configuration
}

// Fault 41: peers send all that is known to have hurt somebody, at once. Their sessions may end; that with the gateway does not,
// and nobody's traffic notices.
func TestFault41MalformedMessages(t *testing.T) {
	t.Parallel()
	cases := slices.DeleteFunc(hostile.Corpus(), func(c hostile.Case) bool { return c.Fatal })
	addresses, peers := hostilePeers(len(cases))
	r := newBGPRig(t, graceful, peers)
	flows := r.flows()
	var batch strings.Builder
	for _, a := range addresses {
		fmt.Fprintf(&batch, "addr add %s/16 dev eth0\n", a)
	}
	_, err := r.c.RunInput(batch.String(), "ip", "-batch", "-")
	r.ok(err)
	all := make([]*hostile.Peer, len(cases))
	for i, c := range cases {
		all[i] = &hostile.Peer{ASN: 64500, ID: [4]byte{10, 240, 1, byte(i + 1)}, Case: c}
		r.listen(addresses[i], all[i], false)
	}
	r.eventually(sessionBound, func() error {
		for i, p := range all {
			if p.Sent() == 0 {
				return fmt.Errorf("%q has not been sent to the agent, which is %s", cases[i].Name, r.agents["n1"].State())
			}
		}
		return nil
	})
	flows.stop()
	r.ready(r.n1)
	if n := r.downs(gatewayIP); n != 0 {
		t.Errorf("the session with the gateway was lost %d times", n)
	}
	r.put(service("new", 20, 0), lab.Ready(r.p2))
	r.write()
	r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
}

// crashes is how often the BGP process of n1's agent has crashed.
func (r *bgpRig) crashes() float64 { return r.metric(r.n1, "fairway_bgp_crashes_total") }

func (r *bgpRig) crashed(want float64) error {
	if n := r.crashes(); n != want {
		return fmt.Errorf("BGP has crashed %v times, want %v", n, want)
	}
	return nil
}

// crash has a peer send something that gobgp does not survive, and waits until its process is gone. The agent stays.
func (r *bgpRig) crash(address string, c hostile.Case) {
	r.Helper()
	before := r.crashes()
	r.Logf("sent is %q", c.Name)
	r.listen(address, &hostile.Peer{ASN: 64500, ID: [4]byte{10, 240, 1, 1}, Case: c}, true)
	r.eventually(sessionBound, func() error { return r.crashed(before + 1) })
	a := r.agents["n1"]
	r.eventually(eventBound, func() error { // it is counted before it is written
		if out := a.Output(); !strings.Contains(out, "osrg/gobgp") || !strings.Contains(out, `"The BGP process has ended"`) {
			return fmt.Errorf("it is not gobgp that ended the process, or it is not told:\n%s", out)
		}
		return nil
	})
	select {
	case <-a.Exited():
		r.Fatalf("the agent has ended: %s", a.State())
	default:
	}
}

// follows has a Service get another endpoint, and waits until connections end there.
func (r *bgpRig) follows(n int) {
	r.Helper()
	r.put(service("new", n, 0), lab.Ready(r.p2))
	r.write()
	r.eventually(eventBound, func() error { return r.serves(n, r.p2) })
}

// Fault 42: a message ends the BGP process. The agent goes on, and so does what is in the kernel; the session with the gateway is back
// within five seconds. When that happens again, BGP waits before it begins anew, and nothing else does.
func TestFault42BGPCrashes(t *testing.T) {
	t.Parallel()
	addresses, peers := hostilePeers(1)
	r := newBGPRig(t, graceful, peers)
	r.eventually(sessionBound, func() error { return r.clientHas(addresses[0]) })
	cases := slices.DeleteFunc(hostile.Corpus(), func(c hostile.Case) bool { return !c.Fatal })
	flows := r.flows()
	r.settle()
	for i, c := range cases {
		r.crash(addresses[0], c)
		began := time.Now()
		r.follows(20 + i)
		r.ok(r.forwards(true))
		r.eventually(sessionBound, r.learned)
		r.measured("BGP crashed ("+c.Name+"), until the session is back", time.Since(began), 5*time.Second)
		r.settle()
		if i < len(cases)-1 { // the next agent has not heard of it
			r.ok(r.agents["n1"].Stop(startBound))
			r.again()
			r.settle()
		}
	}
	r.crash(addresses[0], cases[0])
	r.eventually(eventBound, func() error { return r.said(r.n1, 0, note{"Node n1", cluster.ReasonBGPHeldBack, "2 times (panic: "}) })
	r.follows(30)
	if up := r.metric(r.n1, fmt.Sprintf("fairway_bgp_session_up{peer=%q}", gatewayIP)); up != 0 {
		t.Error("BGP is not held back")
	}
	r.eventually(sessionBound, r.learned)
	r.eventually(eventBound, func() error { return r.quiet(r.n1, cluster.ReasonBGPHeldBack) })
	flows.stop()
}

// Fault 42, by other hands: the BGP process is killed, and another begins. When the agent is killed, it ends, too.
func TestFault42BGPKilled(t *testing.T) {
	t.Parallel()
	r := newBGPRig(t, graceful, "")
	r.settle()
	flows := r.flows()
	first := r.speaker()
	began := time.Now()
	r.ok(unix.Kill(first, unix.SIGKILL))
	r.eventually(eventBound, func() error { return r.crashed(1) })
	r.follows(20)
	r.eventually(sessionBound, r.learned)
	r.measured("the BGP process was killed, until the session is back", time.Since(began), 5*time.Second)
	flows.stop()

	second := r.speaker()
	if second == first {
		t.Errorf("the process is still %d", first)
	}
	r.agents["n1"].Kill()
	r.eventually(eventBound, func() error {
		// A process that has ended has no command line, whether somebody has waited for it or not.
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", second)); err == nil && strings.Contains(string(line), "bgp-speaker") {
			return fmt.Errorf("the BGP process %d has outlived its agent", second)
		}
		return nil
	})
}

// Fault 42, without an end: the BGP process does not answer. The agent kills it then, and begins another; all else goes on meanwhile. A
// router gives a silent node up after the hold time.
func TestFault42BGPHangs(t *testing.T) {
	t.Parallel()
	r := newBGPRig(t, graceful, "")
	flows := r.flows()
	began := time.Now()
	r.ok(unix.Kill(r.speaker(), unix.SIGSTOP))
	r.follows(20)
	r.eventually(2*sessionBound, func() error { return r.crashed(1) })
	if out := r.agents["n1"].Output(); !strings.Contains(out, `why="it did not answer (`) {
		t.Errorf("it is not told why it was killed:\n%s", out)
	}
	r.eventually(sessionBound, r.learned)
	t.Logf("the BGP process was stopped: the session is back after %.1f s", time.Since(began).Seconds())
	flows.stop(inside...)
}

// speaker is the BGP process of n1's agent.
func (r *bgpRig) speaker() int {
	r.Helper()
	pid, err := r.agents["n1"].BGPProcess()
	r.ok(err)
	return pid
}

// clientHas gives the client c an address.
func (r *bgpRig) clientHas(address string) error {
	_, err := r.c.Run("ip", "addr", "replace", address+"/16", "dev", "eth0")
	return err
}

// Fault 43: of what the node sends in a session, a part is lost on its way to the gateway. TCP sends it again; the session ends only
// where that takes longer than the hold time, which half of all packets lost may do.
func TestFault43OneWayLoss(t *testing.T) {
	t.Parallel()
	r := newBGPRig(t, graceful, "")
	flows := r.flows()
	for _, percent := range []int{5, 20, 50} {
		before := r.downs(gatewayIP)
		r.router(bgpIn(fmt.Sprintf("-m statistic --mode random --probability 0.%02d -j DROP", percent)), func() {
			time.Sleep(lasts(10*time.Minute, holdTime+2*time.Second))
		})
		flaps := r.downs(gatewayIP) - before
		t.Logf("%d %% lost: the session ended %d times", percent, flaps)
		if percent <= 20 && flaps > 0 {
			t.Errorf("with %d %% of the packets lost the session ended %d times", percent, flaps)
		}
	}
	r.eventually(sessionBound, r.learned)
	flows.stop(inside...)
}

// A disruption is something that a cluster goes through, for the loss table of docs/bgp.md.
type disruption struct {
	what string
	// kept tells that nothing may be lost with graceful restart.
	kept bool
	run  func(*bgpRig)
}

var disruptions = []disruption{
	{"the agent is killed (`kill -9`) and starts again after 2 s", true, func(r *bgpRig) {
		r.agents["n1"].Kill()
		time.Sleep(2 * time.Second)
		r.again()
	}},
	{"rolling restart: SIGTERM, the next agent starts after 2 s", true, func(r *bgpRig) {
		r.ok(r.agents["n1"].Stop(startBound))
		time.Sleep(2 * time.Second)
		r.again()
	}},
	{"the router's daemon is killed and starts again after 2 s", true, func(r *bgpRig) {
		r.bird.Kill()
		time.Sleep(2 * time.Second)
		r.startGateway()
		r.eventually(sessionBound, r.learned)
	}},
	{"the router reboots: it has no routes, and its daemon starts after 5 s", false, func(r *bgpRig) {
		r.bird.Kill()
		_, err := r.lab.Router().Run("ip", "route", "flush", "proto", "bird")
		r.ok(err)
		time.Sleep(5 * time.Second)
		r.startGateway()
		r.eventually(sessionBound, r.learned)
	}},
	{"the node's link is down for 1 s", false, func(r *bgpRig) {
		r.ip(r.n1, "link set eth0 down")
		time.Sleep(time.Second)
		r.ip(r.n1, "link set eth0 up", "route add default via "+gatewayIP)
		r.eventually(sessionBound, r.learned)
	}},
}

// TestLoss measures the loss table of docs/bgp.md, and prints it: what whoever is outside loses, with graceful restart and without.
func TestLoss(t *testing.T) {
	t.Parallel()
	rows := map[string][]string{}
	t.Cleanup(func() {
		for i, d := range disruptions {
			t.Logf("| %s | %s | %s |", d.what, rows[graceful][i], rows[notGraceful][i])
		}
	})
	for _, restart := range []string{graceful, notGraceful} {
		cells := make([]string, len(disruptions))
		rows[restart] = cells
		t.Run(restart, func(t *testing.T) {
			t.Parallel()
			r := newBGPRig(t, restart, "")
			for i, d := range disruptions {
				cells[i] = r.loses(d)
			}
		})
	}
}

// loses runs a disruption, and returns the cells of the loss table.
func (r *bgpRig) loses(d disruption) string {
	r.Helper()
	flows := r.flows()
	d.run(r)
	r.settle()
	flows.works(slices.Collect(maps.Keys(flows.flows))...)
	var worst lab.Report
	for name, report := range flows.stop(nobody) {
		outside := name == outsidePod || name == outsideService
		if outside && (worst.Attempts == 0 || report.Failed() > worst.Failed()) {
			worst = report
		}
	}
	switch lost := worst.Failed(); {
	case lost == 0:
		return "0 | 0"
	case d.kept && r.restart == graceful:
		r.Errorf("%s, with graceful restart: %s", d.what, worst)
		fallthrough
	default:
		return fmt.Sprintf("%d of %d | %s", lost, worst.Attempts, milliseconds(worst.LongestOutage))
	}
}
