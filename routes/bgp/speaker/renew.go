package speaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/fairway-net/fairway/routes/bgp"
)

// keptPaths are paths of a peer that gobgp has forgotten, for as long as the peer's restart time.
type keptPaths struct {
	paths []bgp.Received
	until time.Time
}

// renew has gobgp forget and get to know anew the peers of a Table whose connections were lost without a word, so that it opens the next session
// as after a restart. It would say otherwise that it has not kept its forwarding state (see the package comment), and a router that still has the
// node's routes would drop them at once, to get them again some milliseconds later, or seconds if there are thousands.
//
// Not so when the peer has ended the connection: it has restarted, and a router that has does not wait for the routes of a neighbour that says the
// same, but drops those that it had before (RFC 4724, section 4.1).
//
// What such a peer had announced itself is kept, as gobgp would. all is false when some have to wait for others.
func (s *Speaker) renew(t *bgp.Table, passwords map[netip.Addr]string) (all bool, err error) {
	var errs []error
	all = true
	for _, p := range t.Peers {
		r := s.records[p.Address]
		switch {
		case r == nil || !r.lost || p.RestartTime == 0:
			continue
		case t.Reflects && p.Node != "":
			r.lost = false // gobgp must not forget what it passes on
			continue
		case s.restarting():
			all = false
			continue
		}
		r.lost = false
		if now := s.peer(p.Address); now.GetGracefulRestart().GetPeerRestarting() {
			errs = append(errs, s.renewPeer(p, r, passwords[p.Address], t.Import, now.GracefulRestart.PeerRestartTime))
		}
	}
	return all, errors.Join(errs...)
}

func (s *Speaker) renewPeer(p bgp.Peer, r *record, password string, ranges []bgp.ImportRange, restartTime uint32) error {
	paths, err := s.receivedFrom(p, s.have.ASN, ranges)
	if err != nil {
		return err
	}
	s.renewals++
	if err := s.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: p.Address.String()}); err != nil {
		return fmt.Errorf("renew BGP peer %s: %w", p.Address, err)
	}
	r.added, r.password = time.Now(), password
	if len(paths) > 0 {
		patience := time.Duration(restartTime) * time.Second
		r.kept = keptPaths{paths, time.Now().Add(patience)}
		time.AfterFunc(patience, s.received)
	}
	return s.introduce(p, password, !r.peerEnded)
}
