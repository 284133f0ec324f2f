package speaker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

const bound = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("after %s still not: %s", bound, what)
}

// fewPrefixes is how many a router may send.
const fewPrefixes = 100

// A router is gobgp as a neighbour, at an address of the loopback interface.
type router struct {
	*testing.T
	*server.BgpServer
	at   netip.Addr
	port uint16
}

// newRouter starts a router that waits for the speaker at 127.0.0.1, and announces a prefix.
func newRouter(t *testing.T, at string, asn uint32, prefix string) *router {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &router{t, server.NewBgpServer(server.LoggerOption(newLogger())), netip.MustParseAddr(at), l.Addr().(*net.TCPAddr).AddrPort().Port()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	go r.Serve()
	ctx := context.Background()
	err = r.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: asn, RouterId: at, ListenPort: int32(r.port), ListenAddresses: []string{at}}})
	if err == nil {
		err = r.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
			Conf:      &api.PeerConf{NeighborAddress: "127.0.0.1", PeerAsn: 64512},
			Transport: &api.Transport{PassiveMode: true},
			AfiSafis:  []*api.AfiSafi{{Config: &api.AfiSafiConfig{Family: apiFamilies[0], Enabled: true}}, {Config: &api.AfiSafiConfig{Family: apiFamilies[1], Enabled: true}}},
		}})
	}
	if err == nil {
		_, err = r.AddPath(ctx, &api.AddPathRequest{Path: apiPath(asn, bgp.Path{Prefix: netip.MustParsePrefix(prefix), Attributes: &bgp.Attributes{}})})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

func (r *router) peer(asn uint32) bgp.Peer {
	return bgp.Peer{Address: r.at, Port: r.port, ASN: asn, Families: [2]bool{true, true}, LocalAddress: netip.MustParseAddr("127.0.0.1"),
		HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, MaxPrefixes: fewPrefixes}
}

// knows lists the prefixes that a router knows, with their next hops and path attributes.
func (r *router) knows() (list []string) {
	r.Helper()
	for _, f := range apiFamilies {
		err := r.ListPath(context.Background(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: f}, func(d *api.Destination) {
			list = append(list, d.Prefix)
			for _, a := range d.Paths[0].Pattrs {
				m, err := a.UnmarshalNew()
				if err != nil {
					r.Fatal(err)
				}
				switch m := m.(type) {
				case *api.AsPathAttribute:
					for _, s := range m.Segments {
						list[len(list)-1] += fmt.Sprint(" path ", s.Numbers)
					}
				case *api.MultiExitDiscAttribute:
					list[len(list)-1] += fmt.Sprint(" med ", m.Med)
				case *api.CommunitiesAttribute:
					list[len(list)-1] += fmt.Sprint(" communities ", m.Communities)
				case *api.LargeCommunitiesAttribute:
					list[len(list)-1] += fmt.Sprint(" large ", m.Communities[0].GlobalAdmin, m.Communities[0].LocalData1, m.Communities[0].LocalData2)
				case *api.NextHopAttribute:
					list[len(list)-1] += " via " + m.NextHop
				case *api.MpReachNLRIAttribute:
					list[len(list)-1] += " via " + m.NextHops[0]
				}
			}
		})
		if err != nil {
			r.Fatal(err)
		}
	}
	slices.Sort(list)
	return list
}

func (r *router) eventually(want ...string) {
	r.Helper()
	var got []string
	for end := time.Now().Add(bound); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = r.knows(); slices.Equal(got, want) {
			return
		}
	}
	r.Fatalf("the router %s knows\n%s\nexpected\n%s", r.at, strings.Join(got, "\n"), strings.Join(want, "\n"))
}

func path(prefix string, vary func(*bgp.Path)) bgp.Path {
	p := bgp.Path{Prefix: netip.MustParsePrefix(prefix), Attributes: &bgp.Attributes{LocalPref: bgp.DefaultLocalPref}}
	if vary != nil {
		vary(&p)
	}
	return p
}

