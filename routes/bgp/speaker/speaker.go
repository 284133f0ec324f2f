package speaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/fairway-net/fairway/routes/bgp"
)

// A Speaker keeps BGP sessions. Before the first Sync with a Table that has a RouterID it is nothing but a value. Its methods
// may be called from any goroutine.
type Speaker struct {
	changed  func(peer netip.Addr, up bool)
	received func()
	log      *logger

	mu      sync.Mutex // guards what follows
	server  *server.BgpServer
	started bool
	// watching tells that gobgp tells of what peers announce.
	watching bool
	// have is what gobgp has, with the identity that it was started with.
	have bgp.Table
	// began is when gobgp was started, reflection what its policies say.
	began      time.Time
	reflection reflection
	// wanted are the peers that there should be, in the order of their addresses.
	wanted []bgp.Peer
	// records are of the peers that gobgp has, locked are the reasons why it does not have others, unread those why the passwords
	// of some that it has can't be read any more.
	records        map[netip.Addr]*record
	locked, unread map[netip.Addr]error
	// renewals counts how often gobgp has forgotten a peer on the way to another session.
	renewals int
	// left tells that Leave has ended the sessions, and no Sync came since.
	left bool
	// refused are peers about which gobgp can't be asked, and since when.
	refused   map[netip.Addr]time.Time
	questions questioner
	// clock has the clock watched, once somebody needs what peers announce.
	clock sync.Once
}

// A record is what is remembered of a peer.
type record struct {
	password string
	// turn is how long others wait for the peer to learn that this node comes from a restart; 0 for one that is not asked to keep its
	// routes.
	turn time.Duration
	// added is when the peer was, since when its session came up or was lost; the same before either.
	added, since time.Time
	// up tells that the session is, beenUp that it once was.
	up, beenUp bool
	// told are the families of which the peer has sent all that it has, since the session came up.
	told [2]bool
	// lost tells that the session was, and that it was not looked at yet whether that was without a word.
	lost bool
	// held are the connections of the session that is up, if the peer is asked to keep routes; peerEnded tells that the peer has ended the last one.
	held      []connection
	peerEnded bool
	// kept is what the peer had announced before it was renewed.
	kept keptPaths
}

// New returns a Speaker. changed is told of every session that comes up or goes down, received that Received may return something
// else than before. They must not block, nor call the Speaker.
func New(changed func(peer netip.Addr, up bool), received func()) *Speaker {
	return &Speaker{changed: changed, received: received, log: newLogger(), records: map[netip.Addr]*record{}, locked: map[netip.Addr]error{},
		unread: map[netip.Addr]error{}, refused: map[netip.Addr]time.Time{}, questions: questioner{unanswered: make(chan struct{})}}
}

// A Result is what a Sync did.
type Result struct {
	// Changes is the difference that it found. Peers may be left of it.
	Changes bgp.Changes
	// Again is when the next Sync should come to start peers that have to wait for others; 0 when none has to.
	Again time.Duration
	// RouterID is the identifier that the sessions have; the zero Addr while there can be none.
	RouterID netip.Addr
}

const (
	// turn is how long a new peer is waited for before the next is started, turnOfNode how long one that is a node: for 5 seconds after it
	// has lost a session, its gobgp takes no connection. turnCheck is how often that is looked at.
	turn       = 5 * time.Second
	turnOfNode = 12 * time.Second
	turnCheck  = 200 * time.Millisecond
)

