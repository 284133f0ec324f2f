package speaker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v3/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/test/hostile"
)

// victimEnv has a process of the test be a speaker with peers, "127.0.1.1:4711 127.0.1.2:4712 …".
const victimEnv = "FAIRWAY_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if peers := os.Getenv(victimEnv); peers != "" {
		victim(strings.Fields(peers))
	}
	os.Exit(m.Run())
}

// hostileASN is that of all peers of these tests.
const hostileASN = 64500

// everything is all that could be imported.
var everything = []bgp.ImportRange{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Most: 32}, {Prefix: netip.MustParsePrefix("::/0"), Most: 128}}

// victim speaks with peers until its standard input ends. It looks at its sessions all the while, as an agent does.
func victim(peers []string) {
	s := New(func(netip.Addr, bool) {}, func() {})
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Paths: []bgp.Path{path("10.244.1.0/24", nil)}}
	for _, p := range peers {
		at := netip.MustParseAddrPort(p)
		table.Peers = append(table.Peers, bgp.Peer{Address: at.Addr(), Port: at.Port(), ASN: hostileASN, Families: [2]bool{true, true},
			LocalAddress: netip.MustParseAddr("127.0.0.1"), HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second})
	}
	ended := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(ended)
	}()
	for {
		if _, err := s.Sync(table); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		s.Sessions()
		if _, err := s.Received(everything); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {
		case <-ended:
			os.Exit(0)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A siege is a speaker in a process of its own, whose peers do what a case says; the first one does nothing wrong.
type siege struct {
	peers  []*hostile.Peer
	cmd    *exec.Cmd
	output bytes.Buffer
	// died is closed when the process has ended.
	died chan struct{}
	stop func()
}

func besiege(t *testing.T, cases ...hostile.Case) *siege {
	t.Helper()
	s := &siege{died: make(chan struct{})}
	var addresses []string
	for i, c := range append([]hostile.Case{{}}, cases...) {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:0", i+1))
		if err != nil {
			t.Fatal(err)
		}
		p := &hostile.Peer{ASN: hostileASN, ID: [4]byte{127, 0, 1, byte(i + 1)}, Case: c}
		go p.Serve(l)
		t.Cleanup(func() { l.Close() })
		s.peers = append(s.peers, p)
		addresses = append(addresses, l.Addr().String())
	}
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), victimEnv+"="+strings.Join(addresses, " "))
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	stdin, err := s.cmd.StdinPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // how it ended, the output tells
		close(s.died)
	}()
	s.stop = func() {
		stdin.Close()
		select {
		case <-s.died:
		case <-time.After(bound):
			t.Errorf("the process does not end")
			_ = s.cmd.Process.Kill() // it may have ended now
			<-s.died
		}
	}
	return s
}

// alive tells whether the process has not ended.
func (s *siege) alive() bool {
	select {
	case <-s.died:
		return false
	default:
		return true
	}
}

// TestHostilePeers: peers that send what the corpus has, all at once. The process goes on, and so does the session with the one
// that does nothing wrong; and those who did something wrong may connect again.
func TestHostilePeers(t *testing.T) {
	cases := slices.DeleteFunc(hostile.Corpus(), func(c hostile.Case) bool { return c.Fatal })
	s := besiege(t, cases...)
	defer s.stop()
	eventually(t, "every case is sent, and there is a good session", func() bool {
		for _, p := range s.peers[1:] {
			if p.Sent() == 0 {
				return !s.alive()
			}
		}
		return s.peers[0].Established() == 1
	})
	time.Sleep(time.Second) // that much time it has for doing wrong
	if !s.alive() {
		t.Fatalf("the speaker has ended:\n%s", tail(s.output.String()))
	}
	if n := s.peers[0].Established(); n != 1 || len(s.peers[0].Ended()) != 0 {
		t.Errorf("the session with the peer that did nothing wrong came up %d times, and ended by %v", n, s.peers[0].Ended())
	}
	for i, c := range cases {
		t.Logf("%-70s %v", c.Name+" ("+c.Report+")", outcome(s.peers[i+1]))
	}
}

