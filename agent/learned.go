package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
	"github.com/fairway-net/fairway/routes/rtnl"
)

const (
	learnedName = "learned-routes"
	// A router that changes its mind all the time costs a quarter of one core at most. (20,000 prefixes take some tenths of a second
	// to go through.)
	learnedInterval = 200 * time.Millisecond
	learnedShare    = 4
	learnedMost     = 5 * time.Second
	// peersPatience is for how long after its start, or that of another BGP process, an agent keeps the routes that were left, while there
	// are peers that have not told everything: as long as a session can take that nothing is wrong with. tellingPatience is how long
	// after its session came up a peer is taken to have told everything, when it does not say so itself.
	peersPatience   = time.Minute
	tellingPatience = 10 * time.Second
)

// learnedPart keeps the routes to what routers announce, as far as it is to be imported. What they announce is no part of the
// Plan: it changes at their will, and nothing else depends on it.
type learnedPart struct {
	conn     *rtnl.Conn
	nodeName string
	speaker  bgpSpeaker
	// began is when the first Sync was, or the first after another BGP process has begun; the zero Time before. replaced counts the processes.
	began    time.Time
	replaced uint64
	// settled tells that all peers have told what they have, so that routes which an earlier agent, or an earlier BGP process, left can
	// go. It stays so until there is another process.
	settled bool
	// clean tells that there is nothing to be imported, and nothing left in the kernel.
	clean bool
	// last is what was wanted last.
	last *routes.Table
	// count is how many routes of each family are in the kernel.
	count [2]atomic.Int64
}

func (*learnedPart) Name() string { return learnedName }

// installed counts the routes in the kernel, by family.
func (p *learnedPart) installed() (n [2]int) {
	for i := range n {
		n[i] = int(p.count[i].Load())
	}
	return n
}

func (p *learnedPart) Sync(ctx context.Context, plan *Plan, reread bool) (Report, error) {
	if replaced := p.speaker.Replaced(); p.began.IsZero() || replaced != p.replaced {
		p.began, p.replaced, p.settled = time.Now(), replaced, false
	}
	if plan.config.BGP == nil || len(plan.config.BGP.Import) == 0 {
		return p.clear(ctx, reread)
	}
	p.clean = false
	if plan.Snapshot.Node(p.nodeName) == nil {
		return Report{}, nil // what is the cluster's own, and what is announced to whom, is not known
	}
	// Before it is read what they told: a peer that tells the last of it in between is believed the next time.
	p.settled = p.settled || toldAll(p.speaker.Sessions(), p.began, time.Now())
	received, err := p.speaker.Received(plan.BGP.Import)
	if err != nil {
		return Report{}, err
	}
	if p.speaker.Replaced() != p.replaced {
		return Report{Retry: learnedInterval}, nil // what came back may be of a speaker that has just begun
	}
	want, notes := plan.Learned(received)
	var retry time.Duration
	if !p.settled {
		retry = time.Second
	}
	apply := p.conn.Sync
	if !p.settled || plan.Stale() {
		apply = p.conn.Add
	}
	r, err := apply(ctx, want)
	p.counted(want, r)
	report := Report{Wrote: wrote(r) > 0, Notes: slices.Concat(notes, r.Notes), Retry: retry}
	if p.last != nil && slices.EqualFunc(p.last.Routes, want.Routes, routes.Route.Same) {
		report.Drift = wrote(r)
	} else {
		logLearned(r)
	}
	p.last = want
	return report, err
}

// Learned returns the routes to what BGP peers announce, as far as it is to be imported, and Notes for what of it gets none.
func (p *Plan) Learned(received []bgp.Received) (*routes.Table, []cluster.Note) {
	return routes.PlanLearned(p.Snapshot, p.config.routes(), bgp.Select(p.BGP, received))
}

// clear removes what an earlier agent, or an earlier configuration, had imported.
func (p *learnedPart) clear(ctx context.Context, reread bool) (Report, error) {
	if p.clean && !reread {
		return Report{}, nil
	}
	r, err := p.conn.Sync(ctx, &routes.Table{})
	p.clean, p.last = err == nil, nil
	p.counted(&routes.Table{}, r)
	logLearned(r)
	return Report{Wrote: wrote(r) > 0}, err
}

// counted counts the routes that are in the kernel, those that wait for their link aside.
func (p *learnedPart) counted(want *routes.Table, r rtnl.Report) {
	var n [2]int64
	for _, list := range []struct {
		routes []routes.Route
		by     int64
	}{{want.Routes, 1}, {r.Waiting, -1}} {
		for i, f := range cluster.Families {
			for _, route := range list.routes {
				if route.Family() == f {
					n[i] += list.by
				}
			}
		}
	}
	for i := range n {
		p.count[i].Store(n[i])
	}
}

func wrote(r rtnl.Report) int { return len(r.Added) + len(r.Replaced) + len(r.Deleted) }

// toldAll tells whether all peers have told what they have, or will not.
func toldAll(sessions []speaker.Session, began, now time.Time) bool {
	if now.Sub(began) > peersPatience {
		return true
	}
	// A speaker that has not begun has no sessions.
	return len(sessions) > 0 && !slices.ContainsFunc(sessions, func(s speaker.Session) bool {
		if s.Peer.Node != "" {
			return false // nothing is imported from nodes
		}
		if !s.Up() {
			return !s.BeenUp // one that was lost has taken along what it had told, or gobgp keeps it
		}
		return !s.Complete && now.Sub(s.Since) < tellingPatience
	})
}

// logLearned writes a line for each route that came, changed or went.
func logLearned(r rtnl.Report) {
	if n := wrote(r); n > announceEach && !klog.V(1).Enabled() {
		klog.InfoS("Many learned routes changed at once, -v=1 shows each", "added", len(r.Added), "replaced", len(r.Replaced), "deleted", len(r.Deleted))
		return
	}
	for _, list := range []struct {
		what   string
		routes []routes.Route
	}{{"Adding learned route", r.Added}, {"Replacing learned route", r.Replaced}, {"Removing learned route", r.Deleted}} {
		for _, route := range list.routes {
			klog.InfoS(list.what, "route", route.String())
		}
	}
}

// watchLearned follows what others do to the routes of the learnedPart, and to the links that they go by.
func watchLearned(ctx context.Context, conn *rtnl.Conn, l *loop) error {
	for ctx.Err() == nil {
		if err := conn.Watch(ctx, func(rtnl.Event) { l.kick(learnedName) }); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Learned routes can't be followed, they are looked at every syncPeriod", "retryIn", retryWatch)
			sleep(ctx, retryWatch)
		}
	}
	return nil
}
