package agent

import "time"

// A pace says when a Part may run. The first run after a quiet time is immediate; while changes keep coming they are
// gathered, so that what is spent stays a bounded share of the time; and a failure is tried again after a delay that
// doubles. It is a value without a clock of its own.
type pace struct {
	// interval is the least time from one writing (or failed) run's start to the next one's; 0 for none.
	interval time.Duration
	// all has runs that wrote nothing count, too.
	all bool
	// share bounds the time spent: after a run that took d, the next starts no sooner than share×d after its start,
	// unless d was spent waiting.
	share int
	// most bounds how long after a run's end its share is waited for: a first load that took seconds tells little about
	// the next change, which should not wait as long. 0 for no bound.
	most time.Duration
	// retryMin and retryMax bound the delay after a failure.
	retryMin, retryMax time.Duration

	next  time.Time // no run before
	retry time.Time // a run then, because the last one failed or asked for it; zero when it did not
	delay time.Duration
}

// Defaults of a pace.
const (
	retryMin = 250 * time.Millisecond
	retryMax = 30 * time.Second
)

// wait returns how long a run that is due at now has to wait.
func (p *pace) wait(now time.Time) time.Duration { return max(0, p.next.Sub(now)) }

// retryIn returns how long after now a run is due that the last one calls for; ok is false when it calls for none.
func (p *pace) retryIn(now time.Time) (d time.Duration, ok bool) {
	if p.retry.IsZero() {
		return 0, false
	}
	return max(0, p.retry.Sub(now)), true
}

// ran records a run: when it began and ended, what it reported, and whether it failed.
func (p *pace) ran(start, end time.Time, r Report, failed bool) {
	if r.Wrote || failed || p.all {
		p.next = start.Add(p.interval)
		if next := p.shared(start, end); !r.Waited && next.After(p.next) {
			p.next = next
		}
	}
	if !failed {
		p.retry, p.delay = time.Time{}, 0
		if r.Retry > 0 {
			p.retry = end.Add(r.Retry)
		}
		return
	}
	p.delay = min(max(2*p.delay, p.retryMin), p.retryMax)
	p.retry = end.Add(p.delay)
}

// shared returns when the next run may start for the share of the time that the last one took.
func (p *pace) shared(start, end time.Time) time.Time {
	next := start.Add(time.Duration(p.share) * end.Sub(start))
	if latest := end.Add(p.most); p.most > 0 && next.After(latest) {
		return latest
	}
	return next
}
