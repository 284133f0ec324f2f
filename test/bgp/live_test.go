package bgp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// ask runs fairway bgp on a node, and returns what it prints, what it says beside that, and its exit code.
func (r *rig) ask(n *lab.Node, args ...string) (out, beside string, code int) {
	r.Helper()
	binary, err := lab.AgentBinary()
	r.ok(err)
	file := filepath.Join(r.TempDir(), "beside")
	command := fmt.Sprintf("%s bgp %s --control-socket=%s 2>%s", binary, strings.Join(args, " "), n.ControlSocket(), file)
	out, err = n.Run("bash", "-c", command)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	r.ok(err)
	text, err := os.ReadFile(file)
	r.ok(err)
	return out, string(text), code
}

// A shownSession is a session as fairway bgp -o json has it.
type shownSession struct {
	Address         netip.Addr
	ASN             uint32
	State           string
	Since           time.Time
	Prefixes        map[string]struct{ Sent, Received int }
	GracefulRestart struct {
		KeepsRoutes bool
		Peer        *struct {
			RestartTime string
			Families    []string
		}
	}
	LastError, PasswordError, Settings string
}

// sessions is what fairway bgp shows, by the peers' addresses.
func (r *rig) sessions(n *lab.Node) map[string]shownSession {
	r.Helper()
	out, beside, code := r.ask(n, "-o", "json")
	var shown struct {
		ASN      uint32
		RouterID string
		Peers    []shownSession
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code > 1 || shown.ASN != 64512 || shown.RouterID != "192.0.2.11" {
		r.Fatalf("fairway bgp -o json: exit code %d, %v\n%s%s", code, err, out, beside)
	}
	byPeer := map[string]shownSession{}
	for _, s := range shown.Peers {
		byPeer[s.Address.String()] = s
	}
	return byPeer
}

// liveGateway is a gateway's configuration; its arguments are the BGP identifier and the password.
const liveGateway = `
log stderr all;
timeformat protocol iso long ms;
router id %s;
protocol device { }
protocol static { ipv4; route 100.64.1.0/24 blackhole; }
protocol bgp node1 {
  local as 64500;
  neighbor 192.0.2.11 as 64512;
  password "%s";
  error wait time 1, 2;
  startup hold time 5;
  ipv4 { import all; export all; };
  ipv6 { import all; export none; };
}
`

// since is when the session with the node changed its state, as the gateway has it, and whether it is up. BIRD reckons it anew each
// time, and is not of one opinion about the milliseconds: a difference of some is none.
func (g *gateway) since() (since time.Time, up bool) {
	g.Helper()
	out, err := g.ns.Run("birdc", "-s", filepath.Join(g.dir, "bird.ctl"), "show", "protocols", "node1")
	if err != nil {
		g.Fatal(err)
	}
	m := regexp.MustCompile(`node1\s+BGP\s+\S+\s+\S+\s+(\S+ \S+)\s+(\S*)`).FindStringSubmatch(out)
	if m == nil {
		g.Fatalf("BIRD shows no session with the node:\n%s", out)
	}
	since, err = time.Parse("2006-01-02 15:04:05.000", m[1])
	if err != nil {
		g.Fatal(err)
	}
	return since, m[2] == "Established"
}

// same tells whether two times are of the same change: there is a second between two edits.
func same(a, b time.Time) bool { return a.Sub(b).Abs() < 500*time.Millisecond }

// established waits until the session is up, and returns since when; not before a moment that is given.
func (r *rig) established(g *gateway, not time.Time) (since time.Time) {
	r.Helper()
	r.eventually(sessionBound, func() (err error) {
		var up bool
		if since, up = g.since(); !up || same(since, not) {
			return fmt.Errorf("the gateway's session is in a state since %s; up: %v; expected up, and not since %s", since, up, not)
		}
		return nil
	})
	return since
}

// A liveEdit is an edit of the configuration.
type liveEdit struct {
	// rows are those of the table in docs/bgp.md that it is an example of.
	rows string
	// peer are the first peer's settings, rest is the rest of the section bgp; the test fills in what is empty.
	peer, rest string
	// more are further peers.
	more string
	// applied is nil when the edit is in force, as far as it will be.
	applied func(*rig, *gateway) error
	// apart tells that with these settings the two sides can have no session.
	apart bool
}

// What the edits' effects are.
const (
	resetsNone = "none"
	resetsThis = "this session"
	resetsAll  = "all sessions"
)

// documentedResets reads the table of docs/bgp.md: what an edit of each field resets.
func documentedResets(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/bgp.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| edit of | resets |")
	if !found {
		t.Fatal("docs/bgp.md has no table of what an edit resets")
	}
	rows := map[string]string{}
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			break
		}
		rows[strings.ReplaceAll(strings.TrimSpace(cells[1]), "`", "")] = strings.TrimSpace(cells[2])
	}
	return rows
}

