package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Reporter tells the cluster what the agent thinks of its objects.
type Reporter interface {
	// Report replaces the set of Notes that hold now. It does not block.
	Report(notes []cluster.Note)
}

// eventRepaired is the reason of the Event that says that rules were repaired.
const eventRepaired = "RulesRepaired"

// planRest is the longest rest after a Plan. While changes keep coming, Plans take half of one core at most: each rest is as long
// as the Plan took, in a large cluster some milliseconds, and the next Plan is of all that changed meanwhile.
const planRest = 100 * time.Millisecond

// A loop makes Plans and hands them to the Parts.
type loop struct {
	facts   Facts
	runners []*runner
	status  *status
	metrics *metrics

	// reporting guards reporter, which every Part's outcome leads to.
	reporting sync.Mutex
	reporter  Reporter
	// event, when not nil, writes a Warning about the own Node.
	event func(reason, message string)
	// started, when not nil, is told whenever all of a Plan is programmed.
	started func()
	// saver, when not nil, is offered what is programmed.
	saver *saver

	// mu guards the inputs; wake says that they changed.
	mu       sync.Mutex
	config   Config
	snapshot *cluster.Snapshot
	host     *cluster.Host
	wake     chan struct{}
}

func newLoop(c Config, facts Facts, parts []Part, m *metrics, s *status, r Reporter) *loop {
	l := &loop{config: c, facts: facts, status: s, metrics: m, reporter: r, wake: make(chan struct{}, 1)}
	for _, p := range parts {
		pc := pace{retryMin: retryMin, retryMax: max(retryMin, min(retryMax, c.SyncPeriod))}
		switch p.(type) {
		case *rulesPart:
			pc.interval, pc.share, pc.most = c.MinSyncPeriod, rulesShare, rulesMost
		case *learnedPart:
			pc.interval, pc.share, pc.most, pc.all = learnedInterval, learnedShare, learnedMost, true
		}
		l.runners = append(l.runners, newRunner(p, pc, c.SyncPeriod, l.done))
		l.runners[len(l.runners)-1].began = s.began
	}
	for _, r := range l.runners {
		if f, ok := r.part.(follower); ok {
			l.lead(r, f.follows())
		}
		if _, ok := r.part.(observer); ok {
			l.show(r)
		}
	}
	return l
}

// lead has a runner get its goals from the one of a name; it gets them from the loop as long as there is none.
func (l *loop) lead(r *runner, name string) {
	for _, leader := range l.runners {
		if leader.part.Name() == name {
			leader.next, r.led = append(leader.next, r), true
		}
	}
}

// show has all other runners tell an observer of their successes.
func (l *loop) show(observer *runner) {
	for _, r := range l.runners {
		if r != observer {
			r.observers = append(r.observers, observer)
		}
	}
}

// publish takes a new Snapshot of the cluster.
func (l *loop) publish(s *cluster.Snapshot) {
	l.mu.Lock()
	l.snapshot = s
	l.mu.Unlock()
	l.signal()
}

// publishSaved takes a saved Snapshot, unless a source was faster.
func (l *loop) publishSaved(s *cluster.Snapshot) {
	l.mu.Lock()
	if l.snapshot == nil {
		l.snapshot = s
	}
	l.mu.Unlock()
	l.signal()
}

// published tells whether there is a Snapshot.
func (l *loop) published() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snapshot != nil
}

// setHost takes a new view of the own machine.
func (l *loop) setHost(h *cluster.Host) {
	l.mu.Lock()
	l.host = h
	l.mu.Unlock()
	l.signal()
}

// setConfig takes another configuration, of which only BGP may be another than before.
func (l *loop) setConfig(c Config) {
	l.mu.Lock()
	l.config = c
	l.mu.Unlock()
	l.signal()
}

// configuration is the one in force.
func (l *loop) configuration() Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config
}

func (l *loop) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// kick makes the Part of a name look at the kernel again.
func (l *loop) kick(part string) {
	for _, r := range l.runners {
		if r.part.Name() == part {
			r.kick()
		}
	}
}

// run works until the context ends.
func (l *loop) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, r := range l.runners {
		wg.Go(func() { r.run(ctx) })
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	var g goal
	for {
		l.status.beat(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			continue
		case <-l.wake:
		}
		s := l.inputs()
		if s == nil {
			continue
		}
		start := time.Now()
		g = l.next(g, s)
		for _, r := range l.runners {
			if !r.led {
				r.set(g)
			}
		}
		if !sleep(ctx, min(time.Since(start), planRest)) {
			return
		}
	}
}

// inputs joins the cluster and the host into one Snapshot; nil while either is unknown.
func (l *loop) inputs() *cluster.Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil || l.host == nil {
		return nil
	}
	s := *l.snapshot
	s.Host = l.host
	return &s
}

// next makes the goal that follows g.
func (l *loop) next(g goal, s *cluster.Snapshot) goal {
	start := time.Now()
	config := l.configuration()
	plan := MakePlan(s, config, l.facts, g.plan)
	l.metrics.planned(time.Since(start))
	for i := range plan.Services {
		l.facts.Large[i] = plan.Services[i].Options.Large
	}
	announce(g.plan, plan)
	next := goal{g.revision + 1, plan}
	l.metrics.changed(next, g.plan)
	l.status.queued(next, s.Node(config.NodeName), start)
	return next
}

// done is told every outcome of every Part.
func (l *loop) done(o outcome) {
	l.metrics.done(o)
	if found := o.report.Found; l.event != nil && len(found.repaired()) > 0 {
		l.event(eventRepaired, found.message(strings.TrimPrefix(o.part, rulesPrefix), o.end))
	}
	l.reporting.Lock()
	defer l.reporting.Unlock()
	l.reporter.Report(l.status.done(o))
	s := l.status.programmed()
	if s == nil {
		return
	}
	if l.started != nil {
		l.started()
	}
	if l.saver != nil {
		l.saver.offer(s)
	}
}

// doubt tells that a source does not believe what it reads, and why; with "", that this is over.
func (l *loop) doubt(why string) {
	if why == "" {
		l.remark("source")
		return
	}
	l.metrics.doubted()
	node := l.configuration().NodeName
	l.remark("source", cluster.Note{Object: cluster.Ref{Kind: "Node", Name: node, UID: node}, Reason: cluster.ReasonListDoubted,
		Detail: "a list of the cluster would delete more than half of it (" + why + "); what was known stays in force until a second look confirms that"})
}

// remark replaces the Notes of somebody who is no Part.
func (l *loop) remark(who string, notes ...cluster.Note) {
	l.reporting.Lock()
	defer l.reporting.Unlock()
	l.reporter.Report(l.status.remark(who, notes))
}
