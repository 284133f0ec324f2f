package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/rtnl"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

// routing is what the routes to many nodes cost, with one family or both.
type routing struct {
	families      int
	routes        int // of the full table
	batch         timing
	full          timing
	ratio         []float64 // of the processor time of full to that of batch, by round
	allocated     uint64    // of one full, in bytes
	more          timing    // deciding included
	moreAllocated uint64
	nothing       timing
	remove        timing
}

// measureRoutes programs the routes to many nodes in a fresh namespace, by turns with ip and as the agent does.
func measureRoutes(ctx context.Context, families int, o options) (r routing, err error) {
	r.families = families
	machine, err := lab.New(nodeTopology(), lab.Options{})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	node := machine.Node(synth.NodeName)
	err = node.Do(func() error {
		conn, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		host, err := conn.Host(ctx)
		if err != nil {
			return err
		}
		b := router{ctx: ctx, conn: conn, file: filepath.Join(machine.Dir, "routes.batch"), routing: &r,
			few: manyNodes(o.nodes, families, host), many: manyNodes(o.nodes+1, families, host)}
		return b.rounds(o.full)
	})
	return r, err
}

// manyNodes is a cluster of nodes of one family or of both.
func manyNodes(n, families int, host *cluster.Host) *cluster.Snapshot {
	s := &cluster.Snapshot{Host: host}
	for i := range n {
		node := synth.Node(i)
		node.PodCIDRs, node.InternalIPs = node.PodCIDRs[:families], node.InternalIPs[:families]
		s.Nodes = append(s.Nodes, node)
	}
	return s
}

// A router programs routes in the namespace of its thread, as the agent's Part does: a Plan, and a Sync of its table.
type router struct {
	*routing
	ctx       context.Context
	conn      *rtnl.Conn
	file      string            // for ip -batch
	few, many *cluster.Snapshot // many has one node more
}

func (b *router) plan(s *cluster.Snapshot) *routes.Table {
	t, _ := routes.Plan(s, routes.Config{NodeName: synth.NodeName, ClusterCIDRs: config().ClusterCIDRs})
	return t
}

func (b *router) rounds(n int) error {
	all := b.plan(b.few)
	b.routing.routes = len(all.Routes)
	if want := (len(b.few.Nodes) - 1) * b.families; len(all.Routes) != want {
		return fmt.Errorf("%d routes are planned, expected %d", len(all.Routes), want)
	}
	if err := os.WriteFile(b.file, []byte(batchOf(all)), 0o600); err != nil {
		return err
	}
	for i := range n {
		progress("routes of %d nodes, %d families, %d of %d", len(b.few.Nodes), b.families, i+1, n)
		steps := []func(*routes.Table) error{b.byIP, b.byAgent}
		if i%2 == 1 {
			steps[0], steps[1] = steps[1], steps[0]
		}
		for _, step := range steps {
			if err := errors.Join(interrupted(b.ctx), step(all)); err != nil {
				return err
			}
		}
		b.ratio = append(b.ratio, last(b.full.cpu).Seconds()/last(b.batch.cpu).Seconds())
	}
	return nil
}

func last(s sample) time.Duration { return s[len(s)-1] }

// batchOf is a table as input for ip -batch.
func batchOf(t *routes.Table) string {
	var b strings.Builder
	for _, r := range t.Routes {
		fmt.Fprintf(&b, "route add %s via %s dev %s proto %d\n", r.Dst, r.Gateway, r.Link, routes.Protocol)
	}
	return b.String()
}

// byIP has ip program the routes, and looks whether they are what the agent would have programmed.
func (b *router) byIP(all *routes.Table) error {
	err := b.batch.time(func() error {
		out, err := exec.CommandContext(b.ctx, "ip", "-batch", b.file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip -batch: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.sync(all, 0, 0); err != nil {
		return fmt.Errorf("after ip -batch: %w", err)
	}
	_, err = b.conn.Cleanup(b.ctx)
	return err
}

// byAgent programs the routes, one node more, nothing, and removes them all.
func (b *router) byAgent(all *routes.Table) error {
	runtime.GC() // not the last round's garbage
	before := allocated()
	err := b.full.own(func() error { return b.sync(all, len(all.Routes), 0) })
	b.allocated = allocated() - before
	if err != nil {
		return err
	}
	before = allocated()
	var more *routes.Table
	err = b.more.own(func() error {
		more = b.plan(b.many)
		return b.sync(more, b.families, 0)
	})
	b.moreAllocated = allocated() - before
	if err != nil {
		return err
	}
	if err := b.nothing.own(func() error { return b.sync(more, 0, 0) }); err != nil {
		return err
	}
	return b.remove.own(func() error { return b.sync(&routes.Table{}, 0, len(more.Routes)) })
}

// sync makes the kernel's routes those of a table. It is an error when that adds or deletes another number of them.
func (b *router) sync(t *routes.Table, added, deleted int) error {
	r, err := b.conn.Sync(b.ctx, t)
	if err != nil {
		return err
	}
	if len(r.Added) != added || len(r.Deleted) != deleted || len(r.Replaced) > 0 || r.Installed != len(t.Routes) {
		return fmt.Errorf("of %d routes, %d were added, %d replaced and %d deleted, and %d are there; expected %d added and %d deleted",
			len(t.Routes), len(r.Added), len(r.Replaced), len(r.Deleted), r.Installed, added, deleted)
	}
	return nil
}