// TestEveryFieldResets: the table of docs/bgp.md has each field of the section bgp; a peer's address is what makes it another one.
func TestEveryFieldResets(t *testing.T) {
	rows := ""
	for row := range documentedResets(t) {
		rows += " " + strings.ReplaceAll(row, ",", "") + " "
	}
	var check func(section reflect.Type, above string)
	check = func(section reflect.Type, above string) {
		for field := range section.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if list := field.Type; (list.Kind() == reflect.Slice || list.Kind() == reflect.Pointer) && list.Elem().Kind() == reflect.Struct {
				check(list.Elem(), above+name+".")
			} else if !strings.Contains(rows, " "+above+name+" ") && above+name != "peers.address" {
				t.Errorf("docs/bgp.md does not say what an edit of %s resets", above+name)
			}
		}
	}
	check(reflect.TypeFor[agent.BGPConfiguration](), "")
}

// setting is met when fairway bgp shows a setting of the first peer.
func setting(text string) func(*rig, *gateway) error {
	return func(r *rig, _ *gateway) error {
		if s := r.sessions(r.n1)["192.0.2.1"].Settings; !strings.Contains(s+" ", text+" ") {
			return fmt.Errorf("the settings are %q, expected %q", s, text)
		}
		return nil
	}
}

// learns is met when the gateway's routes have the texts.
func learns(texts ...string) func(*rig, *gateway) error {
	return func(_ *rig, g *gateway) error { return g.learned(texts...) }
}

// logged is met when the agent's log has a text.
func logged(text string) func(*rig, *gateway) error {
	return func(r *rig, _ *gateway) error {
		if !strings.Contains(r.agents[r.n1].Output(), text) {
			return fmt.Errorf("the agent's log has no %q", text)
		}
		return nil
	}
}

// liveEdits are edits, each on top of a configuration with nothing of what is said here, in an order in which each is a change.
var liveEdits = []liveEdit{
	{rows: "announce.communities", rest: `announce: [{addresses: [PodCIDRs], communities: ["64512:7"]}]`, applied: learns("(64512,7)")},
	{rows: "announce.med", rest: "announce: [{addresses: [PodCIDRs], med: 77}]", applied: learns("BGP.med: 77", "!(64512,7)")},
	{rows: "announce.asPathPrepend", rest: "announce: [{addresses: [PodCIDRs], asPathPrepend: 2}]", applied: learns("64512 64512 64512", "!BGP.med: 77")},
	{rows: "announce.addresses", rest: "announce: [{addresses: [PodCIDRs, LoadBalancerIPs]}]", applied: learns(localIP.String(), "!64512 64512")},
	{rows: "announce.localPref", rest: "announce: [{addresses: [PodCIDRs, LoadBalancerIPs], localPref: 7}]", applied: logged("local-pref 7")},
	{rows: "announceFromExcludedNodes", rest: "announceFromExcludedNodes: true", applied: learns("!" + localIP.String())},
	{rows: "import.prefixes, import.ge, import.le", rest: "import: [{prefixes: [100.64.0.0/16], ge: 24, le: 24}]", applied: func(r *rig, _ *gateway) error {
		return kernelHas(r.n1.Namespace, cluster.IPv4, "100.64.1.0/24")
	}},
	{rows: "kubeRouterAnnotations", rest: "kubeRouterAnnotations: true", applied: func(r *rig, _ *gateway) error {
		if kernelHas(r.n1.Namespace, cluster.IPv4, "100.64.1.0/24") == nil {
			return errors.New("what was imported is left")
		}
		return nil
	}},
	{rows: "peers.maxPrefixes", peer: "maxPrefixes: 500", applied: setting("max-prefixes 500")},
	{rows: "drainOnTaints, leave", rest: "drainOnTaints: [example.com/maintenance], leave: {noticeTime: 0s}", applied: logged("it has the taint example.com/maintenance:NoSchedule")},
	{rows: "peers.connectRetryTime", peer: "connectRetryTime: 2s", applied: setting("retry 2s")},
	{rows: "peers.passwordFile", peer: "passwordFile: OTHERFILE", applied: setting("retry 1s")},
	{rows: "peers.nodeSelector", peer: "nodeSelector: {kubernetes.io/hostname: n1}", applied: nil},
	{rows: "peers (one more)", more: "{address: 192.0.2.12, asn: 64500}", applied: func(r *rig, _ *gateway) error {
		if _, shown := r.sessions(r.n1)["192.0.2.12"]; !shown {
			return errors.New("fairway bgp does not show the new peer")
		}
		return nil
	}},
	{rows: "peers (one less)", applied: func(r *rig, _ *gateway) error {
		if n := len(r.sessions(r.n1)); n != 2 {
			return fmt.Errorf("fairway bgp shows %d peers", n)
		}
		return nil
	}},
	{rows: "peers.holdTime", peer: "holdTime: 21s", applied: setting("hold 21s")},
	{rows: "peers.keepaliveTime", peer: "keepaliveTime: 3s", applied: setting("keepalive 3s")},
	{rows: "peers.gracefulRestart", peer: "gracefulRestart: {restartTime: 60s}", applied: setting("graceful-restart 1m0s")},
	{rows: "peers.families", peer: "families: [IPv4, IPv6]", applied: learns("fd00:10:244:1::/64")},
	{rows: "peers.localAddress", peer: "localAddress: 192.0.2.11", applied: setting("from 192.0.2.11")},
	{rows: "peers.multihop", peer: "multihop: 2", applied: setting("multihop 2")},
	{rows: "peers.ttlSecurity", peer: "ttlSecurity: 1", applied: setting("ttl-security 1"), apart: true},
	{rows: "peers.port", peer: "port: 1179", applied: setting("192.0.2.1:1179"), apart: true},
	{rows: "peers.asn", peer: "asn: 64501", applied: setting("AS 64501"), apart: true},
}