// outcome is what became of the first session in which a peer did something wrong.
func outcome(p *hostile.Peer) string {
	ended := p.Ended()
	var n hostile.Notification
	switch {
	case len(ended) == 0:
		return "the session goes on"
	case errors.As(ended[0], &n):
		return "ended by " + n.Error()
	}
	return "ended by the connection"
}

// TestUnreadablePeer: a peer about which gobgp can't be asked has no session until it is tried again, and the others have theirs.
func TestUnreadablePeer(t *testing.T) {
	i := slices.IndexFunc(hostile.Corpus(), func(c hostile.Case) bool { return c.Name == "a host name that is not UTF-8" })
	bad := &hostile.Peer{ASN: hostileASN, ID: [4]byte{127, 0, 0, 21}, Case: hostile.Corpus()[i]}
	l, err := net.Listen("tcp", "127.0.0.21:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go bad.Serve(l)
	r := newRouter(t, "127.0.0.20", 64501, "100.64.1.0/24")
	s := New(func(netip.Addr, bool) {}, func() {})
	at := l.Addr().(*net.TCPAddr).AddrPort()
	peer := r.peer(hostileASN)
	peer.Address, peer.Port = at.Addr(), at.Port()
	table := &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: []bgp.Peer{r.peer(64501), peer}}
	sync := func() {
		t.Helper()
		if _, err := s.Sync(table); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	refused := func() bool { return s.Sessions()[1].LastError == unreadable }
	eventually(t, "it is refused", refused)
	sync()
	eventually(t, "its session is ended", func() bool { return len(bad.Ended()) > 0 })
	eventually(t, "the other has a session", func() bool { return s.Sessions()[0].Up() })
	if session := s.Sessions()[1]; session.Up() || !session.BeenUp {
		t.Errorf("%+v", session)
	}
	s.mu.Lock()
	s.refused[peer.Address] = time.Now().Add(-2 * Pardon)
	s.mu.Unlock()
	before := bad.Sent()
	sync()
	if refused() {
		t.Error("it is not tried again")
	}
	eventually(t, "it is refused again", func() bool { return bad.Sent() > before && refused() })
	table.Peers = nil
	sync()
}

// TestFatalPeers: what gobgp 3 does not survive, which is why it has a process of its own (package process). When one of these passes, the corpus and docs/bgp.md can forget it.
func TestFatalPeers(t *testing.T) {
	for _, c := range hostile.Corpus() {
		if !c.Fatal {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			s := besiege(t, c)
			defer s.stop()
			eventually(t, "it ends", func() bool { return !s.alive() })
			if out := s.output.String(); !strings.Contains(out, "github.com/osrg/gobgp") {
				t.Errorf("it is not gobgp that ended it:\n%s", tail(out))
			}
		})
	}
}

func tail(text string) string { return text[max(0, len(text)-4000):] }

// FuzzNegotiated: whatever capabilities gobgp lets a peer have, no more comes of them than the session is to carry.
func FuzzNegotiated(f *testing.F) {
	for _, c := range hostile.Corpus() {
		if c.Stage == hostile.Capabilities {
			f.Add(c.Bytes, true, false)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, v4, v6 bool) {
		peer := bgp.Peer{Families: [2]bool{v4, v6}}
		families := negotiated(peer, decoded(data))
		for i := range families {
			if families[i] && !peer.Families[i] {
				t.Errorf("family %d came out of % x", i, data)
			}
		}
		if r := peerRestart(decoded(data)); r != nil && r.Time > 4095*time.Second { // it has 12 bits
			t.Errorf("a restart time of %s came out of % x", r.Time, data)
		}
	})
}

// decoded are the capabilities that gobgp makes of what an OPEN has. What it panics on, it is not asked here.
func decoded(data []byte) (list []*anypb.Any) {
	defer func() { _ = recover() }()
	for len(data) >= 2 {
		c, err := gobgp.DecodeCapability(data)
		if err != nil || c.Len() == 0 || c.Len() > len(data) {
			return list
		}
		data = data[c.Len():]
		a, err := apiutil.MarshalCapability(c)
		if err != nil {
			return list
		}
		list = append(list, a)
	}
	return list
}