// Sync has the neighbours told what a Table has. The identity (ASN, RouterID, ListenPort) is settled by the first Table that
// has one, for as long as the process lives. A peer whose password can't be read is not started, and Sessions says so; a
// session that is up goes on. What fails is tried again by the next Sync.
func (s *Speaker) Sync(want *bgp.Table) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		if !want.RouterID.IsValid() {
			return Result{}, nil
		}
		if err := s.start(want); err != nil {
			return Result{}, err
		}
	}
	if len(want.Import) > 0 {
		if err := s.watchReceived(); err != nil {
			return Result{}, err
		}
	}
	s.wanted, s.left = want.Peers, false
	able := *want
	var passwords map[netip.Addr]string
	able.Peers, passwords = s.unlock(want.Peers)
	able.Peers = slices.DeleteFunc(able.Peers, func(p bgp.Peer) bool { return s.isRefused(p.Address) })
	renewed, err := s.renew(&able, passwords)
	if err != nil {
		return Result{}, err
	}
	c := bgp.Diff(&s.have, &able)
	for _, p := range able.Peers {
		if r := s.records[p.Address]; r != nil && r.password != passwords[p.Address] && !slices.Contains(c.Reset, p) {
			c.Reset = append(c.Reset, p)
		}
	}
	if err := s.reflect(reflectionOf(want, s.have.Peers)); err != nil {
		return Result{}, err
	}
	if err := s.tell(c); err != nil {
		return Result{}, err
	}
	s.have.Paths = able.Paths
	err = errors.Join(s.meet(c, passwords), s.forgive())
	s.have.Peers = slices.DeleteFunc(slices.Clone(able.Peers), func(p bgp.Peer) bool { return s.records[p.Address] == nil })
	result := Result{Changes: c, RouterID: s.have.RouterID}
	if len(s.have.Peers) < len(able.Peers) || !renewed {
		result.Again = turnCheck
	}
	return result, err
}

// Identity returns what the sessions are begun with for as long as the process lives; zero values before that is settled.
func (s *Speaker) Identity() (asn uint32, routerID netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.ASN, s.have.RouterID
}

// start starts gobgp, with the policies that must be there before there is a peer.
func (s *Speaker) start(t *bgp.Table) error {
	if s.server == nil {
		s.server = server.NewBgpServer(server.LoggerOption(s.log))
		s.questions.listening.Store(t.ListenPort != 0)
		go s.serve()
	}
	addresses, err := listenAddresses(t.ListenPort)
	if err != nil {
		return err
	}
	ctx := context.Background()
	global := &api.Global{Asn: t.ASN, RouterId: t.RouterID.String(), ListenPort: -1}
	if t.ListenPort != 0 {
		global.ListenPort, global.ListenAddresses = int32(t.ListenPort), addresses
	}
	if err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start BGP with router ID %s: %w", t.RouterID, err)
	}
	if err := s.restrict(ctx); err != nil {
		return err
	}
	watch := &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}}
	if err := s.server.WatchEvent(ctx, watch, s.event); err != nil {
		return fmt.Errorf("watch BGP peers: %w", err)
	}
	s.started, s.began = true, time.Now()
	s.have = bgp.Table{ASN: t.ASN, RouterID: t.RouterID, ListenPort: t.ListenPort}
	return nil
}

// tell announces and withdraws.
func (s *Speaker) tell(c bgp.Changes) error {
	ctx := context.Background()
	for _, prefix := range c.Withdraw {
		path := apiPath(s.have.ASN, bgp.Path{Prefix: prefix, Attributes: &bgp.Attributes{}})
		if err := s.server.DeletePath(ctx, &api.DeletePathRequest{Path: path}); err != nil {
			return fmt.Errorf("withdraw %s: %w", prefix, err)
		}
	}
	for _, p := range c.Announce {
		if _, err := s.server.AddPath(ctx, &api.AddPathRequest{Path: apiPath(s.have.ASN, p)}); err != nil {
			return fmt.Errorf("announce %s: %w", p.Prefix, err)
		}
	}
	return nil
}

