package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// announcing is a configuration that announces pods, the service range and load balancer IPs.
func announcing() Config {
	return Config{NodeName: "n1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, BGP: &bgp.Config{NodeName: "n1", ASN: 64512,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		Announce: []bgp.Announcement{{Kinds: []bgp.Kind{bgp.PodCIDRs, bgp.ServiceCIDRs, bgp.LoadBalancerIPs},
			Attributes: bgp.Attributes{LocalPref: bgp.DefaultLocalPref}}}}}
}

// balanced is a plan of a node with Services that have a load balancer IP and an endpoint each.
func balanced(names ...string) *Plan {
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}}}
	for _, name := range names {
		last := name[0] - 'a' + 1
		s.Services = append(s.Services, &cluster.Service{Namespace: "default", Name: name, Type: "LoadBalancer",
			ClusterIPs:      []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, last})},
			LoadBalancerIPs: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, last})},
			Ports:           []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}},
			Slices: []*cluster.EndpointSlice{{Name: name, Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}},
				Endpoints: []cluster.Endpoint{{Addr: netip.AddrFrom4([4]byte{10, 244, 1, last + 1}), NodeName: "n1", Ready: true, Serving: true}}}}})
	}
	return MakePlan(s, announcing(), Offline, nil)
}

// TestAnnouncedWhenProgrammed: an address of a Service is announced when the rules in the kernel serve it, and withdrawn as soon
// as a Plan takes it away, whatever is in the kernel still.
func TestAnnouncedWhenProgrammed(t *testing.T) {
	const none, ab = "10.244.1.0/24", "10.96.0.0/16 10.244.1.0/24 203.0.113.1/32 203.0.113.2/32"
	rules := rulesPrefix + cluster.IPv4.String()
	p := newBGPPart("n1", []Part{&rulesPart{index: 0}}, process.New(process.Options{}))
	ready := func(when string, plan *Plan, want string, wantComplete bool) {
		t.Helper()
		table, complete := p.ready(plan.BGP)
		var got []string
		for _, path := range table.Paths {
			got = append(got, path.Prefix.String())
		}
		if strings.Join(got, " ") != want || complete != wantComplete {
			t.Errorf("%s: announced %s, complete %v; expected %s, %v", when, got, complete, want, wantComplete)
		}
	}
	one, two := balanced("a"), balanced("a", "b")
	ready("before there are rules", two, none, false)
	if p.observe(routesName, two, Report{}) {
		t.Error("routes are no news")
	}
	if !p.observe(rules, one, Report{}) {
		t.Error("the first rules are no news")
	}
	ready("before the rules of the second Service", two, "10.96.0.0/16 10.244.1.0/24 203.0.113.1/32", true)
	if !p.observe(rules, two, Report{}) {
		t.Error("new rules are no news")
	}
	ready("with both in the kernel", two, ab, true)
	if p.observe(rules, two, Report{}) {
		t.Error("the same rules are news")
	}
	ready("when the second Service goes, and its rules are there", one, "10.96.0.0/16 10.244.1.0/24 203.0.113.1/32", true)
	first := netfilter.Quarantine{Note: cluster.Note{Object: two.Snapshot.Services[0].Ref(), Reason: cluster.ReasonQuarantined}}
	quarantine := Report{Quarantined: []netfilter.Quarantine{first}}
	if !p.observe(rules, two, quarantine) {
		t.Error("a quarantined Service is no news")
	}
	ready("when the kernel refuses the first", two, "10.96.0.0/16 10.244.1.0/24 203.0.113.2/32", true)
	if p.observe(rules, two, quarantine) {
		t.Error("the same quarantine is news")
	}
	first.Served = true
	if !p.observe(rules, two, Report{Quarantined: []netfilter.Quarantine{first}}) {
		t.Error("older rules that serve it are no news")
	}
	ready("when it has older rules", two, ab, true)
	if got := len(two.BGP.Paths); got != 4 {
		t.Errorf("the Plan itself has %d paths, expected 4", got)
	}
}

// observingPart is told what others have in the kernel.
type observingPart struct {
	fakePart
	seen chan string
}

func (p *observingPart) observe(part string, _ *Plan, _ Report) bool {
	p.seen <- part
	return true
}

