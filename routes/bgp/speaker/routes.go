package speaker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairway-net/fairway/routes/bgp"
)

// A Direction is that of a route in a session.
type Direction string

// The directions.
const (
	Sent     Direction = "sent"
	Received Direction = "received"
)

// A Route is a route as it is sent to a peer or received from one.
type Route struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
	// ASPath is as routers print it, sets in braces.
	ASPath string
	// Origin is IGP, EGP or incomplete.
	Origin string
	// LocalPref and MED are nil in a route without.
	LocalPref, MED   *uint32
	Communities      []bgp.Community
	LargeCommunities []bgp.LargeCommunity
	// Since is when it was made or came.
	Since time.Time
}

// ErrNoSession is the error of Routes when there is no session with the peer.
var ErrNoSession = errors.New("there is no session")

// Routes returns the routes of one direction in the session with a peer, by prefix. Without a session, the error is ErrNoSession.
// Routes that are received are listed whether they are used or not.
func (s *Speaker) Routes(peer netip.Addr, d Direction) (routes []Route, err error) {
	for _, session := range s.Sessions() {
		if session.Peer.Address != peer || !session.Up() {
			continue
		}
		for i, family := range apiFamilies {
			if session.Families[i] {
				list, err := s.routes(peer, family, d)
				if err != nil {
					return nil, err
				}
				routes = append(routes, list...)
			}
		}
		slices.SortFunc(routes, func(a, b Route) int {
			return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
		})
		return routes, nil
	}
	return nil, fmt.Errorf("%w with the BGP peer %s", ErrNoSession, peer)
}

func (s *Speaker) routes(peer netip.Addr, family *api.Family, d Direction) (routes []Route, err error) {
	tables := map[Direction]api.TableType{Sent: api.TableType_ADJ_OUT, Received: api.TableType_ADJ_IN}
	request := &api.ListPathRequest{TableType: tables[d], Name: peer.String(), Family: family}
	listErr := s.server.ListPath(context.Background(), request, func(destination *api.Destination) {
		for _, p := range destination.Paths {
			route, routeErr := readRoute(destination.Prefix, p)
			err = errors.Join(err, routeErr)
			routes = append(routes, route)
		}
	})
	if err := errors.Join(listErr, err); err != nil {
		return nil, fmt.Errorf("list the routes %s in the session with the BGP peer %s: %w", d, peer, err)
	}
	return routes, nil
}

// readRoute turns gobgp's path into a Route. Attributes that a Route has no field for are passed over.
func readRoute(prefix string, p *api.Path) (r Route, err error) {
	if r.Prefix, err = netip.ParsePrefix(prefix); err != nil {
		return r, err
	}
	r.Since = p.Age.AsTime()
	for _, packed := range p.Pattrs {
		m, err := packed.UnmarshalNew()
		if err != nil {
			return r, fmt.Errorf("%s: %w", prefix, err)
		}
		switch m := m.(type) {
		case *api.OriginAttribute:
			r.Origin = map[uint32]string{0: "IGP", 1: "EGP", 2: "incomplete"}[m.Origin]
		case *api.AsPathAttribute:
			r.ASPath = asPath(m.Segments)
		case *api.NextHopAttribute:
			r.NextHop, err = netip.ParseAddr(m.NextHop)
		case *api.MpReachNLRIAttribute:
			if len(m.NextHops) > 0 { // the second would be link-local (RFC 2545)
				r.NextHop, err = netip.ParseAddr(m.NextHops[0])
			}
		case *api.LocalPrefAttribute:
			r.LocalPref = &m.LocalPref
		case *api.MultiExitDiscAttribute:
			r.MED = &m.Med
		case *api.CommunitiesAttribute:
			for _, c := range m.Communities {
				r.Communities = append(r.Communities, bgp.Community(c))
			}
		case *api.LargeCommunitiesAttribute:
			for _, c := range m.Communities {
				r.LargeCommunities = append(r.LargeCommunities, bgp.LargeCommunity{c.GlobalAdmin, c.LocalData1, c.LocalData2})
			}
		}
		if err != nil {
			return r, fmt.Errorf("%s: %w", prefix, err)
		}
	}
	return r, nil
}

func asPath(segments []*api.AsSegment) string {
	var words []string
	for _, s := range segments {
		numbers := strings.Trim(fmt.Sprint(s.Numbers), "[]")
		switch s.Type {
		case api.AsSegment_AS_SET:
			numbers = "{" + numbers + "}"
		case api.AsSegment_AS_CONFED_SEQUENCE, api.AsSegment_AS_CONFED_SET:
			numbers = "(" + numbers + ")"
		}
		words = append(words, numbers)
	}
	return strings.Join(words, " ")
}

// A PeerRestart is what a peer's OPEN says about graceful restart (RFC 4724).
type PeerRestart struct {
	// Time is for how long the peer asks others to keep its own routes.
	Time time.Duration
	// Restarting tells that the peer came from a restart.
	Restarting bool
	// Families are those whose own routes it keeps, by their place in cluster.Families; a mere helper need name none.
	Families [2]bool
}

// restartingFlag is the flag that says so (RFC 4724, section 3), in the octet that has the flags alone.
const restartingFlag = 0x8

// peerRestart reads what a peer's OPEN says about graceful restart; nil when it says nothing.
func peerRestart(capabilities []*anypb.Any) *PeerRestart {
	for _, packed := range capabilities {
		var c api.GracefulRestartCapability
		if packed.UnmarshalTo(&c) != nil {
			continue
		}
		r := &PeerRestart{Time: time.Duration(c.Time) * time.Second, Restarting: c.Flags&restartingFlag != 0}
		for _, tuple := range c.Tuples {
			for i, f := range apiFamilies {
				r.Families[i] = r.Families[i] || tuple.Family.GetAfi() == f.Afi && tuple.Family.GetSafi() == f.Safi
			}
		}
		return r
	}
	return nil
}
