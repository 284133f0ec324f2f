package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

const (
	// followBound is how long a contender may take to follow a change.
	followBound = 3 * time.Minute
	// settle is waited after a change was followed, for what the contender does afterwards; it is longer than kube-proxy's shortest
	// time between two writes.
	settle = 1200 * time.Millisecond
	// churnGap is the time between two changes of the churn: 20 a second.
	churnGap = 50 * time.Millisecond
	// movesAmong is how many changes of the churn there are to one that a follower sees.
	movesAmong = 4
	// A contender is quiet when it used less than quietCPU in a quietTime; quietBound is how long that is waited for.
	quietTime  = time.Second
	quietCPU   = 20 * time.Millisecond
	quietBound = 30 * time.Second
	// startPatience is how long a connection to a Service is waited for that may not be there yet.
	startPatience = 10 * time.Millisecond
	// stopGrace is how long a contender has to end.
	stopGrace = 10 * time.Second
)

// errLate is the end of waiting for a connection.
var errLate = errors.New("no connection until the deadline")

// tally is what one contender did with a cluster, in all rounds.
type tally struct {
	unfinished bool                                                    // it has not programmed everything within the limit
	start      sample                                                  // from the start of the process until all is programmed
	startCPU   sample                                                  // until then
	quietCPU   sample                                                  // until it is quiet again
	memory     struct{ ready, churned, rested, peak, file, child int } // the highest of all rounds, in KiB
	idle       sample                                                  // from the API's answer to a change until connections follow, changes being seconds apart
	changeCPU  sample                                                  // of one of those changes
	busy       sample                                                  // the same at 20 changes a second
	last       sample                                                  // of the last of those
	busyCPU    sample                                                  // of one of those, on average of a round
	restCPU    sample                                                  // of a time without changes
	repair     [harms]sample                                           // from the end of each harm until connections work again
	doctor     checkup                                                 // of fairway doctor beside it
	lost       int                                                     // connections without an answer while changes were followed
}

// A trial is a running contender.
type trial struct {
	*world
	*stage
	contender contender
	process   *lab.Process
	watch     *watch
	tally     *tally
}

// try runs a contender on a stage from start to end. Its rules stay.
func (w *world) try(c contender, s *stage, o options, t *tally) (err error) {
	if err := w.connect(s); err != nil {
		return err
	}
	m, err := newMeter()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	command, err := c.command(w.cp.ControlPlane)
	if err != nil {
		return err
	}
	if c.mode == "" {
		command.Args = append(command.Args, "--control-socket="+s.node.ControlSocket())
	}
	command.Cgroup = m.file
	start := time.Now()
	p, err := s.node.Start(command)
	if err != nil {
		return err
	}
	defer p.Stop(stopGrace)
	tr := &trial{world: w, stage: s, contender: c, process: p, watch: watchProcess(m, p.PID()), tally: t}
	defer tr.watch.stop()
	return tr.run(start, o)
}

func (tr *trial) run(start time.Time, o options) error {
	err := tr.programmed(start.Add(o.limit))
	tr.tally.start.add(time.Since(start))
	tr.tally.unfinished = errors.Is(err, errLate)
	if err != nil && !tr.tally.unfinished {
		return err
	}
	var atOnce int // what the start needs besides is given back a moment later, and counts as the most ever
	if err := tr.note(&tr.tally.startCPU, &atOnce, 0); err != nil || tr.tally.unfinished {
		return err
	}
	if err := tr.complete(); err != nil {
		return err
	}
	if err := tr.quiet(); err != nil {
		return err
	}
	if err := tr.note(&tr.tally.quietCPU, &tr.tally.memory.ready, 0); err != nil {
		return err
	}
	if !o.does(partContenders) {
		return nil
	}
	f := newFollower(&tr.ends, tr.front())
	err = tr.follow(f, o)
	lost, ended := f.stop()
	tr.tally.lost += lost
	if err := errors.Join(err, ended); err != nil {
		return err
	}
	if err := tr.rest(o); err != nil {
		return err
	}
	return errors.Join(tr.examine(), tr.repairs())
}

// front is where the moving Service is.
func (w *world) front() netip.AddrPort { return netip.AddrPortFrom(w.moving.ClusterIPs[0], 80) }