// TestEdits: the configuration is edited while the agent runs, as the table of docs/bgp.md has it. The sessions that should stay
// do, and the others are reset; and fairway bgp shows what is in force.
func TestEdits(t *testing.T) {
	rows := documentedResets(t)
	r := newRig(t)
	first := startBIRD(t, r.lab.Router(), fmt.Sprintf(liveGateway, "192.0.2.1", "secret"))
	second := startBIRD(t, r.lab.Client("gw2").Namespace, fmt.Sprintf(liveGateway, "192.0.2.2", "secret"))
	dir := t.TempDir()
	passwords := filepath.Join(dir, "password")
	for _, file := range []string{passwords, filepath.Join(dir, "same")} {
		r.ok(os.WriteFile(file, []byte("secret\n"), 0o600))
	}
	configuration := func(e liveEdit) string {
		has := func(text, field string) bool { return strings.Contains(text, field) }
		peer := []string{"address: 192.0.2.1", e.peer}
		for _, field := range []string{"asn: 64500", "connectRetryTime: 1s", "holdTime: 12s", "passwordFile: " + passwords} {
			if name, _, _ := strings.Cut(field, ":"); !has(e.peer, name) {
				peer = append(peer, field)
			}
		}
		text := fmt.Sprintf("syncPeriod: 2s\nbgp: {asn: 64512, peers: [{%s}, {address: 192.0.2.2, asn: 64500, connectRetryTime: 1s, passwordFile: %s}%s]%s}\n",
			strings.Join(slices.DeleteFunc(peer, func(s string) bool { return s == "" }), ", "), passwords, before(", ", e.more), before(", ", e.rest))
		return strings.ReplaceAll(text, "OTHERFILE", filepath.Join(dir, "same"))
	}
	plain := configuration(liveEdit{})
	r.changeNode(0, func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "example.com/maintenance", Effect: corev1.TaintEffectNoSchedule}}
	})
	r.start(plain, r.n1)
	stays := r.established(second, time.Time{})
	since := r.established(first, time.Time{})
	r.shows()

	for _, e := range liveEdits {
		resets, documented := rows[e.rows]
		delete(rows, e.rows)
		if !documented || !slices.Contains([]string{resetsNone, resetsThis}, resets) {
			t.Errorf("docs/bgp.md does not say what an edit of %s resets: %q", e.rows, resets)
			continue
		}
		began := time.Now()
		r.edit(r.n1, configuration(e))
		switch {
		case e.applied == nil:
			time.Sleep(4 * time.Second) // it has no effect but that there is none
		default:
			r.eventually(sessionBound, func() error { return e.applied(r, first) })
		}
		switch {
		case resets != resetsThis:
			if now, up := first.since(); !same(now, since) || !up {
				t.Errorf("%s: the session is in its state since %s, up %v; expected since %s", e.rows, now, up, since)
			}
		case !e.apart:
			since = r.established(first, since)
		default:
			r.eventually(sessionBound, func() error {
				if now, up := first.since(); same(now, since) || up {
					return fmt.Errorf("%s: the session was not reset, it is up since %s", e.rows, now)
				}
				return nil
			})
			if out, beside, code := r.ask(r.n1); code != 1 || !strings.Contains(out, "192.0.2.2 ") || !strings.Contains(beside, "not all BGP sessions are up: there is none with 192.0.2.1\n") {
				t.Errorf("%s: fairway bgp has exit code %d and prints\n%s%s", e.rows, code, out, beside)
			}
			r.edit(r.n1, plain)
			since = r.established(first, since)
		}
		if now, up := second.since(); !same(now, stays) || !up {
			t.Errorf("%s: the session with the other gateway is in its state since %s, up %v; expected since %s", e.rows, now, up, stays)
		}
		t.Logf("%s: resets %s, %.1f s", e.rows, resets, time.Since(began).Seconds())
	}

	// Another password, in the file that both peers have: both sessions begin anew, and come up when the gateways have it, too.
	r.edit(r.n1, plain)
	r.eventually(sessionBound, func() error { return setting("hold 12s keepalive 4s retry 1s")(r, first) })
	since = r.established(first, time.Time{})
	delete(rows, "the password itself")
	r.ok(os.WriteFile(passwords, []byte("another\n"), 0o600))
	for _, g := range []struct {
		*gateway
		id    string
		since time.Time
	}{{first, "192.0.2.1", since}, {second, "192.0.2.2", stays}} {
		r.eventually(sessionBound, func() error {
			if now, up := g.gateway.since(); same(now, g.since) || up {
				return fmt.Errorf("the session with %s goes on with the old password", g.id)
			}
			return nil
		})
		g.write("bird.conf", fmt.Sprintf(liveGateway, g.id, "another"))
		_, err := g.ns.Run("birdc", "-s", filepath.Join(g.dir, "bird.ctl"), "configure")
		r.ok(err)
		r.established(g.gateway, g.since)
	}
	// The file is gone: the sessions go on, and that is told.
	since, _ = first.since()
	r.ok(os.Remove(passwords))
	r.eventually(sessionBound, func() error {
		return r.noted(r.n1, cluster.ReasonBGPPasswordMissing, "192.0.2.1 can't be read any more")
	})
	if s := r.sessions(r.n1)["192.0.2.1"]; s.State != "established" || !strings.Contains(s.PasswordError, passwords) {
		t.Errorf("without its password's file: %+v", s)
	}
	if now, up := first.since(); !same(now, since) || !up {
		t.Errorf("when the password's file goes, the session is in its state since %s, up %v; expected since %s", now, up, since)
	}

	// The whole section is taken away, and comes back: then there is no session without the password.
	delete(rows, "the whole section, taken away")
	r.edit(r.n1, "syncPeriod: 2s\n")
	for _, g := range []*gateway{first, second} {
		r.eventually(sessionBound, func() error { return g.learned("!10.244.1.0/24") })
	}
	if _, beside, code := r.ask(r.n1); code != 2 || !strings.Contains(beside, "this agent speaks no BGP: its configuration has no section bgp") {
		t.Errorf("fairway bgp without BGP: exit code %d, %s", code, beside)
	}
	r.edit(r.n1, plain)
	r.eventually(sessionBound, func() error {
		return r.noted(r.n1, cluster.ReasonBGPPasswordMissing, "There is no session with the BGP peer 192.0.2.1")
	})
	r.ok(first.learned("!10.244.1.0/24"))
	r.ok(os.WriteFile(passwords, []byte("another\n"), 0o600))
	r.eventually(sessionBound, func() error { return first.learned("10.244.1.0/24") })
	for row := range rows {
		if slices.Contains(meshRows, row) || row == identityRow {
			continue
		}
		t.Errorf("an edit of %q, which docs/bgp.md has, is not tried", row)
	}
}

