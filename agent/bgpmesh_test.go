package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// TestMeshNotes: of the sessions with nodes, all with one fault are one Note, beside those of routers.
func TestMeshNotes(t *testing.T) {
	now := time.Now()
	of := func(i int, s speaker.Session) speaker.Session {
		s.Peer.Node, s.Peer.Address = fmt.Sprintf("w%d", i), netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		return s
	}
	down, locked := speaker.Session{State: "idle", BeenUp: true, LastError: "hold timer expired"}, speaker.Session{State: "no-password", LastError: "no such file"}
	tooMany := speaker.Session{State: "idle", BeenUp: true, Since: now.Add(-20 * time.Second), TooMany: true}
	up := speaker.Session{State: "established", PasswordError: "gone"}
	reflector := speaker.Session{Peer: bgp.Peer{RestartTime: time.Minute}, State: "established"}
	fresh := speaker.Session{State: "active", Since: now.Add(-5 * time.Second)}
	for _, c := range []struct {
		name     string
		sessions []speaker.Session
		want     []string
		retry    time.Duration
	}{
		{"all is well", []speaker.Session{of(1, speaker.Session{State: "established"})}, nil, 0},
		{"one is down", []speaker.Session{of(1, down)}, []string{"BGPSessionDown: The session with node w1 (bgp.mesh) is down: hold timer expired."}, 0},
		{"many are down", []speaker.Session{of(1, down), of(2, down), of(3, down), of(4, down), of(5, down)}, []string{"BGPSessionDown: The session with nodes w1, w2, w3 and 2 more (bgp.mesh) is down: hold timer expired."}, 0},
		{"one is new", []speaker.Session{of(1, fresh)}, nil, 10 * time.Second},
		{"no password", []speaker.Session{of(1, locked), of(2, locked)}, []string{"BGPPasswordMissing: There is no session with nodes w1, w2 (bgp.mesh): no such file."}, sessionPatience},
		{"password gone", []speaker.Session{of(1, up), of(2, up)}, []string{"BGPPasswordMissing: The password of bgp.mesh can't be read any more, and the sessions with nodes w1, w2 go on with the one that they have: gone."}, 0},
		{"too much", []speaker.Session{of(1, tooMany)}, []string{"BGPTooManyPrefixes: More prefixes of a family than maxPrefixes of bgp.mesh came from node w1; the session is ended, and tried again after 1m0s."}, 41 * time.Second},
		{"a reflector does not keep routes", []speaker.Session{of(1, reflector)}, []string{"BGPNoGracefulRestart: Reflectors do not keep this node's routes while the agent is restarted: node w1;"}, 0},
		{"beside a router's", []speaker.Session{{Peer: bgp.Peer{Address: netip.MustParseAddr("192.0.2.99"), ASN: 64500}, State: "idle", BeenUp: true}, of(1, down)},
			[]string{"BGPSessionDown: The session with the BGP peer 192.0.2.99 (AS 64500) is down", "BGPSessionDown: The session with node w1"}, 0},
	} {
		notes, retry := sessionNotes(c.sessions, cluster.Ref{Kind: "Node", Name: "n1"}, now)
		if len(notes) != len(c.want) || retry != c.retry {
			t.Errorf("%s: %v, again in %s; expected %q, %s", c.name, notes, retry, c.want, c.retry)
			continue
		}
		for i, n := range notes {
			if text := n.Reason + ": " + n.Detail; !strings.HasPrefix(text, c.want[i]) {
				t.Errorf("%s: %q, expected %q", c.name, text, c.want[i])
			}
		}
	}
}

// TestMeshMetrics: however many nodes there are, they have few metrics; a router has its own.
func TestMeshMetrics(t *testing.T) {
	sessions := []speaker.Session{{Peer: bgp.Peer{Address: netip.MustParseAddr("192.0.2.99")}, State: "established"}}
	for i := range 1000 {
		s := speaker.Session{Peer: bgp.Peer{Node: "w", Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, State: "established", Families: [2]bool{true, true}, Received: [2]int{2, 1}}
		if i == 0 {
			s.State = "active"
		}
		sessions = append(sessions, s)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(bgpCollector{func() []speaker.Session { return sessions }, func() uint64 { return 0 }, func() [2]int { return [2]int{} }})
	families := byName(r.Gather())
	total := 0
	for _, f := range families {
		total += len(f.GetMetric())
	}
	up, received := families["fairway_bgp_mesh_sessions"].GetMetric(), families["fairway_bgp_mesh_received_prefixes"].GetMetric()
	if total > 10 || len(up) != 2 || up[0].GetGauge().GetValue() != 1 || up[1].GetGauge().GetValue() != 999 || received[0].GetGauge().GetValue() != 2000 || received[1].GetGauge().GetValue() != 1000 {
		t.Errorf("%d metrics: %v", total, families)
	}
	if v := families["fairway_bgp_session_up"].GetMetric(); len(v) != 1 {
		t.Errorf("routers: %v", v)
	}
}
