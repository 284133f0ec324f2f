package process

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// Options are what a Speaker is made with.
type Options struct {
	// Changed and Received are as for speaker.New. A session goes down also by the end of the process.
	Changed  func(peer netip.Addr, up bool)
	Received func()
	// Ended, when not nil, is told of every end of the process that nobody asked for, before the next Sync can begin another. It must not
	// block, nor call the Speaker.
	Ended func(End)
	// Patience is how long an answer of the process may take before it is killed; 0 for 30 s.
	Patience time.Duration
	// Env is added to the environment of the process.
	Env []string
}

// An End is that of a process which nobody asked for.
type End struct {
	PID int
	// Why is the first line of the report of a panic, else what the kernel says ("signal: killed"), or why it was killed here.
	Why string
}

// defaultPatience is far longer than anything takes that is asked, and short enough for a router to have kept its routes.
const defaultPatience = 30 * time.Second

// A Speaker is a speaker.Speaker in a process of its own. Its methods do what they do there, and may be called from any goroutine.
// While there is no process, there are no sessions, and nothing is received.
type Speaker struct {
	options Options

	syncing sync.Mutex // held by a Sync, and while a process is given up; guards what follows
	// sent is the Table that the process has, which the next one is the difference to.
	sent *bgp.Table

	mu sync.Mutex // guards what follows; taken after syncing
	// child is nil while there is none.
	child *child
	// up are the peers with a session.
	up map[netip.Addr]bool
	// identity has what is settled once for all processes until Restart: ASN, RouterID and ListenPort. restarted counts the Restarts that ended a
	// process.
	identity  bgp.Table
	restarted uint64
	// peers are those of the last Table, left tells that they were left.
	peers []bgp.Peer
	left  bool
	// seen are what Sessions returned last.
	seen []speaker.Session
	// crashes counts the Ends; why and since are of the last one.
	crashes uint64
	why     string
	since   time.Time
	closed  bool
}

// New returns a Speaker. It has no process before the first Sync with a Table that has peers.
func New(o Options) *Speaker {
	o.Patience = cmp.Or(o.Patience, defaultPatience)
	return &Speaker{options: o, up: map[netip.Addr]bool{}}
}

var errClosed = errors.New("the BGP speaker is closed")

// Sync has the neighbours told what a Table has: see speaker.Speaker. It begins a process when there is none and the Table has
// peers. An error may be that of a process which has ended meanwhile; the next Sync begins another. The identity is settled by the first
// Table that has one, until Restart.
func (s *Speaker) Sync(want *bgp.Table) (speaker.Result, error) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	t, c, err := s.prepare(want)
	if err != nil || c == nil {
		return speaker.Result{RouterID: t.RouterID}, err
	}
	result, err := s.send(c, &t)
	if errors.Is(err, errGone) {
		return result, err
	}
	own(result.Changes.Announce, t.Paths)
	if result.RouterID.IsValid() {
		s.settle(&t)
	}
	return result, err
}

// send sends a Table. It is called with syncing held.
func (s *Speaker) send(c *child, t *bgp.Table) (speaker.Result, error) {
	q := syncCall{Table: *t, Paths: difference(s.sent.Paths, t.Paths), Draining: difference(s.sent.Draining, t.Draining), Verbosity: verbosity()}
	q.Table.Paths, q.Table.Draining = nil, nil
	result, err := call[syncCall, speaker.Result](c, methodSync, q, s.options.Patience)
	s.sent = t // whatever the process made of it; of one that has ended nothing is left
	return result, err
}

// prepare takes note of what is wanted, and returns it with the identity that is settled, and the process to tell; nil when there is
// nobody to talk to.
func (s *Speaker) prepare(want *bgp.Table) (t bgp.Table, c *child, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return t, nil, errClosed
	}
	t = *want
	s.peers, s.left = want.Peers, false
	maps.DeleteFunc(s.up, func(a netip.Addr, _ bool) bool { // the speaker does not tell of those that are removed
		return !slices.ContainsFunc(want.Peers, func(p bgp.Peer) bool { return p.Address == a })
	})
	if s.identity.RouterID.IsValid() {
		t.ASN, t.RouterID, t.ListenPort = s.identity.ASN, s.identity.RouterID, s.identity.ListenPort
	}
	if s.child != nil {
		return t, s.child, nil
	}
	if !t.RouterID.IsValid() || len(t.Peers) == 0 {
		s.settleLocked(&t)
		return t, nil, nil
	}
	s.sent = &bgp.Table{}
	c, err = startChild(s.options.Env, s.tell)
	if err != nil {
		return t, nil, fmt.Errorf("start the BGP process: %w", err)
	}
	s.child = c
	go s.watch(c)
	return t, c, nil
}

