package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/snapshot"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/process"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// CleanupOptions are what Cleanup has to know.
type CleanupOptions struct {
	// Backend is auto, legacy or nft.
	Backend string
	// ControlSocket is where an agent answers, if one runs.
	ControlSocket string
	// BGP tells, together with StateDir, the BGP peers of an agent that does not run any more; nil when there were none.
	BGP      *bgp.Config
	StateDir string
}

// Cleanup removes every route and rule of ours, and says what it removed; BGP peers learn before that the node is gone. It is
// safe to run twice and needs no API.
func Cleanup(ctx context.Context, o CleanupOptions, out io.Writer) error {
	peersErr := leaveForGood(ctx, o, out)
	removed, routesErr := cleanRoutes(ctx)
	fmt.Fprintf(out, "routes: %d removed\n", removed)
	cleaned, rulesErr := netfilter.Cleanup(ctx, o.Backend)
	for _, c := range cleaned {
		fmt.Fprintf(out, "iptables-%s %s: %d chains removed\n", c.Backend, c.Family, c.Chains)
	}
	return errors.Join(peersErr, routesErr, rulesErr)
}

func cleanRoutes(ctx context.Context) (removed int, err error) {
	for _, open := range []func() (*rtnl.Conn, error){rtnl.Open, rtnl.OpenLearned} {
		conn, err := open()
		if err != nil {
			return removed, err
		}
		defer conn.Close()
		n, err := conn.Cleanup(ctx)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// leaveForGood has the peers know that the node is gone: by the agent, if one runs, else by a session with each that ends again.
func leaveForGood(ctx context.Context, o CleanupOptions, out io.Writer) error {
	err := Leave(ctx, o.ControlSocket, false, out)
	switch {
	case err == nil:
		fmt.Fprintln(out, "an agent runs on this node, and will make again what is removed; stop it first")
		return nil
	case !errors.Is(err, ErrNoAgent):
		fmt.Fprintf(out, "BGP peers: %v\n", err)
		return nil
	case o.BGP == nil:
		return nil
	}
	return farewell(ctx, o, out)
}

// farewellBound is how long peers have for a session with a node that only comes to say goodbye.
const farewellBound = 15 * time.Second

// farewell has a short session with each peer. One that keeps the routes of an agent that is gone, as it may come back (graceful
// restart), drops them when the node comes back without graceful restart and without routes (RFC 4724, section 4.2).
func farewell(ctx context.Context, o CleanupOptions, out io.Writer) (err error) {
	// Where nothing was saved, it is the configuration alone that tells.
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: o.BGP.NodeName}}}
	if o.StateDir != "" {
		if saved, err := snapshot.Load(o.StateDir, o.BGP.NodeName); err == nil {
			s = saved
		}
	}
	table, _ := bgp.Plan(s, *o.BGP, &routes.Table{}, nil)
	if !table.RouterID.IsValid() {
		return errors.New("the BGP peers may send to this node for some time: its BGP identifier is not known here; right would be bgp.routerID, or what the agent has saved in stateDir")
	}
	table.Paths, table.Draining, table.Import = nil, nil, nil
	// Of other nodes, reflectors alone keep anything.
	table.Peers = slices.DeleteFunc(table.Peers, func(p bgp.Peer) bool { return p.Node != "" && p.RestartTime == 0 })
	for i := range table.Peers {
		table.Peers[i].RestartTime = 0
	}
	// In a process of its own, as what a peer says must not keep the rest from being removed.
	sp := process.New(process.Options{Changed: func(netip.Addr, bool) {}, Received: func() {}})
	defer func() { err = errors.Join(err, sp.Close(0)) }()
	if _, err := sp.Sync(table); err != nil {
		return err
	}
	met := func() (n int) {
		for _, session := range sp.Sessions() {
			if session.Up() {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(farewellBound); met() < len(table.Peers) && time.Now().Before(end); {
		if !sleep(ctx, farewellBound/100) {
			return ctx.Err()
		}
	}
	var missed []error
	for _, session := range sp.Sessions() {
		if !session.Up() {
			missed = append(missed, fmt.Errorf("the BGP peer %s was not told, and may send to this node for some time: %s", session.Peer.Address, defaultTo(session.LastError, "no answer")))
		}
	}
	ended, err := sp.Leave(goodbye)
	fmt.Fprintf(out, "BGP peers: %d of %d told\n", ended, len(table.Peers))
	return errors.Join(append(missed, err)...)
}
