package process

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
	"github.com/fairway-net/fairway/test/hostile"
)

// bound is how long anything may take here; the machine may be busy.
const bound = 60 * time.Second

// agentEnv has a process of the test be an agent with this peer, until it is killed.
const agentEnv = "FAIRWAY_TEST_AGENT"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		if err := Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if peer := os.Getenv(agentEnv); peer != "" {
		agent(netip.MustParseAddrPort(peer))
	}
	os.Exit(m.Run())
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

const peerASN = 64500

// router is a peer that does nothing wrong but what a case says, at an address of the loopback network.
func router(t *testing.T, address string, c hostile.Case) (*hostile.Peer, bgp.Peer) {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &hostile.Peer{ASN: peerASN, ID: netip.MustParseAddr(address).As4(), Case: c}
	go p.Serve(l)
	return p, peerAt(l.Addr().(*net.TCPAddr).AddrPort())
}

func peerAt(at netip.AddrPort) bgp.Peer {
	return bgp.Peer{Address: at.Addr(), Port: at.Port(), ASN: peerASN, Families: [2]bool{true, true}, LocalAddress: netip.MustParseAddr("127.0.0.1"),
		HoldTime: 9 * time.Second, KeepaliveTime: 3 * time.Second, ConnectRetryTime: time.Second, MaxPrefixes: 1000}
}

func table(peers ...bgp.Peer) *bgp.Table {
	return &bgp.Table{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11"), Peers: peers, Paths: []bgp.Path{path(1), path(2)}}
}

func path(n byte) bgp.Path {
	return bgp.Path{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24), Attributes: &bgp.Attributes{LocalPref: 100}, Service: &cluster.Service{Name: strconv.Itoa(int(n))}}
}

// A recorder keeps what a Speaker tells.
type recorder struct {
	mu       sync.Mutex
	ends     []End
	changes  []change
	received int
}

func newSpeaker(t *testing.T, patience time.Duration) (*Speaker, *recorder) {
	t.Helper()
	r := &recorder{}
	record := func(f func()) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f()
	}
	s := New(Options{
		Changed:  func(peer netip.Addr, up bool) { record(func() { r.changes = append(r.changes, change{peer, up}) }) },
		Received: func() { record(func() { r.received++ }) },
		Ended:    func(e End) { record(func() { r.ends = append(r.ends, e) }) },
		Patience: patience,
	})
	t.Cleanup(func() {
		if err := s.Close(0); err != nil {
			t.Error(err)
		}
	})
	return s, r
}

func (r *recorder) ended() []End {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ends)
}

func (r *recorder) changed() []change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

func mustSync(t *testing.T, s *Speaker, want *bgp.Table) speaker.Result {
	t.Helper()
	result, err := s.Sync(want)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func up(s *Speaker, i int) bool {
	sessions := s.Sessions()
	return len(sessions) > i && sessions[i].Up()
}

// runs tells whether there is a process of an id, one that nobody has waited for included.
func runs(pid int) bool { return unix.Kill(pid, 0) == nil }

// lives tells whether there is a process of an id that has not ended, whether it was waited for or not.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(rest, []byte("Z")) && !bytes.HasPrefix(rest, []byte("X"))
}