// settle settles the identity by the first Table that has one.
func (s *Speaker) settle(t *bgp.Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settleLocked(t)
}

func (s *Speaker) settleLocked(t *bgp.Table) {
	if !s.identity.RouterID.IsValid() && t.RouterID.IsValid() {
		s.identity = bgp.Table{ASN: t.ASN, RouterID: t.RouterID, ListenPort: t.ListenPort}
	}
}

// own puts those of a Table in the place of paths that came back: they have their Services.
func own(back, paths []bgp.Path) {
	for i := range back {
		at, found := slices.BinarySearchFunc(paths, back[i].Prefix, func(p bgp.Path, prefix netip.Prefix) int { return p.Prefix.Compare(prefix) })
		if found {
			back[i] = paths[at]
		}
	}
}

// tell passes on what a process tells.
func (s *Speaker) tell(n *news) {
	s.mu.Lock()
	for _, c := range n.Changed {
		if c.Up {
			s.up[c.Peer] = true
		} else {
			delete(s.up, c.Peer)
		}
	}
	s.mu.Unlock()
	for _, c := range n.Changed {
		s.options.Changed(c.Peer, c.Up)
	}
	if n.Received {
		s.options.Received()
	}
}

// watch waits for the end of a process. One that nobody asked for it tells.
func (s *Speaker) watch(c *child) {
	<-c.exited
	s.syncing.Lock()
	lost, unasked := s.forget(c)
	if unasked && s.options.Ended != nil {
		s.options.Ended(End{PID: c.cmd.Process.Pid, Why: c.why})
	}
	s.syncing.Unlock()
	for _, peer := range lost {
		s.options.Changed(peer, false)
	}
}

// forget takes note that a process has ended, and returns the peers that had a session, unless its end was asked for.
func (s *Speaker) forget(c *child) (lost []netip.Addr, unasked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != c {
		return nil, false
	}
	s.child = nil
	s.crashes++
	s.why, s.since = c.why, time.Now()
	lost = slices.SortedFunc(maps.Keys(s.up), netip.Addr.Compare)
	clear(s.up)
	return lost, true
}

// take returns the process, whose end is asked for from then on; nil when there is none.
func (s *Speaker) take(closed bool) *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.child
	s.child, s.closed = nil, s.closed || closed
	s.why = ""
	clear(s.up)
	return c
}

// running returns the process; nil when there is none.
func (s *Speaker) running() *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child
}

// Crashes counts the Ends.
func (s *Speaker) Crashes() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashes
}

// Replaced counts the processes in whose place another is begun, after a crash or by Restart. That one knows nothing of what peers had told
// before: what was read while the number changed may be incomplete, and so is what is read until the peers have told everything again.
func (s *Speaker) Replaced() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashes + s.restarted
}

// Identity returns what the sessions are begun with until Restart; zero values before that is settled.
func (s *Speaker) Identity() (asn uint32, routerID netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity.ASN, s.identity.RouterID
}