// programmed waits until connections get through: to the moving Service, the first, the last, and some in between.
func (tr *trial) programmed(deadline time.Time) error {
	fronts := []netip.AddrPort{tr.front()}
	all := tr.snapshot.Services
	for i := 0; i < len(all); i += max(1, len(all)/20) {
		fronts = append(fronts, netip.AddrPortFrom(all[i].ClusterIPs[0], 80))
	}
	fronts = append(fronts, netip.AddrPortFrom(all[len(all)-1].ClusterIPs[0], 80))
	return tr.ends.client.Do(func() error {
		return preferred(func() error {
			for _, to := range fronts {
				if err := tr.await(to, deadline); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// await opens connections until one gets through.
func (tr *trial) await(to netip.AddrPort, deadline time.Time) error {
	for {
		_, err := tr.ends.reach(to, startPatience)
		if !errors.Is(err, errNoAnswer) {
			return err
		}
		if err := tr.alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errLate
		}
		time.Sleep(askGap)
	}
}

// alive is an error when the process or the run has ended.
func (tr *trial) alive() error {
	select {
	case <-tr.process.Exited():
		out := tr.process.Output()
		return fmt.Errorf("%s has ended (%s): %s", tr.contender.name, tr.process.State(), out[max(0, len(out)-3000):])
	default:
		return interrupted(tr.ctx)
	}
}

// complete is an error when an endpoint, or in mode nftables a Service, is missing from the rules.
func (tr *trial) complete() error {
	var found, want int
	switch tr.contender.mode {
	case "nftables":
		text, err := tr.node.Run("nft", "list", "map", "ip", "kube-proxy", "service-ips")
		if err != nil {
			return err
		}
		found, want = strings.Count(text, "goto service-"), len(tr.snapshot.Services)+1
	default:
		text, err := tr.node.Save(tr.contender.backend, cluster.IPv4, "nat")
		if err != nil {
			return err
		}
		found, want = strings.Count(text, "--to-destination "), 1
		for _, svc := range tr.snapshot.Services {
			want += len(svc.Slices[0].Endpoints)
		}
	}
	if found < want {
		return fmt.Errorf("%s serves connections, but has %d endpoints or Services in its rules instead of %d", tr.contender.name, found, want)
	}
	return nil
}

// quiet waits until the contender has nothing to do any more.
func (tr *trial) quiet() error {
	for end := time.Now().Add(quietBound); time.Now().Before(end); {
		before, err := tr.watch.cpu()
		if err != nil {
			return err
		}
		if !wait(tr.ctx, quietTime) {
			return errInterrupted
		}
		after, err := tr.watch.cpu()
		if err != nil || after-before < quietCPU {
			return errors.Join(err, tr.alive())
		}
	}
	return nil // it never is
}

// note adds the processor time since an earlier amount to a sample, and raises a highest amount of memory.
func (tr *trial) note(cpu *sample, rss *int, since time.Duration) error {
	u, err := tr.watch.usage()
	if err != nil {
		return errors.Join(err, tr.alive())
	}
	cpu.add(u.cpu - since)
	m := &tr.tally.memory
	*rss = max(*rss, u.rss)
	m.peak, m.file, m.child = max(m.peak, u.peak), max(m.file, u.file), max(m.child, u.child)
	return nil
}

// follow makes changes, first some with time in between, then many.
func (tr *trial) follow(f *follower, o options) error {
	if err := tr.followed(f, f.expect(tr.here())); err != nil {
		return err
	}
	for range o.changes {
		if err := tr.change(f); err != nil {
			return err
		}
	}
	return tr.churn(f, o.churn)
}

// followed waits until connections get to a place.
func (tr *trial) followed(f *follower, place int) error {
	for end := time.Now().Add(followBound); ; time.Sleep(askGap) {
		at, err := f.at(place)
		if err != nil || !at.IsZero() {
			return err
		}
		if err := tr.alive(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has not followed a change within %v", tr.contender.name, followBound)
		}
	}
}

// change makes one change.
func (tr *trial) change(f *follower) error {
	// Not in step with what the contender does from time to time.
	if !wait(tr.ctx, rand.N(300*time.Millisecond)) {
		return errInterrupted
	}
	before, err := tr.watch.cpu()
	if err != nil {
		return err
	}
	place, answered, err := tr.move(f)
	if err != nil {
		return err
	}
	if err := tr.followed(f, place); err != nil {
		return err
	}
	at, err := f.at(place)
	if err != nil {
		return err
	}
	tr.tally.idle.add(max(0, at.Sub(answered)))
	if !wait(tr.ctx, settle) {
		return errInterrupted
	}
	after, err := tr.watch.cpu()
	tr.tally.changeCPU.add(after - before)
	return err
}

// churn makes n changes at a constant rate.
func (tr *trial) churn(f *follower, n int) error {
	type moved struct {
		place    int
		answered time.Time
	}
	var moves []moved
	before, err := tr.watch.cpu()
	if err != nil {
		return err
	}
	tick := time.NewTicker(churnGap)
	defer tick.Stop()
	for i := range n {
		if i%movesAmong == movesAmong-1 {
			place, answered, err := tr.move(f)
			if err != nil {
				return err
			}
			moves = append(moves, moved{place, answered})
		} else if err := tr.world.change(); err != nil {
			return err
		}
		<-tick.C
	}
	for i, m := range moves {
		if err := tr.followed(f, m.place); err != nil {
			return err
		}
		at, err := f.at(m.place)
		if err != nil {
			return err
		}
		tr.tally.busy.add(max(0, at.Sub(m.answered)))
		if i == len(moves)-1 {
			tr.tally.last.add(max(0, at.Sub(m.answered)))
		}
	}
	if err := tr.quiet(); err != nil {
		return err
	}
	var all sample
	if err := tr.note(&all, &tr.tally.memory.churned, before); err != nil {
		return err
	}
	tr.tally.busyCPU.add(all[0] / time.Duration(n))
	return nil
}

// rest lets the contender be.
func (tr *trial) rest(o options) error {
	before, err := tr.watch.cpu()
	if err != nil {
		return err
	}
	if !wait(tr.ctx, o.rest) {
		return errInterrupted
	}
	return tr.note(&tr.tally.restCPU, &tr.tally.memory.rested, before)
}

// wait sleeps; it returns false when the run should end.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