// TestSpeaker: what a Speaker does, by way of a process that can be recognised.
func TestSpeaker(t *testing.T) {
	s, told := newSpeaker(t, 0)
	if mustSync(t, s, &bgp.Table{}); s.running() != nil || s.Sessions() == nil || len(s.Sessions()) != 0 {
		t.Errorf("with nothing to do there is a process, or sessions: %v", s.Sessions())
	}
	result := mustSync(t, s, table())
	if asn, id := s.Identity(); s.running() != nil || result.RouterID != table().RouterID || id != table().RouterID || asn != 64512 {
		t.Errorf("without peers there is a process, or no identity: %v, %v", result, id)
	}
	p, peer := router(t, "127.0.2.1", hostile.Case{})
	want := table(peer)
	want.Import = []bgp.ImportRange{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Most: 32}}
	result = mustSync(t, s, want)
	if len(result.Changes.Announce) != 2 || result.Changes.Announce[0] != want.Paths[0] || result.Changes.Announce[1] != want.Paths[1] || len(result.Changes.Add) != 1 {
		t.Errorf("the first Sync did %+v", result.Changes)
	}
	pid := s.running().cmd.Process.Pid
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.HasPrefix(cmdline, []byte("fairway\x00bgp-speaker\x00")) {
		t.Errorf("ps shows %q, %v", cmdline, err)
	}
	eventually(t, "the session is up", func() bool { return up(s, 0) })
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(comm) != shortName+"\n" {
		t.Errorf("ps -e shows %q, %v", comm, err)
	}
	eventually(t, "that is told", func() bool { return slices.Equal(told.changed(), []change{{peer.Address, true}}) })
	routes, err := s.Routes(peer.Address, speaker.Sent)
	if err != nil || len(routes) != 2 || routes[0].Prefix != want.Paths[0].Prefix {
		t.Errorf("sent are %+v, %v", routes, err)
	}
	if _, err := s.Routes(netip.MustParseAddr("192.0.2.99"), speaker.Sent); !errors.Is(err, speaker.ErrNoSession) || !strings.HasSuffix(err.Error(), "with the BGP peer 192.0.2.99") {
		t.Errorf("the routes of a stranger: %v", err)
	}
	if _, err := s.Received(want.Import); err != nil {
		t.Error(err)
	}
	// What is not to be reaches the process as a signal does not.
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Error(err)
		}
	}
	want.Paths = []bgp.Path{path(0), want.Paths[1], path(3)}
	want.RouterID = netip.MustParseAddr("192.0.2.12")
	result = mustSync(t, s, want)
	if c := result.Changes; len(c.Announce) != 2 || c.Announce[1] != want.Paths[2] || len(c.Withdraw) != 1 || c.Withdraw[0] != path(1).Prefix || result.RouterID != table().RouterID {
		t.Errorf("the next Sync did %+v", result)
	}
	ended, err := s.Leave(10 * time.Millisecond)
	if err != nil || ended != 1 || len(p.Ended()) != 1 || s.Sessions()[0].State != "left" {
		t.Errorf("leaving ended %d sessions, %v: %v, %v", ended, err, p.Ended(), s.Sessions())
	}
	mustSync(t, s, want)
	eventually(t, "there is a session again", func() bool { return p.Established() == 2 && up(s, 0) })
	if err := s.Stop(10 * time.Millisecond); err != nil {
		t.Error(err)
	}
	var cease hostile.Notification
	if e := p.Ended(); len(e) != 2 || !errors.As(e[1], &cease) {
		t.Errorf("BGP is stopped, and sessions ended by %v", e)
	}
	if runs(pid) || s.running() != nil || len(s.Sessions()) != 0 || s.Crashes() != 0 || len(told.ended()) != 0 {
		t.Errorf("after its end the process is there (%v), or was missed: %v", runs(pid), told.ended())
	}
	mustSync(t, s, want)
	eventually(t, "another has a session", func() bool { return p.Established() == 3 && up(s, 0) })
	pid = s.running().cmd.Process.Pid
	if err := s.Close(10 * time.Millisecond); err != nil || runs(pid) {
		t.Errorf("at the end: %v, and the process is there: %v", err, runs(pid))
	}
	if len(p.Ended()) != 3 || !errors.As(p.Ended()[2], &cease) {
		t.Errorf("a peer without graceful restart is left by %v", p.Ended())
	}
	if _, err := s.Sync(want); err == nil || s.running() != nil {
		t.Errorf("after the end there can be another process: %v", err)
	}
}