// TestSpeaker: two routers learn what is announced, nothing of each other, and follow every change without a new session.
func TestSpeaker(t *testing.T) {
	r1, r2 := newRouter(t, "127.0.0.11", 64501, "100.64.1.0/24"), newRouter(t, "127.0.0.12", 64502, "100.64.2.0/24")
	changes := make(chan string, 100)
	s := New(func(a netip.Addr, up bool) { changes <- fmt.Sprint(a, up) }, func() {})
	if _, err := s.Sync(&bgp.Table{}); err != nil || s.server != nil {
		t.Errorf("without a router ID there is a server: %v", err)
	}
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: []bgp.Peer{r1.peer(64501), r2.peer(64502)}, Paths: []bgp.Path{
		path("10.244.1.0/24", nil),
		path("203.0.113.1/32", func(p *bgp.Path) {
			p.Attributes = &bgp.Attributes{MED: 7, Prepend: 2, Communities: []bgp.Community{64512<<16 | 5, 0xffffff02}, LargeCommunities: []bgp.LargeCommunity{{1, 2, 3}}}
		}),
		path("fd00:1::/64", func(p *bgp.Path) { p.NextHop = netip.MustParseAddr("2001:db8::11") }),
	}}
	sync := func() {
		t.Helper()
		if _, err := s.Sync(table); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	const pod, pod6 = "10.244.1.0/24 path [64512] via 127.0.0.1", "fd00:1::/64 path [64512] via 2001:db8::11"
	const vip = "203.0.113.1/32 path [64512 64512 64512] med 7 communities [4227858437 4294967042] large 1 2 3 via 127.0.0.1"
	all := func(own string, others ...string) []string {
		list := append([]string{own + " via 0.0.0.0"}, others...)
		slices.Sort(list)
		return list
	}
	r1.eventually(all("100.64.1.0/24", pod, vip, pod6)...)
	r2.eventually(all("100.64.2.0/24", pod, vip, pod6)...)
	if got := []string{<-changes, <-changes}; !slices.Contains(got, "127.0.0.11 true") || !slices.Contains(got, "127.0.0.12 true") {
		t.Errorf("the sessions that came up are %v", got)
	}
	for _, session := range s.Sessions() {
		if !session.Up() || !session.BeenUp || session.Families != [2]bool{true, true} || session.Announced != [2]int{2, 1} || session.Received[0] != 1 || session.GracefulRestart {
			t.Errorf("%+v", session)
		}
	}
	sent, err := s.Routes(r1.at, Sent)
	if text := fmt.Sprintf("%+v", sent); err != nil || len(sent) != 3 || time.Since(sent[1].Since) > bound || *sent[1].MED != 7 ||
		!strings.Contains(text, "{Prefix:203.0.113.1/32 NextHop:127.0.0.1 ASPath:64512 64512 64512 Origin:IGP LocalPref:<nil> ") ||
		!strings.Contains(text, "Communities:[64512:5 no-advertise] LargeCommunities:[1:2:3]") || !strings.Contains(text, "{Prefix:fd00:1::/64 NextHop:2001:db8::11 ") {
		t.Errorf("sent are %s, %v", text, err)
	}
	received, err := s.Routes(r1.at, Received)
	if text := fmt.Sprintf("%+v", received); err != nil || len(received) != 1 || !strings.HasPrefix(text, "[{Prefix:100.64.1.0/24 NextHop:127.0.0.11 ASPath:64501 Origin:IGP ") {
		t.Errorf("received are %s, %v", text, err)
	}
	if asn, id := s.Identity(); asn != 64512 || id.String() != "192.0.2.11" {
		t.Errorf("the identity is AS %d, %s", asn, id)
	}

	table.Paths = []bgp.Path{path("10.244.1.0/24", func(p *bgp.Path) { p.Attributes = &bgp.Attributes{MED: 9} }), path("10.244.9.0/24", nil)}
	table.Peers = slices.Clone(table.Peers)
	for i := range table.Peers {
		table.Peers[i].ConnectRetryTime *= 2
	}
	sync()
	r1.eventually(all("100.64.1.0/24", "10.244.1.0/24 path [64512] via 127.0.0.1 med 9", "10.244.9.0/24 path [64512] via 127.0.0.1")...)
	if len(changes) > 0 {
		t.Errorf("for that, a session was lost: %v", <-changes)
	}

	table.Peers = []bgp.Peer{table.Peers[1]}
	sync()
	r1.eventually(all("100.64.1.0/24")...)
	r2.eventually(all("100.64.2.0/24", "10.244.1.0/24 path [64512] via 127.0.0.1 med 9", "10.244.9.0/24 path [64512] via 127.0.0.1")...)
	if _, err := s.Routes(r1.at, Sent); !errors.Is(err, ErrNoSession) {
		t.Errorf("routes of a peer that is removed: %v", err)
	}
	if err := s.Close(100 * time.Millisecond); err != nil {
		t.Error(err)
	}
	r2.eventually(all("100.64.2.0/24")...)
}

// TestTooMany: a peer that sends more than is stored loses its session, and gets another one later.
func TestTooMany(t *testing.T) {
	r := newRouter(t, "127.0.0.16", 64505, "100.64.5.0/24")
	for i := range fewPrefixes {
		p := path(netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 66, byte(i >> 8), byte(i)}), 32).String(), nil)
		if _, err := r.AddPath(context.Background(), &api.AddPathRequest{Path: apiPath(64505, p)}); err != nil {
			t.Fatal(err)
		}
	}
	s := New(func(netip.Addr, bool) {}, func() {})
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: []bgp.Peer{r.peer(64505)}}
	sync := func() {
		t.Helper()
		if _, err := s.Sync(table); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	ended := func() bool {
		session := s.Sessions()[0]
		return session.State == idle && session.TooMany && session.BeenUp && strings.Contains(session.LastError, "maximum number of prefixes reached")
	}
	eventually(t, "the session ends", ended)
	sync()
	if !ended() {
		t.Error("it is pardoned at once")
	}
	if err := r.DeletePath(context.Background(), &api.DeletePathRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gobgp has told of the end", func() bool { // which sets the time
		s.mu.Lock()
		defer s.mu.Unlock()
		over := !s.records[r.at].up
		if over {
			s.records[r.at].since = time.Now().Add(-2 * Pardon)
		}
		return over
	})
	sync()
	eventually(t, "there is a session again", func() bool { return s.Sessions()[0].Up() && !s.Sessions()[0].TooMany })
	table.Peers = nil
	sync()
}

