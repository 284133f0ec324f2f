package speaker

import (
	"context"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"k8s.io/klog/v2"
)

// unreadable is what is wrong with a peer for which gobgp's ListPeer panics: it makes protobuf strings of what the OPEN says.
const unreadable = "its OPEN has a host name or a software version that is not UTF-8"

// A questioner asks gobgp for its peers, and survives that this panics.
type questioner struct {
	// asking tells that there is a question, listening that there is a socket, of which a second Serve would know nothing: what
	// is added later would have no password there.
	asking, listening atomic.Bool
	unanswered        chan struct{}
}

// serve runs gobgp's loop, for as long as the process lives. Unlike those that parse, its goroutine is ours. It panics at two places at
// which it holds no lock and has begun nothing, after which it can run again.
func (s *Speaker) serve() {
	for {
		s.serveUntilPanic()
	}
}

func (s *Speaker) serveUntilPanic() {
	defer func() {
		what, stack := recover(), string(debug.Stack())
		_, wrongType := what.(*runtime.TypeAssertionError)
		switch {
		case s.questions.listening.Load():
			panic(what)
		case s.questions.asking.Load() && strings.Contains(stack, "(*BgpServer).ListPeer.func"):
			s.questions.unanswered <- struct{}{}
		case wrongType && strings.Contains(stack, "(*peer).handleUpdate("):
			klog.InfoS("BGP warning", "detail", "a peer has sent a message in a session that is up which does not belong there")
		default:
			panic(what) // nobody knows what state gobgp is in
		}
	}()
	s.server.Serve()
}

// peers asks for one peer, or for all with an empty address; ok is false when there is no answer.
func (s *Speaker) peers(address string) (peers []*api.Peer, ok bool) {
	s.questions.asking.Store(true)
	defer s.questions.asking.Store(false)
	answer := make(chan []*api.Peer, 1)
	go func() { // which stays for ever without an answer
		var list []*api.Peer
		// It fails for no reason but a nil request.
		_ = s.server.ListPeer(context.Background(), &api.ListPeerRequest{Address: address}, func(p *api.Peer) { list = append(list, p) })
		answer <- list
	}()
	select {
	case list := <-answer:
		return list, true
	case <-s.questions.unanswered:
		return nil, false
	}
}

// peer asks for one peer; nil when gobgp does not have it, or there is no answer.
func (s *Speaker) peer(a netip.Addr) *api.Peer {
	if list, ok := s.peers(a.String()); ok && len(list) > 0 {
		return list[0]
	}
	return nil
}

// eachPeer calls f for every peer that gobgp has and that is asked for, in the order of their addresses. One that there is no answer for is refused: the next Sync
// ends its session, and begins another one later.
func (s *Speaker) eachPeer(asked func(*record) bool, f func(netip.Addr, *record, *api.Peer)) {
	addresses := make([]netip.Addr, 0, len(s.records))
	for a, r := range s.records {
		if asked(r) {
			addresses = append(addresses, a)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	known := s.manyPeers(addresses)
	for _, a := range addresses {
		r := s.records[a]
		if !s.refused[a].IsZero() {
			continue
		}
		p, ok := known[a], true
		if p == nil {
			var list []*api.Peer
			if list, ok = s.peers(a.String()); len(list) > 0 {
				p = list[0]
			}
		}
		switch {
		case !ok:
			s.refused[a] = time.Now()
		case p != nil:
			f(a, r, p)
		}
	}
}

// manyPeers asks for all peers at once, where many are wanted: for each question, gobgp walks through all of them. It has none when there is
// no answer, and who is to blame is found by asking for each.
func (s *Speaker) manyPeers(wanted []netip.Addr) map[netip.Addr]*api.Peer {
	const many = 10
	if len(wanted) < many || len(s.refused) > 0 {
		return nil
	}
	list, _ := s.peers("")
	known := make(map[netip.Addr]*api.Peer, len(list))
	for _, p := range list {
		if a, err := netip.ParseAddr(p.GetState().GetNeighborAddress()); err == nil {
			known[a] = p
		}
	}
	return known
}

// isRefused tells whether there should be no session with a peer for now.
func (s *Speaker) isRefused(a netip.Addr) bool {
	at, refused := s.refused[a]
	if refused && time.Since(at) > Pardon {
		delete(s.refused, a)
		return false
	}
	return refused
}
