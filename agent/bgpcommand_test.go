package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/report"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// TestShowWithoutBGP: an agent that has not begun, or has no BGP, says so; one that has no peers on this node prints none.
func TestShowWithoutBGP(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	path := filepath.Join(t.TempDir(), "agent.sock")
	s := serveSocket(t, path, controlHandler(p, nil))
	defer s.stop()
	query := BGPQuery{Socket: path, Format: "text"}
	eventually(t, "the socket is served", func() bool { return !errors.Is(ShowBGP(t.Context(), query, &bytes.Buffer{}), ErrNoAgent) })
	show := func() string {
		t.Helper()
		var out, routes bytes.Buffer
		err, routesErr := ShowBGP(t.Context(), query, &out), ShowBGPRoutes(t.Context(), query, &routes)
		if (err == nil) != (routesErr == nil) || err != nil && err.Error() != routesErr.Error() {
			t.Errorf("asked for the sessions: %v, for the routes: %v", err, routesErr)
		}
		if err != nil {
			return err.Error()
		}
		return out.String() + routes.String()
	}
	if got := show(); got != errBGPWaiting.Error() {
		t.Errorf("before the first Plan: %s", got)
	}
	plan := balanced()
	without := *plan
	without.BGP = nil
	if _, err := p.Sync(t.Context(), &without, false); err != nil {
		t.Fatal(err)
	}
	if got := show(); got != errNoBGP.Error() {
		t.Errorf("without BGP: %s", got)
	}
	if _, err := p.Sync(t.Context(), plan, false); err != nil {
		t.Fatal(err)
	}
	if got := show(); !strings.HasPrefix(got, "AS 64512, BGP identifier 192.0.2.11\n\nPEER ") || strings.Count(got, "\n") != 4 {
		t.Errorf("without peers:\n%s", got)
	}
}

// TestShowText: what is printed of sessions and routes.
func TestShowText(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	peer := func(address string, restart time.Duration) bgp.Peer {
		return bgp.Peer{Address: netip.MustParseAddr(address), Port: 179, ASN: 64500, RestartTime: restart}
	}
	status := bgpStatus{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11")}
	for _, s := range []speaker.Session{
		{Peer: peer("192.0.2.1", time.Minute), State: "established", Since: now.Add(-90 * time.Minute), Families: [2]bool{true, true}, GracefulRestart: true,
			PeerRestart: &speaker.PeerRestart{Time: 2 * time.Minute, Restarting: true, Families: [2]bool{true, true}}, Announced: [2]int{3, 1}, Received: [2]int{0, 2}},
		{Peer: peer("192.0.2.2", 0), State: "established", Since: now.Add(-time.Second), Families: [2]bool{true, false}, PasswordError: "no such file", LastError: "older"},
		{Peer: peer("192.0.2.3", time.Minute), State: "established", Since: now, Families: [2]bool{false, true}},
		{Peer: peer("2001:db8::1", time.Minute), State: "active", Since: now.Add(time.Second), LastError: "connection refused"},
	} {
		status.Peers = append(status.Peers, peerStatus(s))
	}
	for _, c := range []struct {
		value any
		text  string
	}{
		{status, `AS 64512, BGP identifier 192.0.2.11

PEER         AS     STATE        FOR      SENT            RECEIVED        KEEPS ROUTES  PEER'S OPEN                             LAST ERROR
192.0.2.1    64500  established  1h30m0s  3 IPv4, 1 IPv6  0 IPv4, 2 IPv6  yes           restart time 2m0s IPv4 IPv6, restarted  -
192.0.2.2    64500  established  1s       0 IPv4          0 IPv4          not asked     no graceful restart                     no such file
192.0.2.3    64500  established  0s       0 IPv6          0 IPv6          no            no graceful restart                     -
2001:db8::1  64500  active       0s       -               -               -             -                                       connection refused
`},
		{bgpRoutes{Routes: []bgpRoute{
			{Peer: netip.MustParseAddr("192.0.2.1"), Direction: speaker.Sent, Prefix: netip.MustParsePrefix("10.244.1.0/24"), NextHop: netip.MustParseAddr("192.0.2.11"),
				ASPath: "64512 64512", Origin: "IGP", MED: new(uint32), Communities: []string{"64512:1", "no-export", "64512:1:2"}},
			{Peer: netip.MustParseAddr("192.0.2.1"), Direction: speaker.Received, Prefix: netip.MustParsePrefix("::/0"), NextHop: netip.MustParseAddr("2001:db8::1"), Origin: "incomplete"},
		}}, `PEER       DIRECTION  PREFIX         NEXT HOP     AS PATH      ORIGIN      LOCAL PREF  MED  COMMUNITIES
192.0.2.1  sent       10.244.1.0/24  192.0.2.11   64512 64512  IGP         -           0    64512:1 no-export 64512:1:2
192.0.2.1  received   ::/0           2001:db8::1  -            incomplete  -           -    -
`},
	} {
		var out bytes.Buffer
		q := BGPQuery{Format: "text"}
		var err error
		switch v := c.value.(type) {
		case bgpStatus:
			err = q.print(&out, v, func(w io.Writer) { v.write(w, now) })
		case bgpRoutes:
			err = q.print(&out, v, v.write)
		}
		if err != nil || out.String() != c.text {
			t.Errorf("printed, %v:\n%s\nexpected\n%s", err, out.String(), c.text)
		}
	}
}

// TestSessionEvents: a session that comes up is an Event on the Node, and so is one that goes down.
func TestSessionEvents(t *testing.T) {
	l, _ := startLoop(t)
	log := &eventLog{}
	reporter := report.New(log, "n1")
	l.reporting.Lock()
	l.reporter = newLogReporter(reporter)
	l.reporting.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- reporter.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	node := cluster.Ref{Kind: "Node", Name: "n1", UID: "n1"}
	part := &bgpPart{mesh: map[netip.Addr]string{netip.MustParseAddr("192.0.2.12"): "n2"}}
	session := speaker.Session{Peer: bgp.Peer{Address: netip.MustParseAddr("192.0.2.1"), ASN: 64500}, State: "established", BeenUp: true}
	notes := func() {
		now, _ := sessionNotes([]speaker.Session{session}, node, time.Now())
		l.remark(bgpName, now...)
	}
	part.announceSession(reporter.Event, node, session.Peer.Address, true)
	part.announceSession(reporter.Event, node, netip.MustParseAddr("192.0.2.12"), true) // a session with a node, of which there may be thousands
	notes()
	session.State, session.LastError = "active", "hold timer expired"
	part.announceSession(reporter.Event, node, session.Peer.Address, false)
	notes()
	eventually(t, "both Events are written", func() bool { return len(log.about("n1")) == 2 })
	for i, want := range []string{"Normal BGPSessionUp the session with the BGP peer 192.0.2.1 is up",
		"Warning BGPSessionDown The session with the BGP peer 192.0.2.1 (AS 64500) is down: hold timer expired."} {
		if e := log.events[i]; e.Type+" "+e.Reason+" "+e.Note != want {
			t.Errorf("Event %d is %s %s %s, expected %s", i, e.Type, e.Reason, e.Note, want)
		}
	}
}