// TestIdentity: another identity takes another process, whose peers are told what a restart of the agent tells them; a port that can't be had
// takes nothing.
func TestIdentity(t *testing.T) {
	s, told := newSpeaker(t, 0)
	p, peer := router(t, "127.0.2.6", hostile.Case{})
	peer.RestartTime = time.Minute
	mustSync(t, s, table(peer))
	eventually(t, "the session is up", func() bool { return up(s, 0) })
	pid := s.running().cmd.Process.Pid
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := s.Restart(port, 0); err == nil || !strings.HasPrefix(err.Error(), "listen for BGP peers: listen tcp") {
		t.Errorf("with a port that is taken: %v", err)
	}
	want := table(peer)
	want.ASN, want.RouterID, want.ListenPort = 64513, netip.MustParseAddr("192.0.2.12"), port
	mustSync(t, s, want)
	if asn, id := s.Identity(); !runs(pid) || !up(s, 0) || asn != 64512 || id != table().RouterID || s.Replaced() != 0 {
		t.Errorf("that left AS %d, %s, and %d processes are replaced", asn, id, s.Replaced())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(port, 0); err != nil {
		t.Fatal(err)
	}
	if asn, id := s.Identity(); runs(pid) || s.running() != nil || asn != 0 || id.IsValid() || s.Replaced() != 1 || s.Crashes() != 0 || len(told.ended()) != 0 {
		t.Errorf("the process is there: %v; AS %d, %s; %d are replaced, %d crashed", runs(pid), asn, id, s.Replaced(), s.Crashes())
	}
	if n := (hostile.Notification{}); len(p.Ended()) != 1 || errors.As(p.Ended()[0], &n) {
		t.Errorf("a peer that keeps routes was told %v", p.Ended())
	}
	if !slices.Equal(told.changed(), []change{{peer.Address, true}, {peer.Address, false}}) {
		t.Errorf("told is %v", told.changed())
	}
	result := mustSync(t, s, want)
	if asn, id := s.Identity(); asn != 64513 || id != want.RouterID || result.RouterID != id || len(result.Changes.Announce) != 2 {
		t.Errorf("the next Sync has AS %d, %s, and did %+v", asn, id, result)
	}
	eventually(t, "there is a session again", func() bool { return p.Established() == 2 && up(s, 0) })
	if err := speaker.CheckListen(port); err == nil {
		t.Error("nobody listens at the new port")
	}
}

// TestRefused: what a Speaker refuses is an error with the same words, and does not end the process.
func TestRefused(t *testing.T) {
	s, told := newSpeaker(t, 0)
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, peer := router(t, "127.0.2.2", hostile.Case{})
	peer.PasswordFile = filepath.Join(t.TempDir(), "password")
	want := table(peer)
	want.ListenPort = l.Addr().(*net.TCPAddr).AddrPort().Port()
	if _, err := s.Sync(want); err == nil || !strings.HasPrefix(err.Error(), "listen for BGP peers: listen tcp") {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, id := s.Identity(); id.IsValid() {
		t.Errorf("the identity is settled by what was refused: %s", id)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustSync(t, s, want)
	if sessions := s.Sessions(); len(sessions) != 1 || !sessions[0].Locked() || !strings.Contains(sessions[0].LastError, "no such file") {
		t.Errorf("without its password: %+v", sessions)
	}
	if len(told.ended()) != 0 {
		t.Errorf("the process has ended: %v", told.ended())
	}
}

// TestFatalMessages: what gobgp does not survive ends the process and nothing else. The next one has all that this one had.
func TestFatalMessages(t *testing.T) {
	for i, c := range hostile.Corpus() {
		if !c.Fatal {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			s, told := newSpeaker(t, 0)
			good, goodPeer := router(t, fmt.Sprintf("127.0.3.%d", i+1), hostile.Case{})
			_, badPeer := router(t, fmt.Sprintf("127.0.4.%d", i+1), c)
			mustSync(t, s, table(goodPeer, badPeer))
			eventually(t, "it is told", func() bool { return len(told.ended()) == 1 })
			if e := told.ended()[0]; !strings.HasPrefix(e.Why, "panic: ") || runs(e.PID) {
				t.Errorf("it is told as %+v", e)
			}
			if sessions := s.Sessions(); len(sessions) != 2 || sessions[1].Up() || !strings.Contains(sessions[0].LastError, "the BGP process has ended: panic: ") || s.Crashes() != 1 {
				t.Errorf("the sessions without a process: %+v", sessions)
			}
			before := good.Established()
			mustSync(t, s, table(goodPeer))
			eventually(t, "the good peer has a session again", func() bool { return good.Established() > before && up(s, 0) })
			if routes, err := s.Routes(goodPeer.Address, speaker.Sent); err != nil || len(routes) != 2 {
				t.Errorf("the next process sends %v, %v", routes, err)
			}
			if len(told.ended()) != 1 {
				t.Errorf("it has ended again: %v", told.ended())
			}
		})
	}
}

// TestKilled: a process that somebody kills is missed at once, and its sessions are told as down; there is no zombie.
func TestKilled(t *testing.T) {
	s, told := newSpeaker(t, 0)
	p, peer := router(t, "127.0.2.3", hostile.Case{})
	mustSync(t, s, table(peer))
	eventually(t, "there is a session", func() bool { return up(s, 0) })
	pid := s.running().cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is missed", func() bool { return len(told.ended()) == 1 })
	if e := told.ended()[0]; e != (End{pid, "signal: killed"}) || runs(pid) {
		t.Errorf("it is told as %+v, and is there: %v", e, runs(pid))
	}
	eventually(t, "the session's end is told", func() bool {
		return slices.Equal(told.changed(), []change{{peer.Address, true}, {peer.Address, false}})
	})
	eventually(t, "the peer sees it without a word", func() bool { return len(p.Ended()) == 1 })
	if n := (hostile.Notification{}); errors.As(p.Ended()[0], &n) {
		t.Errorf("the peer was told %v", n)
	}
	mustSync(t, s, table(peer))
	eventually(t, "there is a session again", func() bool { return up(s, 0) })
}

// TestHangs: a process that does not answer is killed, and the next Sync begins another one.
func TestHangs(t *testing.T) {
	s, told := newSpeaker(t, time.Second)
	_, peer := router(t, "127.0.2.4", hostile.Case{})
	eventually(t, "it begins", func() bool { _, err := s.Sync(table(peer)); return err == nil }) // on a busy machine not at the first attempt
	before := len(told.ended())
	pid := s.running().cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// More than the socket takes without a reader.
	many := table(peer)
	many.Paths = nil
	for i := range 50_000 {
		many.Paths = append(many.Paths, bgp.Path{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Attributes: &bgp.Attributes{}})
	}
	if _, err := s.Sync(many); !errors.Is(err, errGone) || !strings.Contains(err.Error(), "it did not answer (Sync) within 1s") {
		t.Errorf("a process that does not read: %v", err)
	}
	eventually(t, "it is told", func() bool { return len(told.ended()) == before+1 })
	if e := told.ended()[before]; e.PID != pid || e.Why != "it did not answer (Sync) within 1s, and was killed" || runs(pid) {
		t.Errorf("it is told as %+v, and is there: %v", e, runs(pid))
	}
	eventually(t, "another begins", func() bool { _, err := s.Sync(table(peer)); return err == nil })
}

// agent has a session, says which process has it, and waits to be killed.
func agent(peer netip.AddrPort) {
	s := New(Options{Changed: func(netip.Addr, bool) {}, Received: func() {}})
	if _, err := s.Sync(table(peerAt(peer))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for !up(s, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(s.running().cmd.Process.Pid)
	select {}
}

// TestAgentKilled: when the agent is killed, its child ends, too, without a word to the peers.
func TestAgentKilled(t *testing.T) {
	p, peer := router(t, "127.0.2.5", hostile.Case{})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+netip.AddrPortFrom(peer.Address, peer.Port).String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil || !lives(pid) {
		t.Fatalf("the child %d is not there: %v", pid, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the agent ended by %v", err)
	}
	eventually(t, "the child ends", func() bool { return !lives(pid) })
	eventually(t, "the peer sees it", func() bool { return len(p.Ended()) == 1 })
	if n := (hostile.Notification{}); errors.As(p.Ended()[0], &n) {
		t.Errorf("the peer was told %v", n)
	}
}

// TestByHand: the command refuses to run without an agent, and says why.
func TestByHand(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", Command).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is a part of the agent") {
		t.Errorf("%s, %v", out, err)
	}
}

// TestNoGrandchild: a BGP process begins no other.
func TestNoGrandchild(t *testing.T) {
	t.Setenv(marker, "1")
	s, _ := newSpeaker(t, 0)
	if _, err := s.Sync(table(peerAt(netip.MustParseAddrPort("127.0.2.6:179")))); err == nil || s.running() != nil {
		t.Errorf("there is one: %v", err)
	}
}

// TestRelay: lines are passed on whole, and the first that tells of an end is kept.
func TestRelay(t *testing.T) {
	var out bytes.Buffer
	r := &relay{to: &out}
	const report = "I0101 a line of the log: panic: no\npanic: so\n\ngoroutine 1 [running]:\nfatal error: later\nno end"
	for i := range len(report) {
		if _, err := r.Write([]byte{report[i]}); err != nil {
			t.Fatal(err)
		}
		if text := out.String(); text != "" && !strings.HasSuffix(text, "\n") {
			t.Fatalf("half a line is passed on: %q", text)
		}
	}
	if r.flush(); out.String() != report || r.panicked() != "panic: so" {
		t.Errorf("%q became %q, by %q", report, out.String(), r.panicked())
	}
	if r.why = ""; r.panicked() != "" {
		t.Error("it is told twice")
	}
	if _, err := r.Write(bytes.Repeat([]byte{'x'}, longestLine+1)); err != nil || out.Len() != len(report)+longestLine+1 {
		t.Errorf("a long line is kept: %d, %v", out.Len(), err)
	}
}

// TestDieFirst: the kernel is to end the child before the agent.
func TestDieFirst(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	for _, c := range []struct{ before, after string }{{"-999\n", "-899"}, {"0\n", "100"}, {"950\n", "1000"}} {
		if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := dieFirst(file); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(file); err != nil || string(text) != c.after {
			t.Errorf("%q became %q, %v; expected %q", c.before, text, err, c.after)
		}
	}
	if err := dieFirst(file + ".none"); err == nil {
		t.Error("without a file there is no error")
	}
}