// meet starts and ends sessions.
func (s *Speaker) meet(c bgp.Changes, passwords map[netip.Addr]string) error {
	ctx := context.Background()
	var errs []error
	gone := slices.Clone(c.Remove)
	for _, p := range c.Reset {
		gone = append(gone, p.Address)
	}
	for _, a := range gone {
		errs = append(errs, s.remove(a))
	}
	for _, p := range c.Update {
		old := s.peerOf(p.Address)
		if s.records[p.Address] == nil || old != nil && old.OfNode(p.Node, p.Pods) == p {
			continue // it begins anew, for another password; or what has changed is not gobgp's
		}
		_, err := s.server.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: apiPeer(p, passwords[p.Address])})
		if err != nil {
			errs = append(errs, fmt.Errorf("change BGP peer %s: %w", p.Address, err))
		}
	}
	for _, p := range slices.Concat(c.Reset, c.Add) {
		if s.records[p.Address] != nil || p.RestartTime > 0 && s.restarting() || p.Node == "" && p.ClusterID.IsValid() && s.gathering() {
			continue // it could not be removed, or it is not its turn
		}
		errs = append(errs, s.add(p, passwords[p.Address]))
	}
	return errors.Join(errs...)
}

// peerOf returns a peer as gobgp has it, or nil.
func (s *Speaker) peerOf(a netip.Addr) *bgp.Peer {
	i := slices.IndexFunc(s.have.Peers, func(p bgp.Peer) bool { return p.Address == a })
	if i < 0 {
		return nil
	}
	return &s.have.Peers[i]
}

// add starts a session.
func (s *Speaker) add(p bgp.Peer, password string) error {
	s.log.forget(p.Address.String())
	s.records[p.Address] = &record{password: password, turn: turnFor(p), added: time.Now(), since: time.Now()}
	return s.introduce(p, password, true)
}

// introduce has gobgp know a peer that there is a record of; or there is none any more, and an error. restarted tells whether the next session
// says that this node comes from a restart, if the peer is asked to keep routes. gobgp only warns when the listening socket
// does not take the peer's password, and would then let connections in without.
func (s *Speaker) introduce(p bgp.Peer, password string, restarted bool) error {
	peer := apiPeer(p, password)
	peer.GracefulRestart.LocalRestarting = peer.GracefulRestart.LocalRestarting && restarted
	if err := s.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peer}); err != nil {
		delete(s.records, p.Address)
		return fmt.Errorf("add BGP peer %s: %w", p.Address, err)
	}
	if why := s.log.lastError(p.Address.String()); strings.HasPrefix(why, noMD5) {
		return errors.Join(fmt.Errorf("add BGP peer %s: it can't be kept from connecting without its password: %s", p.Address, why), s.remove(p.Address))
	}
	return nil
}

func turnFor(p bgp.Peer) time.Duration {
	switch {
	case p.RestartTime == 0:
		return 0
	case p.Node != "":
		return turnOfNode
	}
	return turn
}

// restarting tells whether a peer is about to learn that this node comes from a restart. The others wait for that: when gobgp
// 3 is done with one peer, it takes the mark from all, also from those that it has not met yet, and then these drop the routes
// that they kept, for a moment.
func (s *Speaker) restarting() (is bool) {
	recent := func(r *record) bool { return time.Since(r.added) < r.turn }
	s.eachPeer(recent, func(_ netip.Addr, _ *record, p *api.Peer) { is = is || p.GracefulRestart.GetLocalRestarting() })
	return is
}

// Pardon is how long a session stays ended whose peer sent too many prefixes, or what can't be read.
const Pardon = time.Minute

// forgive tries peers again that had sent too many prefixes: gobgp would not.
func (s *Speaker) forgive() error {
	var guilty []string
	ctx := context.Background()
	down := func(r *record) bool { return !r.up && time.Since(r.since) > Pardon }
	s.eachPeer(down, func(a netip.Addr, _ *record, p *api.Peer) {
		if p.State.AdminState == api.PeerState_PFX_CT {
			guilty = append(guilty, a.String())
		}
	})
	for _, address := range guilty {
		if err := s.server.EnablePeer(ctx, &api.EnablePeerRequest{Address: address}); err != nil {
			return fmt.Errorf("enable BGP peer %s again: %w", address, err)
		}
	}
	return nil
}

