package agent

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// The paths of the control socket at which the BGP sessions and their routes are told.
const (
	bgpPath       = "/bgp"
	bgpRoutesPath = "/bgp/routes"
)

// bgpStatus is where the BGP sessions stand.
type bgpStatus struct {
	ASN      uint32          `json:"asn"`
	RouterID netip.Addr      `json:"routerID"`
	Peers    []bgpPeerStatus `json:"peers"`
}

// bgpPeerStatus is one session.
type bgpPeerStatus struct {
	Address netip.Addr `json:"address"`
	ASN     uint32     `json:"asn"`
	// Node is the node that the peer is; empty for a router.
	Node string `json:"node,omitempty"`
	// State is that of RFC 4271 in lower case, or no-password.
	State string `json:"state"`
	// Since is when the session came up or was lost, or when the peer was added if neither has happened.
	Since time.Time `json:"since"`
	// Prefixes are counted by family, of those that the session carries; none while it is not up.
	Prefixes        map[string]bgpPrefixes `json:"prefixes"`
	GracefulRestart bgpRestartStatus       `json:"gracefulRestart"`
	LastError       string                 `json:"lastError,omitempty"`
	// PasswordError is why the password can't be read any more with which the session began.
	PasswordError string `json:"passwordError,omitempty"`
	// Settings are those of the configuration, as fairway render -o bgp prints them.
	Settings string `json:"settings"`
}

func (p bgpPeerStatus) up() bool { return speaker.Session{State: p.State}.Up() }

// bgpPrefixes are counts of prefixes.
type bgpPrefixes struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
}

// bgpRestartStatus is what becomes of the routes when the agent is restarted.
type bgpRestartStatus struct {
	// Enabled tells that the peer is asked to keep them, KeepsRoutes that it will.
	Enabled     bool `json:"enabled"`
	KeepsRoutes bool `json:"keepsRoutes"`
	// Peer is what the peer's OPEN says; nil when it says nothing.
	Peer *bgpPeerRestart `json:"peer,omitempty"`
}

type bgpPeerRestart struct {
	RestartTime Duration `json:"restartTime"`
	Restarting  bool     `json:"restarting"`
	Families    []string `json:"families"`
}

// bgpRoutes are routes of sessions.
type bgpRoutes struct {
	Routes []bgpRoute `json:"routes"`
	// NoSession are the peers that were asked for and have no session.
	NoSession []netip.Addr `json:"noSession,omitempty"`
}

// bgpRoute is a route in the session with a peer.
type bgpRoute struct {
	Peer      netip.Addr        `json:"peer"`
	Direction speaker.Direction `json:"direction"`
	Prefix    netip.Prefix      `json:"prefix"`
	NextHop   netip.Addr        `json:"nextHop"`
	ASPath    string            `json:"asPath"`
	Origin    string            `json:"origin"`
	LocalPref *uint32           `json:"localPref,omitempty"`
	MED       *uint32           `json:"med,omitempty"`
	// Communities are standard ones and large ones, as the configuration has them.
	Communities []string  `json:"communities,omitempty"`
	Since       time.Time `json:"since"`
}

// Why there are no sessions to tell of.
var (
	errNoBGP      = errors.New("this agent speaks no BGP: its configuration has no section bgp")
	errBGPWaiting = errors.New("BGP has not begun: it waits for the first look at the cluster, for the Service rules that are announced, and for the node's BGP identifier (its IPv4 InternalIP, or bgp.routerID)")
)

// sessions returns the identity and the sessions, or the error that says why there are none.
func (p *bgpPart) sessions() (asn uint32, id netip.Addr, sessions []speaker.Session, err error) {
	p.mu.Lock()
	configured := p.configured
	p.mu.Unlock()
	asn, id = p.speaker.Identity()
	switch {
	case configured == nil || *configured && !id.IsValid():
		return 0, id, nil, errBGPWaiting
	case !*configured:
		return 0, id, nil, errNoBGP
	}
	return asn, id, p.speaker.Sessions(), nil
}