// identityRow is the row of the table in docs/bgp.md that TestIdentityEdits tries.
const identityRow = "asn, routerID, listenPort"

// TestIdentityEdits: another routerID and listenPort are in force in sessions that begin anew, which whoever comes through a gateway with
// graceful restart does not notice. A port that is taken changes nothing but that it is said. Another ASN is in force when the gateway has it.
func TestIdentityEdits(t *testing.T) {
	if resets := documentedResets(t)[identityRow]; resets != resetsAll {
		t.Errorf("docs/bgp.md says that another identity resets %q", resets)
	}
	for _, gw := range []struct {
		name, block string
		start       func(*testing.T, *lab.Namespace, string) *gateway
		// shows is a command that prints the node's BGP identifier.
		shows string
		// community is how it prints 64512:101.
		community string
		// renumber changes the gateway's idea of the node's ASN.
		renumber func(*gateway) error
	}{
		{"BIRD", "bird", startBIRD, "birdc -s DIR/bird.ctl show protocols all", "(64512,101)", func(g *gateway) error {
			g.write("bird.conf", strings.ReplaceAll(example(g.T, "bird"), "64512", "64513"))
			_, err := g.ns.Run("birdc", "-s", filepath.Join(g.dir, "bird.ctl"), "configure")
			return err
		}},
		{"FRR", "frr", startFRR, "vtysh --vty_socket DIR -c 'show bgp neighbors'", "64512:101", nil},
	} {
		t.Run(gw.name, func(t *testing.T) {
			r := newRig(t)
			g := gw.start(t, r.lab.Router(), example(t, gw.block))
			configuration := func(identity, community string) string {
				return strings.NewReplacer("  asn: 64512\n", identity, "64512:100", community).Replace(example(t, "yaml"))
			}
			r.start(configuration("  asn: 64512\n", "64512:100"), r.n1)
			r.eventually(sessionBound, func() error { return r.up(r.n1, 2) })
			probes := r.reaching()
			time.Sleep(3 * time.Second) // past the time for which updates are held back
			is := func(id string, asn, port int) error {
				out, err := g.ns.Run("bash", "-c", strings.ReplaceAll(gw.shows, "DIR", g.dir))
				if err == nil && !strings.Contains(out, id) {
					err = fmt.Errorf("the gateway does not show the identifier %s:\n%s", id, out)
				}
				listening, listenErr := r.n1.Run("ss", "-Htln", fmt.Sprintf("sport = :%d", port))
				if listening == "" {
					err = errors.Join(err, fmt.Errorf("nobody listens at port %d", port))
				}
				shown, _, _ := r.ask(r.n1)
				if want := fmt.Sprintf("AS %d, BGP identifier %s\n", asn, id); !strings.HasPrefix(shown, want) {
					err = errors.Join(err, fmt.Errorf("fairway bgp does not begin with %q:\n%s", want, shown))
				}
				return errors.Join(err, listenErr, r.up(r.n1, 2))
			}
			r.edit(r.n1, configuration("  asn: 64512\n  routerID: 192.0.2.99\n  listenPort: 1790\n", "64512:100"))
			r.eventually(sessionBound, func() error { return is("192.0.2.99", 64512, 1790) })
			time.Sleep(3 * time.Second)

			taken, err := r.n1.Serve(lab.Server{Name: "somebody", Proto: lab.TCP, Port: 1791})
			r.ok(err)
			downs := func() int { return strings.Count(r.agents[r.n1].Output(), `"A BGP session is down"`) }
			before := downs()
			r.edit(r.n1, configuration("  asn: 64512\n  routerID: 192.0.2.98\n  listenPort: 1791\n", "64512:101"))
			r.eventually(sessionBound, func() error {
				return logged("bgp.listenPort 1791: listen for BGP peers: listen tcp4 0.0.0.0:1791: bind: address already in use; the BGP sessions go on with AS 64512, bgp.listenPort 1790")(r, g)
			})
			r.eventually(sessionBound, func() error { return errors.Join(is("192.0.2.99", 64512, 1790), g.learned(gw.community)) })
			if n := downs() - before; n != 0 {
				t.Errorf("a port that is taken ended %d sessions", n)
			}
			if _, body, err := r.n1.Get("http://127.0.0.1:10256/readyz", 5*time.Second); err != nil || !strings.Contains(body, "bgp.listenPort 1791: listen for BGP peers") {
				t.Errorf("/readyz does not say why: %v\n%s", err, body)
			}
			r.ok(taken.Close())
			r.eventually(sessionBound, func() error { return is("192.0.2.98", 64512, 1791) })
			time.Sleep(3 * time.Second)
			for _, p := range probes {
				report := p.Stop()
				t.Log(report)
				if report.Failed() > 0 {
					t.Errorf("another identity was noticed: %s", report)
				}
			}
			if gw.renumber == nil {
				return
			}
			r.edit(r.n1, configuration("  asn: 64513\n", "64512:100"))
			r.eventually(sessionBound, func() error {
				return logged(`"BGP begins anew, for another asn, routerID or listenPort" asn=64513`)(r, g)
			})
			r.ok(gw.renumber(g))
			r.eventually(sessionBound, func() error {
				shown, _, _ := r.ask(r.n1)
				if !strings.HasPrefix(shown, "AS 64513, BGP identifier 192.0.2.11\n") {
					return fmt.Errorf("fairway bgp shows\n%s", shown)
				}
				return errors.Join(r.up(r.n1, 2), g.learned("10.244.1.0/24"), r.reaches(r.p1.Addrs[0], targetPort, "p1"))
			})
		})
	}
}

