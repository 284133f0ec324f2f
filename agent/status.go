package agent

import (
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// status is what the health endpoints and the metrics show of the loop. It is the one place that several goroutines
// write to; mu guards what follows it.
type status struct {
	// staleAfter is how long something may be waiting to be programmed before the agent calls itself unhealthy. It does not
	// change.
	staleAfter time.Duration
	// iptables is the name of the backend that the rules are in. It does not change.
	iptables string

	mu       sync.Mutex
	revision uint64 // of the latest goal; 0 before the first
	node     *cluster.Node
	notes    []cluster.Note
	plan     *Plan
	parts    map[string]*partStatus
	// remarks are the Notes of what is neither the Plan nor a Part, by who makes them.
	remarks map[string][]cluster.Note
	repairs repairLog
	started time.Time
	// beaten is when the loop last showed that it goes round.
	beaten time.Time
}

// A partStatus is where a Part stands.
type partStatus struct {
	// programmed is the revision that the kernel was last in line with.
	programmed uint64
	updated    time.Time
	// verified is the last moment at which the kernel was known to hold what was programmed: it was written or read back then, or
	// whoever watches it had nothing to tell. doubt is that it may have been changed since.
	verified time.Time
	doubt    bool
	// audited is when all of it was last read back and compared.
	audited time.Time
	// running is since when a Sync runs; zero when none does.
	running time.Time
	// queued is when the latest goal was set.
	queued time.Time
	// pending is since when something waits; zero when nothing does.
	pending time.Time
	err     error
	notes   []cluster.Note
	// standing asks the Part's watch; nil for a Part without.
	standing func() (quiet time.Time, doubt bool)
	// quarantined are the Services whose present rules are refused.
	quarantined []netfilter.Quarantine
}

// A watchedPart is a Part that is told what others do to its corner of the kernel.
type watchedPart interface {
	// standing returns until when it is known to be untouched, zero for never, and whether it is in doubt now.
	standing() (quiet time.Time, doubt bool)
}

// The loop shows that it goes round every beatEvery. When it has not for stuckAfter, or a single Sync runs for as long, something
// hangs that a restart may mend: no honest command takes as long (see netfilter's commandTimeout).
const (
	beatEvery  = time.Second
	stuckAfter = 10 * time.Minute
)

// newStatus returns the status of an agent with a syncPeriod. As in kube-proxy, what has waited for twice as long is stale.
func newStatus(parts []Part, syncPeriod time.Duration) *status {
	s := &status{staleAfter: 2 * syncPeriod, parts: map[string]*partStatus{}, remarks: map[string][]cluster.Note{}, started: time.Now()}
	for _, p := range parts {
		s.parts[p.Name()] = &partStatus{}
		if w, ok := p.(watchedPart); ok {
			s.parts[p.Name()].standing = w.standing
		}
	}
	return s
}

// queued records a new goal.
func (s *status) queued(g goal, node *cluster.Node, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repairs.lost(s.plan, g.plan, now)
	s.revision, s.plan = g.revision, g.plan
	if node != nil { // a Node object deleted later does not make a working node ineligible
		s.node = node
	}
	for _, p := range s.parts {
		p.queued = now
		if p.pending.IsZero() {
			p.pending = now
		}
	}
}

// beat records that the loop goes round.
func (s *status) beat(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beaten = now
}

// began records that a Sync begins.
func (s *status) began(part string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts[part].running = at
}

// done records an outcome, and returns all notes that hold now.
func (s *status) done(o outcome) []cluster.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[o.part]
	p.err, p.running = o.err, time.Time{}
	if o.err == nil || len(o.report.Notes) > 0 { // a failure that tells nothing takes nothing back
		p.notes = o.report.Notes
	}
	p.quarantined = o.report.Quarantined
	s.repairs.add(o)
	if o.err == nil && o.report.Full {
		p.audited = o.end
	}
	if o.err != nil && p.pending.IsZero() {
		p.pending = o.start // the kernel is not as planned, or it is not known
	}
	if o.err == nil {
		p.programmed, p.updated, p.verified = o.revision, o.end, o.end
		if o.revision == s.revision {
			p.pending = time.Time{}
		} else {
			p.pending = o.end
		}
	}
	return s.allNotes()
}

func (s *status) allNotes() []cluster.Note {
	var all []cluster.Note
	if s.plan != nil {
		all = append(all, s.plan.Notes...)
	}
	for _, p := range s.parts {
		all = append(all, p.notes...)
	}
	for _, notes := range s.remarks {
		all = append(all, notes...)
	}
	s.notes = cluster.SortNotes(all)
	return s.notes
}

// remark replaces the Notes of somebody, and returns all that hold now.
func (s *status) remark(who string, notes []cluster.Note) []cluster.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remarks[who] = notes
	return s.allNotes()
}

// programmed returns the Snapshot of the latest goal when all of it is in the kernel; nil while it is not, and when it is a saved
// one.
func (s *status) programmed() *cluster.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		if p.programmed != s.revision || p.err != nil {
			return nil
		}
	}
	if s.plan == nil || s.plan.Stale() {
		return nil
	}
	return s.plan.Snapshot
}

// view is a copy of the status at one moment.
type view struct {
	staleAfter time.Duration
	iptables   string

	revision uint64
	node     *cluster.Node
	notes    []cluster.Note
	plan     *Plan
	parts    map[string]partStatus
	repairs  []doctor.Repair
	started  time.Time
	beaten   time.Time
}

func (s *status) view() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := view{staleAfter: s.staleAfter, iptables: s.iptables, revision: s.revision, node: s.node, notes: s.notes, plan: s.plan, parts: map[string]partStatus{}, repairs: s.repairs.list(), started: s.started, beaten: s.beaten}
	for name, p := range s.parts {
		v.parts[name] = p.now()
	}
	return v
}

// now returns the partStatus with what its watch says.
func (p *partStatus) now() partStatus {
	now := *p
	if p.standing == nil {
		return now
	}
	quiet, doubt := p.standing()
	now.doubt = doubt
	if !doubt && p.err == nil && quiet.After(p.verified) {
		now.verified = quiet
	}
	return now
}

// stuck tells whether the loop or a Part hangs.
func (v view) stuck(now time.Time) bool {
	if !v.beaten.IsZero() && now.Sub(v.beaten) > stuckAfter {
		return true
	}
	for _, p := range v.parts {
		if !p.running.IsZero() && now.Sub(p.running) > stuckAfter {
			return true
		}
	}
	return false
}

// keepsUp tells whether a Part does.
func (v view) keepsUp(p partStatus, now time.Time) bool {
	return p.pending.IsZero() || now.Sub(p.pending) < v.staleAfter
}

// withRouters tells whether a Part is about what routers are told and what they tell, over BGP. A load balancer has no reason to
// leave a node for that.
func withRouters(part string) bool { return part == bgpName || part == learnedName }

// healthy tells whether all Parts keep up that bring traffic to where it belongs.
func (v view) healthy(now time.Time) bool {
	for name, p := range v.parts {
		if !withRouters(name) && !v.keepsUp(p, now) {
			return false
		}
	}
	return true
}

// stale tells that the latest goal is a saved Snapshot.
func (v view) stale() bool { return v.plan != nil && v.plan.Stale() }

// ready tells whether the latest goal is in the kernel, everywhere, and no saved one, and nothing says that it is not any more.
func (v view) ready() bool {
	if v.stale() {
		return false
	}
	for _, p := range v.parts {
		if p.programmed != v.revision || p.doubt {
			return false
		}
	}
	return v.revision > 0
}