// TestLocked: a peer without its password is not started, and others are.
func TestLocked(t *testing.T) {
	r := newRouter(t, "127.0.0.13", 64503, "100.64.3.0/24")
	s := New(func(netip.Addr, bool) {}, func() {})
	locked := bgp.Peer{Address: netip.MustParseAddr("127.0.0.14"), Port: 1, ASN: 64504, Families: [2]bool{true, false}, HoldTime: 9 * time.Second,
		KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, PasswordFile: filepath.Join(t.TempDir(), "password")}
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: []bgp.Peer{r.peer(64503), locked}, Paths: []bgp.Path{path("10.244.1.0/24", nil)}}
	for _, c := range []struct{ text, want string }{{"", "no such file"}, {"\n", "is empty"}, {strings.Repeat("x", 81), "81 bytes"}} {
		if c.text != "" {
			if err := os.WriteFile(locked.PasswordFile, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Sync(table); err != nil {
			t.Fatal(err)
		}
		if session := s.Sessions()[1]; !session.Locked() || !strings.Contains(session.LastError, c.want) {
			t.Errorf("%+v, expected %s", session, c.want)
		}
	}
	eventually(t, "the other is up", func() bool { return s.Sessions()[0].Up() })
	r.eventually("10.244.1.0/24 path [64512] via 127.0.0.1", "100.64.3.0/24 via 0.0.0.0")
	if err := os.WriteFile(locked.PasswordFile, []byte("right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(table); err != nil || s.Sessions()[1].Locked() || s.records[locked.Address].password != "right" {
		t.Errorf("with its password: %+v, %v", s.Sessions()[1], err)
	}
	eventually(t, "it says why it does not come up", func() bool { return strings.Contains(s.Sessions()[1].LastError, "failed to connect") })
	if err := os.Remove(locked.PasswordFile); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(table); err != nil || s.Sessions()[1].Locked() || !strings.Contains(s.Sessions()[1].PasswordError, "no such file") {
		t.Errorf("when the file is gone, the peer is, too, or it is not told: %+v, %v", s.Sessions()[1], err)
	}
	// A session that had no password is not one that goes on without.
	table.Peers[0].PasswordFile = locked.PasswordFile
	if _, err := s.Sync(table); err != nil || !s.Sessions()[0].Locked() {
		t.Errorf("a peer that is given a password that can't be read: %+v, %v", s.Sessions()[0], err)
	}
	r.eventually("100.64.3.0/24 via 0.0.0.0")
	table.Peers = nil
	if _, err := s.Sync(table); err != nil {
		t.Error(err)
	}
}

// TestPasswordOfAnnotation: a password that comes with the peer is used; one that is not known any more locks it, as does a long one.
func TestPasswordOfAnnotation(t *testing.T) {
	forgotten := cluster.Secret{Given: true}
	for _, c := range []struct {
		secret     cluster.Secret
		want, fail string
	}{
		{cluster.Secret{}, "", ""}, {cluster.NewSecret("right"), "right", ""},
		{forgotten, "", "not saved"}, {cluster.NewSecret(strings.Repeat("x", 81)), "", "81 bytes"},
	} {
		got, err := passwordOf(bgp.Peer{Password: c.secret}, nil)
		if (err != nil) != (c.fail != "") || err == nil && got != c.want || err != nil && (!strings.Contains(err.Error(), c.fail) || strings.Contains(err.Error(), "xxx")) {
			t.Errorf("%q, %v; expected %q, %q", got, err, c.want, c.fail)
		}
	}
}

// TestListen: a port that is taken is an error, and tried again.
func TestListen(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(func(netip.Addr, bool) {}, func() {})
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), ListenPort: l.Addr().(*net.TCPAddr).AddrPort().Port()}
	if _, err := s.Sync(table); err == nil || !strings.Contains(err.Error(), "listen for BGP peers") {
		t.Errorf("a port that is taken: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(table); err != nil {
		t.Errorf("when it is free: %v", err)
	}
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), table.ListenPort).String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	// A socket of MPTCP takes no password. The test's own setting is the standard one, unlike the agent's.
	locked := bgp.Peer{Address: netip.MustParseAddr("127.0.0.15"), Port: 1, ASN: 64504, Families: [2]bool{true, false}, HoldTime: 9 * time.Second,
		KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, PasswordFile: filepath.Join(t.TempDir(), "password")}
	if err := os.WriteFile(locked.PasswordFile, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	table.Peers = []bgp.Peer{locked}
	_, err = s.Sync(table)
	if _, md5 := s.records[locked.Address]; md5 == (err != nil) {
		t.Errorf("the peer is there: %v, although %v", md5, err)
	}
}