// shows checks what fairway bgp prints while both sessions are up.
func (r *rig) shows() {
	r.Helper()
	r.eventually(sessionBound, func() error {
		if s := r.sessions(r.n1)["192.0.2.1"]; s.Prefixes["IPv4"].Sent != 1 || s.Prefixes["IPv4"].Received != 1 {
			return fmt.Errorf("fairway bgp counts %+v", s.Prefixes)
		}
		return nil
	})
	s := r.sessions(r.n1)["192.0.2.1"]
	if s.ASN != 64500 || s.State != "established" || time.Since(s.Since) > sessionBound || len(s.Prefixes) != 1 || !s.GracefulRestart.KeepsRoutes ||
		s.GracefulRestart.Peer == nil || s.GracefulRestart.Peer.RestartTime != "2m0s" {
		r.Errorf("fairway bgp shows %+v", s)
	}
	for _, c := range []struct {
		args []string
		code int
		// want matches what is printed, each text once; "!" begins what it should not have.
		want []string
	}{
		{nil, 0, []string{`AS 64512, BGP identifier 192.0.2.11\n\n`, `192.0.2.1\s+64500\s+established\s+\d+s\s+1 IPv4\s+1 IPv4\s+yes\s+restart time 2m0s`, `192.0.2.2\s+64500\s+established`}},
		{[]string{"routes"}, 0, []string{`192.0.2.1\s+sent\s+10.244.1.0/24\s+192.0.2.11\s+64512\s+IGP\s+-\s+-\s+-\n`,
			`192.0.2.1\s+received\s+100.64.1.0/24\s+192.0.2.1\s+64500\s+IGP\s+-\s+-\s+-\n`, `192.0.2.2\s+sent`, `192.0.2.2\s+received`}},
		{[]string{"routes", "sent", "--peer", "192.0.2.1"}, 0, []string{`192.0.2.1\s+sent\s+10.244.1.0/24`, "!received  ", "!192.0.2.2"}},
		{[]string{"routes", "received", "-o", "json"}, 0, []string{`"direction": "received",\s+"prefix": "100.64.1.0/24",\s+"nextHop": "192.0.2.1",\s+"asPath": "64500",\s+"origin": "IGP"`, `!"sent"`}},
		{[]string{"routes", "--peer", "192.0.2.9"}, 2, []string{`192.0.2.9 is no BGP peer of this node; its peers are 192.0.2.1, 192.0.2.2`}},
		{[]string{"routes", "lost"}, 2, []string{`unknown direction "lost", expected sent, received`}},
	} {
		out, beside, code := r.ask(r.n1, c.args...)
		if code != c.code {
			r.Errorf("fairway bgp %s: exit code %d, expected %d", strings.Join(c.args, " "), code, c.code)
		}
		for _, want := range c.want {
			pattern, not := strings.CutPrefix(want, "!")
			if regexp.MustCompile(pattern).MatchString(out+beside) == not {
				r.Errorf("fairway bgp %s: %q is there: %v\n%s%s", strings.Join(c.args, " "), pattern, not, out, beside)
			}
		}
	}
}

func before(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}
