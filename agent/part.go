package agent

import (
	"context"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// A Part keeps one corner of the kernel as planned.
type Part interface {
	// Name names the Part in logs, in /readyz and as the "part" label of metrics.
	Name() string
	// Sync brings the kernel in line with the Plan: read, difference, apply. With reread the Part trusts nothing that
	// it remembers of the kernel. A Sync that finds nothing to do writes nothing. It is called by one goroutine, and
	// may simply fail: the caller tries again.
	Sync(ctx context.Context, p *Plan, reread bool) (Report, error)
}

// A follower is a Part that gets a Plan only when another Part has it in the kernel.
type follower interface {
	Part
	// follows names the other Part.
	follows() string
}

// An observer is a Part that is told what other Parts have in the kernel.
type observer interface {
	Part
	// observe is called after every success of another Part, by that Part's goroutine. When it is news, the observer's Sync
	// runs again.
	observe(part string, p *Plan, r Report) (news bool)
}

// A Report tells what a Sync did.
type Report struct {
	// Wrote is true when anything was written to the kernel.
	Wrote bool
	// Waited is true when the Sync failed because a lock was not to be had: its time went by waiting, not working.
	Waited bool
	// Drift counts the routes or chains that were written. When the Plan was in the kernel already, they repaired what
	// somebody else had changed.
	Drift int
	// Found is what somebody else had done to service rules, and is repaired.
	Found finding
	// Full is true when the Sync began by reading everything back, instead of taking the difference to what was last known.
	Full bool
	// WroteFilter and WroteNAT count the iptables rules written to these tables, Refused the restores that were refused.
	WroteFilter, WroteNAT, Refused int
	// Quarantined are the Services whose present rules the kernel refuses.
	Quarantined []netfilter.Quarantine
	// Notes tell what the kernel, or what is in it, stood against.
	Notes []cluster.Note
	// Retry is when to try again what the kernel stood against; 0 for never.
	Retry time.Duration
	// Flows is what was done about UDP flows; with no Duration when there was no need to look.
	Flows netfilter.FlowsReport
}

// unserved lists the Services in quarantine that have no rules at all.
func (r Report) unserved() (list []cluster.Ref) {
	for _, q := range r.Quarantined {
		if !q.Served {
			list = append(list, q.Note.Object)
		}
	}
	return list
}

// A goal is a Plan with its place in the order of Plans.
type goal struct {
	revision uint64
	plan     *Plan
}

// An outcome is what a Part made of a goal.
type outcome struct {
	part       string
	revision   uint64
	start, end time.Time
	report     Report
	err        error
}

// A runner runs one Part: when there is a new goal, when the kernel changed, after a failure, and from time to time.
type runner struct {
	part Part
	pace pace
	// auditEvery is how often the Part reads everything back at most; it is positive.
	auditEvery time.Duration
	// goals and kicks hold one element each: the latest goal, and that somebody changed the kernel.
	goals chan goal
	kicks chan struct{}
	// programmed is the revision of the last success, and unserved what it had no rules for.
	programmed uint64
	unserved   []cluster.Ref
	// done is told every outcome; it must not block for long.
	done func(outcome)
	// began, when not nil, is told that a Sync begins.
	began func(part string, at time.Time)
	// next get their goals from this runner, when it has them in the kernel; led tells that this runner is such a one.
	next []*runner
	led  bool
	// observers are told every success.
	observers []*runner
}

func newRunner(p Part, pc pace, auditEvery time.Duration, done func(outcome)) *runner {
	return &runner{part: p, pace: pc, auditEvery: auditEvery, goals: make(chan goal, 1), kicks: make(chan struct{}, 1), done: done}
}

// set replaces the goal. Only one goroutine may call it.
func (r *runner) set(g goal) {
	select {
	case <-r.goals:
	default:
	}
	r.goals <- g
}

// kick says that somebody changed the kernel.
func (r *runner) kick() {
	select {
	case r.kicks <- struct{}{}:
	default:
	}
}

// run works until the context ends. What is in the kernel stays there.
func (r *runner) run(ctx context.Context) {
	var g goal
	audits := newAudits(r.auditEvery)
	defer audits.timer.Stop()
	for {
		var retry <-chan time.Time
		if d, ok := r.pace.retryIn(time.Now()); ok {
			retry = time.After(d)
		}
		reread, audited := false, false
		select {
		case <-ctx.Done():
			return
		case g = <-r.goals:
			audits.changed = time.Now()
		case <-r.kicks: // the Part knows where to look
		case <-audits.timer.C:
			if audits.putOff(time.Now()) {
				continue
			}
			reread, audited = true, true
		case <-retry:
		}
		if audited {
			audits.next(r.auditEvery)
		}
		if g.plan == nil {
			continue
		}
		if !sleep(ctx, r.pace.wait(time.Now())) {
			return
		}
		select { // a newer goal that came while waiting
		case g = <-r.goals:
		default:
		}
		if took := r.sync(ctx, g, reread); audited {
			audits.next(max(r.auditEvery, auditShare*took))
		}
	}
}

// sync runs the Part once, and returns how long that took.
func (r *runner) sync(ctx context.Context, g goal, reread bool) time.Duration {
	o := outcome{part: r.part.Name(), revision: g.revision, start: time.Now()}
	if r.began != nil {
		r.began(o.part, o.start)
	}
	o.report, o.err = r.part.Sync(ctx, g.plan, reread)
	o.end = time.Now()
	fresh := g.revision != r.programmed
	if fresh {
		o.report.Drift = 0 // what was written is what is new
	}
	if o.err == nil {
		r.programmed = g.revision
	}
	r.pace.ran(o.start, o.end, o.report, o.err != nil)
	if ctx.Err() != nil {
		return 0
	}
	if o.report.Drift > 0 || len(o.report.Found.Drifts) > 0 {
		klog.InfoS("Somebody else had changed what is ours", "part", o.part, "changes", o.report.Drift,
			"by", o.report.Found.By, "what", iptables.Summarize(o.report.Found.Drifts))
	}
	if o.report.Wrote {
		klog.V(2).InfoS("Wrote to the kernel", "part", o.part, "revision", o.revision, "took", o.end.Sub(o.start))
	}
	if o.err != nil {
		in, _ := r.pace.retryIn(o.end)
		klog.ErrorS(o.err, "Sync failed, the kernel keeps what it has", "part", o.part, "retryIn", in.Round(time.Millisecond))
	}
	r.done(o)
	if o.err == nil {
		r.succeeded(g, o.report, fresh)
	}
	return o.end.Sub(o.start)
}

// succeeded passes on that the Part has a goal in the kernel; fresh is false when it had it before.
func (r *runner) succeeded(g goal, report Report, fresh bool) {
	if unserved := report.unserved(); fresh || !slices.Equal(unserved, r.unserved) {
		r.unserved = unserved
		for _, n := range r.next {
			n.set(goal{g.revision, g.plan.without(unserved)})
		}
	}
	for _, w := range r.observers {
		if w.part.(observer).observe(r.part.Name(), g.plan, report) {
			w.kick()
		}
	}
}

// sleep waits; it returns false when the context ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