// serveStatus answers with a bgpStatus.
func (p *bgpPart) serveStatus(w http.ResponseWriter, _ *http.Request) {
	asn, id, sessions, err := p.sessions()
	if err != nil {
		answer(w, http.StatusConflict, refusal{err.Error()})
		return
	}
	s := bgpStatus{ASN: asn, RouterID: id, Peers: []bgpPeerStatus{}}
	for _, session := range sessions {
		s.Peers = append(s.Peers, peerStatus(session))
	}
	answer(w, http.StatusOK, s)
}

func peerStatus(s speaker.Session) bgpPeerStatus {
	p := bgpPeerStatus{Address: s.Peer.Address, ASN: s.Peer.ASN, Node: s.Peer.Node, State: s.State, Since: s.Since, Prefixes: map[string]bgpPrefixes{},
		LastError: s.LastError, PasswordError: s.PasswordError, Settings: s.Peer.String(),
		GracefulRestart: bgpRestartStatus{Enabled: s.Peer.RestartTime > 0, KeepsRoutes: s.GracefulRestart}}
	for i, f := range cluster.Families {
		if s.Families[i] {
			p.Prefixes[f.String()] = bgpPrefixes{Sent: s.Announced[i], Received: s.Received[i]}
		}
	}
	if r := s.PeerRestart; r != nil {
		p.GracefulRestart.Peer = &bgpPeerRestart{RestartTime: Duration(r.Time.String()), Restarting: r.Restarting, Families: familyNames(r.Families)}
	}
	return p
}

func familyNames(families [2]bool) []string {
	names := []string{}
	for i, f := range cluster.Families {
		if families[i] {
			names = append(names, f.String())
		}
	}
	return names
}

// serveRoutes answers with bgpRoutes: those of the peer and the direction that the query names, or of all.
func (p *bgpPart) serveRoutes(w http.ResponseWriter, r *http.Request) {
	_, _, sessions, err := p.sessions()
	var routes bgpRoutes
	if err == nil {
		routes, err = p.routes(sessions, r.FormValue("peer"), speaker.Direction(r.FormValue("direction")))
	}
	if err != nil {
		answer(w, http.StatusConflict, refusal{err.Error()})
		return
	}
	answer(w, http.StatusOK, routes)
}

// routes lists the routes of the peer and the direction, or of all when these are empty.
func (p *bgpPart) routes(sessions []speaker.Session, peer string, direction speaker.Direction) (bgpRoutes, error) {
	list := bgpRoutes{Routes: []bgpRoute{}}
	var peers []netip.Addr
	found := peer == ""
	for _, s := range sessions {
		a := s.Peer.Address
		peers = append(peers, a)
		found = found || peer == a.String()
		if peer != "" && peer != a.String() {
			continue
		}
		if !s.Up() {
			list.NoSession = append(list.NoSession, a)
			continue
		}
		for _, d := range []speaker.Direction{speaker.Sent, speaker.Received} {
			if direction != "" && direction != d {
				continue
			}
			routes, err := p.speaker.Routes(a, d)
			if err != nil {
				return bgpRoutes{}, err
			}
			for _, r := range routes {
				list.Routes = append(list.Routes, bgpRoute{Peer: a, Direction: d, Prefix: r.Prefix, NextHop: r.NextHop, ASPath: r.ASPath, Origin: r.Origin,
					LocalPref: r.LocalPref, MED: r.MED, Communities: append(texts(r.Communities), texts(r.LargeCommunities)...), Since: r.Since})
			}
		}
	}
	if !found {
		return bgpRoutes{}, fmt.Errorf("%s is no BGP peer of this node; its peers are %s", peer, defaultTo(strings.Join(texts(peers), ", "), "none"))
	}
	return list, nil
}

// texts is how the elements of a list print themselves.
func texts[T fmt.Stringer](list []T) (words []string) {
	for _, v := range list {
		words = append(words, v.String())
	}
	return words
}