// Sessions returns the sessions with all peers, in the order of their addresses.
func (s *Speaker) Sessions() []speaker.Session {
	var list []speaker.Session
	err := errGone
	if c := s.running(); c != nil {
		list, err = call[struct{}, []speaker.Session](c, methodSessions, struct{}{}, s.options.Patience)
	}
	if err != nil {
		list = s.down()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = list
	return list
}

// glance is how long Glance waits.
const glance = time.Second

// Glance is Sessions for somebody who can't wait: while the process does not answer, it returns what it answered last.
func (s *Speaker) Glance() []speaker.Session {
	answer := make(chan []speaker.Session, 1)
	go func() { answer <- s.Sessions() }()
	select {
	case list := <-answer:
		return list
	case <-time.After(glance):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// down are the sessions while there is no process. To whoever waits for what the peers tell, they are as new as after a start of the
// agent.
func (s *Speaker) down() []speaker.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := make([]speaker.Session, 0, len(s.peers))
	for _, p := range s.peers {
		session := speaker.Session{Peer: p, State: "idle", Since: s.since}
		if s.since.IsZero() {
			session.Since = time.Now()
		}
		if s.left {
			session.State = "left"
		}
		if s.why != "" {
			session.LastError = fmt.Sprintf("%s: %s", errGone, s.why)
		}
		sessions = append(sessions, session)
	}
	return sessions
}

// Received returns the paths inside ranges that the peers announce: see Crashes, too.
func (s *Speaker) Received(ranges []bgp.ImportRange) ([]bgp.Received, error) {
	c := s.running()
	if c == nil {
		return nil, nil
	}
	return call[[]bgp.ImportRange, []bgp.Received](c, methodReceived, ranges, s.options.Patience)
}

// Routes returns the routes of one direction in the session with a peer, by prefix. Without a session, the error is
// speaker.ErrNoSession.
func (s *Speaker) Routes(peer netip.Addr, d speaker.Direction) ([]speaker.Route, error) {
	c := s.running()
	if c == nil {
		return nil, fmt.Errorf("%w with the BGP peer %s", speaker.ErrNoSession, peer)
	}
	return call[routesCall, []speaker.Route](c, methodRoutes, routesCall{peer, d}, s.options.Patience)
}

// Leave ends all sessions by a Cease (Administrative Shutdown), and forgets the peers until the next Sync.
func (s *Speaker) Leave(patience time.Duration) (ended int, err error) {
	s.mu.Lock()
	c := s.child
	s.left = true
	clear(s.up) // the speaker does not tell
	s.mu.Unlock()
	if c == nil {
		return 0, nil
	}
	return call[time.Duration, int](c, methodLeave, patience, patience+s.options.Patience)
}

// Stop ends all sessions by a Cease, and the process: BGP is not wanted any more. Goodbyes have the patience to be sent. The next Sync
// with peers begins anew.
func (s *Speaker) Stop(patience time.Duration) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	c := s.running()
	if c == nil {
		return nil
	}
	s.mu.Lock()
	s.peers = nil
	up := len(s.up)
	s.mu.Unlock()
	_, err := s.send(c, &bgp.Table{})
	if up > 0 && err == nil {
		time.Sleep(patience)
	}
	s.take(false)
	c.end()
	return err
}

// Restart has the identity (ASN, RouterID, ListenPort) settled anew by the next Sync. All sessions end as they do when the agent is restarted:
// see speaker.Close, with its patience. listenPort is the one to come; when peers could not connect there, that is the error, and nothing else
// has happened. It was rejected to have gobgp begin anew in the same process: it forgets its peers with a Cease, and with it the routers their
// routes.
func (s *Speaker) Restart(listenPort uint16, patience time.Duration) error {
	lost, err := s.restart(listenPort, patience)
	for _, peer := range lost {
		s.options.Changed(peer, false)
	}
	return err
}

// restart returns the peers whose session ended without the process telling of it.
func (s *Speaker) restart(listenPort uint16, patience time.Duration) (lost []netip.Addr, err error) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	same := listenPort == s.identity.ListenPort
	s.mu.Unlock()
	if !same {
		if err := speaker.CheckListen(listenPort); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	c := s.child
	s.child, s.identity, s.why = nil, bgp.Table{}, ""
	if c != nil {
		s.restarted++
	}
	s.mu.Unlock()
	if c == nil {
		return nil, nil
	}
	if _, err := call[time.Duration, struct{}](c, methodClose, patience, patience+endBound); err != nil {
		klog.ErrorS(err, "BGP sessions end without a word")
	}
	c.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	lost = slices.SortedFunc(maps.Keys(s.up), netip.Addr.Compare)
	clear(s.up)
	return lost, nil
}

// Close takes leave of the peers as the agent ends: see speaker.Speaker. The process ends, and there is none after. One that does not
// answer is waited for no longer than for its end.
func (s *Speaker) Close(patience time.Duration) error {
	c := s.take(true)
	if c == nil {
		return nil
	}
	_, err := call[time.Duration, struct{}](c, methodClose, patience, patience+endBound)
	c.end()
	return err
}
