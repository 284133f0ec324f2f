package speaker

import (
	"context"
	"net/netip"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// A Session is where the session with a peer stands.
type Session struct {
	Peer bgp.Peer
	// State is that of RFC 4271 in lower case ("established"), "no-password" for a session that there can't be, or "left"
	// for one that Leave has ended.
	State string
	// Since is when the session came up or was lost, or when the peer was added if neither has happened.
	Since time.Time
	// BeenUp tells that the session was up at some time.
	BeenUp bool
	// Families are those that both sides have, by their place in cluster.Families. They and what follows are empty while the
	// session is not up.
	Families [2]bool
	// GracefulRestart tells that the peer will keep the node's routes over a restart.
	GracefulRestart bool
	// PeerRestart is what the peer's OPEN says about that; nil when it says nothing.
	PeerRestart *PeerRestart
	// Announced and Received count prefixes by family. What a route reflector passes on is among them; for a node, that is
	// reckoned from what it announces.
	Announced, Received [2]int
	// Complete tells that the peer has sent all that it has (End-of-RIB, RFC 4724), in all of the Families. Not all peers say so, and it
	// is heard only where there is something to import.
	Complete bool
	// TooMany tells that the peer sent more than its MaxPrefixes, and that the session has been ended for a while.
	TooMany bool
	// PasswordError is why the password can't be read any more with which the session began; empty while it can.
	PasswordError string
	// LastError is the last thing that went wrong, also before the session came up; empty for nothing.
	LastError string
}

// Up tells whether the session is established.
func (s Session) Up() bool { return s.State == established }

// Locked tells that there can't be a session, for want of a password; LastError says why.
func (s Session) Locked() bool { return s.State == noPassword }

const (
	established = "established"
	idle        = "idle"
	noPassword  = "no-password"
	left        = "left"
)

// Sessions returns the sessions with all peers, in the order of their addresses.
func (s *Speaker) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		return nil
	}
	known := map[netip.Addr]*api.Peer{}
	s.eachPeer(func(*record) bool { return true }, func(a netip.Addr, _ *record, p *api.Peer) { known[a] = p })
	var announced [2]int
	for _, p := range s.have.Paths {
		announced[familyIndex(p.Family())]++
	}
	passedOn := s.passedOn()
	sessions := make([]Session, 0, len(s.wanted))
	for _, peer := range s.wanted {
		session := Session{Peer: peer, State: idle, Since: time.Now()} // its turn has not come
		if err := s.locked[peer.Address]; err != nil {
			session.State, session.LastError = noPassword, err.Error()
		}
		if s.left {
			session.State = left
		}
		if at, refused := s.refused[peer.Address]; refused {
			session.Since, session.BeenUp, session.LastError = at, true, unreadable
		}
		if r, p := s.records[peer.Address], known[peer.Address]; r != nil && p != nil {
			if err := s.unread[peer.Address]; err != nil {
				session.PasswordError = err.Error()
			}
			session.Since, session.BeenUp, session.LastError = r.since, r.beenUp, s.log.lastError(peer.Address.String())
			session.read(p, announced)
			if peer.ClusterID.IsValid() && session.Up() {
				session.addPassedOn(p, announced, passedOn)
			}
			session.Complete = session.Up() && (r.told[0] || !session.Families[0]) && (r.told[1] || !session.Families[1])
		}
		sessions = append(sessions, session)
	}
	return sessions
}

// read fills in what gobgp knows.
func (s *Session) read(p *api.Peer, announced [2]int) {
	s.State = strings.ToLower(p.State.SessionState.String())
	s.TooMany = p.State.AdminState == api.PeerState_PFX_CT
	if !s.Up() {
		return
	}
	s.PeerRestart = peerRestart(p.State.RemoteCap)
	s.GracefulRestart = s.PeerRestart != nil && s.Peer.RestartTime > 0
	s.Families = negotiated(s.Peer, p.State.RemoteCap)
	for _, f := range p.AfiSafis {
		for i, family := range apiFamilies {
			if f.State != nil && f.State.Family.GetAfi() == family.Afi && s.Families[i] {
				s.Received[i] = int(f.State.Received)
				s.Announced[i] = announced[i]
			}
		}
	}
}

// passedOn counts the prefixes in gobgp's table of routes, by family, on a route reflector: its own, and what it passes on.
func (s *Speaker) passedOn() (n [2]int) {
	if !s.reflection.on {
		return n
	}
	for i, f := range apiFamilies {
		table, err := s.server.GetTable(context.Background(), &api.GetTableRequest{TableType: api.TableType_GLOBAL, Family: f})
		if err == nil { // it fails for a family that the table does not have
			n[i] = int(table.NumDestination)
		}
	}
	return n
}

// addPassedOn adds to what is announced to a client what other nodes announce.
func (s *Session) addPassedOn(p *api.Peer, own, all [2]int) {
	for _, f := range p.AfiSafis {
		for i, family := range apiFamilies {
			if f.State != nil && f.State.Family.GetAfi() == family.Afi && s.Families[i] {
				s.Announced[i] = all[i]
				if s.Peer.Node != "" { // less what it has announced itself
					s.Announced[i] = max(own[i], all[i]-int(f.State.Received))
				}
			}
		}
	}
}

// negotiated reads in the peer's OPEN which families it has, of those that the session is to carry. One that names no family has
// IPv4 (RFC 4760, section 8).
func negotiated(peer bgp.Peer, capabilities []*anypb.Any) (families [2]bool) {
	named := false
	for _, c := range capabilities {
		value, err := c.UnmarshalNew()
		if err != nil {
			continue
		}
		if c, ok := value.(*api.MultiProtocolCapability); ok {
			named = true
			for i, f := range apiFamilies {
				families[i] = families[i] || peer.Families[i] && c.Family.GetAfi() == f.Afi && c.Family.GetSafi() == f.Safi
			}
		}
	}
	if !named {
		families[0] = peer.Families[0]
	}
	return families
}

func familyIndex(f cluster.Family) int {
	if f == cluster.IPv6 {
		return 1
	}
	return 0
}