// remove ends the session with a peer by a Cease. gobgp forgets the password at the listening socket only when a peer changes, and would
// go on to want it from a peer at this address that has none.
func (s *Speaker) remove(a netip.Addr) error {
	if old, r := s.peerOf(a), s.records[a]; old != nil && r != nil && r.password != "" && s.have.ListenPort != 0 {
		closed := apiPeer(*old, "")
		closed.Conf.AdminDown = true
		if _, err := s.server.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: closed}); err != nil {
			return fmt.Errorf("forget the password of BGP peer %s: %w", a, err)
		}
	}
	if err := s.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: a.String()}); err != nil {
		return fmt.Errorf("remove BGP peer %s: %w", a, err)
	}
	if r := s.records[a]; r != nil {
		r.release()
	}
	delete(s.records, a)
	s.log.forget(a.String())
	return nil
}

// event is told by gobgp of every state of every peer.
func (s *Speaker) event(e *api.WatchEventResponse) {
	p := e.GetPeer().GetPeer()
	if p == nil {
		return
	}
	a, err := netip.ParseAddr(p.State.NeighborAddress)
	if err != nil {
		return
	}
	up := p.State.SessionState == api.PeerState_ESTABLISHED
	if s.record(a, up) {
		s.changed(a, up)
	}
	s.received() // also when a peer has restarted, or took too long for it
}

// record records whether a session is up, and reports whether that is new.
func (s *Speaker) record(a netip.Addr, up bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[a]
	if r == nil || r.up == up {
		return false
	}
	r.up, r.beenUp, r.since = up, true, time.Now()
	r.lost = !up
	if !up {
		r.told = [2]bool{}
		r.peerEnded = endedByPeer(r.held)
	}
	r.release()
	if up && r.turn > 0 {
		r.held = hold(a)
	}
	return true
}

// release lets go of the connections that are held. An error of close leaves nothing to be done.
func (r *record) release() {
	_ = letGo(r.held)
	r.held = nil
}

// Close ends the sessions with the peers that would not keep the node's routes over a restart of the agent, so that they learn
// of it. The others are left as they are: when the process ends, their sessions do without a word, and routes stay. So are nodes: to take leave
// of one would be to withdraw from routers what is passed on of it. Goodbyes have the patience to be sent.
func (s *Speaker) Close(patience time.Duration) error {
	sessions := s.Sessions()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	leaving := false
	for _, session := range sessions {
		if session.Up() && !session.GracefulRestart && session.Peer.Node == "" {
			errs = append(errs, s.remove(session.Peer.Address))
			leaving = true
		}
	}
	if leaving {
		time.Sleep(patience)
	}
	return errors.Join(errs...)
}

// farewell is what peers are told at the end of a session that ends on purpose (RFC 9003).
const farewell = "the node leaves"

// Leave ends all sessions by a Cease (Administrative Shutdown), upon which peers drop what they still have of the node, and
// forgets the peers: the next Sync begins anew with them. Goodbyes have the patience to be sent. It returns the number of
// sessions that were up.
func (s *Speaker) Leave(patience time.Duration) (ended int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for a, r := range s.records {
		if !r.up {
			continue
		}
		ended++
		if err := s.server.DisablePeer(context.Background(), &api.DisablePeerRequest{Address: a.String(), Communication: farewell}); err != nil {
			errs = append(errs, fmt.Errorf("end the session with BGP peer %s: %w", a, err))
		}
	}
	if ended > 0 {
		time.Sleep(patience)
	}
	for a := range s.records {
		errs = append(errs, s.remove(a))
	}
	s.left = true
	s.have.Peers = slices.DeleteFunc(s.have.Peers, func(p bgp.Peer) bool { return s.records[p.Address] == nil })
	return ended, errors.Join(errs...)
}