// TestObservers: an observer hears of every success of the others, and runs again; of failures and itself it hears nothing.
func TestObservers(t *testing.T) {
	watcher := &observingPart{fakePart{name: "watcher"}, make(chan string, 100)}
	good, bad := &fakePart{name: "good"}, &fakePart{name: "bad", fail: errors.New("no")}
	l, _ := startLoop(t, watcher, good, bad)
	l.publish(&cluster.Snapshot{})
	l.setHost(&cluster.Host{})
	if got := <-watcher.seen; got != "good" {
		t.Errorf("the first success was %s's", got)
	}
	eventually(t, "the observer ran again", func() bool { syncs, _, _ := watcher.see(); return syncs >= 2 })
	l.kick("good")
	if got := <-watcher.seen; got != "good" {
		t.Errorf("the next success was %s's", got)
	}
	if len(watcher.seen) > 0 {
		t.Errorf("there was another: %s", <-watcher.seen)
	}
}

// TestSessionNotes: what is not as it should be is told, with the last error; a new session has its time.
func TestSessionNotes(t *testing.T) {
	now := time.Now()
	peer := bgp.Peer{Address: netip.MustParseAddr("192.0.2.1"), ASN: 64500}
	restarts := peer
	restarts.RestartTime = time.Minute
	for _, c := range []struct {
		name    string
		session speaker.Session
		want    string
		retry   time.Duration
	}{
		{"up", speaker.Session{Peer: peer, State: "established"}, "", 0},
		{"new", speaker.Session{Peer: peer, State: "active", Since: now.Add(-5 * time.Second)}, "", sessionPatience - 5*time.Second},
		{"never up", speaker.Session{Peer: peer, State: "active", Since: now.Add(-time.Minute), LastError: "connection refused"},
			"BGPSessionDown: The session with the BGP peer 192.0.2.1 (AS 64500) is down: connection refused.", 0},
		{"lost", speaker.Session{Peer: peer, State: "idle", Since: now, BeenUp: true}, "BGPSessionDown: The session with the BGP peer 192.0.2.1 (AS 64500) is down: no answer.", 0},
		{"no password", speaker.Session{Peer: peer, State: "no-password", LastError: "read the password: no such file"},
			"BGPPasswordMissing: There is no session with the BGP peer 192.0.2.1: read the password: no such file.", sessionPatience},
		{"password gone", speaker.Session{Peer: peer, State: "established", PasswordError: "no such file"},
			"BGPPasswordMissing: The password of the BGP peer 192.0.2.1 can't be read any more, and the session goes on with the one that it has: no such file.", 0},
		{"sent too much", speaker.Session{Peer: bgp.Peer{Address: peer.Address, ASN: 64500, MaxPrefixes: 100}, State: "idle", Since: now.Add(-20 * time.Second), BeenUp: true, TooMany: true},
			"BGPTooManyPrefixes: The BGP peer 192.0.2.1 (AS 64500) sent more than 100 prefixes of a family; its session is ended, and tried again after 1m0s.", 41 * time.Second},
		{"keeps routes", speaker.Session{Peer: restarts, State: "established", GracefulRestart: true}, "", 0},
		{"does not keep routes", speaker.Session{Peer: restarts, State: "established"}, "BGPNoGracefulRestart: The BGP peer 192.0.2.1 does not keep", 0},
	} {
		notes, retry := sessionNotes([]speaker.Session{c.session}, cluster.Ref{Kind: "Node", Name: "n1"}, now)
		text := ""
		for _, n := range notes {
			text += strings.TrimPrefix(n.String(), "Node n1: ")
		}
		if !strings.HasPrefix(text, c.want) || c.want == "" && text != "" || retry != c.retry {
			t.Errorf("%s: %q, again in %s; expected %q, %s", c.name, text, retry, c.want, c.retry)
		}
	}
}

// TestRouterIDChanged: the identifier stays what it was at first, and a Note says so.
func TestRouterIDChanged(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	plan := balanced()
	for _, c := range []struct{ address, want string }{{"192.0.2.11", ""}, {"192.0.2.12", cluster.ReasonBGPRouterIDChanged}, {"192.0.2.11", ""}} {
		table := *plan.BGP
		table.RouterID = netip.MustParseAddr(c.address)
		next := *plan
		next.BGP = &table
		r, err := p.Sync(t.Context(), &next, false)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, n := range r.Notes {
			got += n.Reason
		}
		if got != c.want {
			t.Errorf("with the InternalIP %s: %q, expected %q", c.address, got, c.want)
		}
	}
}
