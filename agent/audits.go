package agent

import "time"

// auditShare bounds how often a Part reads everything back although nothing seems to have changed: every syncPeriod, or so
// much less often that it takes no more than a hundredth of one core. (Reading 80,000 lines back through iptables-nft takes two
// seconds, and as long a change has to wait.)
const auditShare = 100

// While the cluster changes, an audit waits until nothing has for auditQuiet, but for no more than auditPatience times
// what it waits for otherwise: it would hold up what is wanted now for what is hardly ever found.
const (
	auditQuiet    = 5 * time.Second
	auditPatience = 10
)

// audits say when everything is read back.
type audits struct {
	timer *time.Timer
	// due is when the next one is, if nothing changes; every is how long after the last one that was.
	due   time.Time
	every time.Duration
	// changed is when the latest goal came.
	changed time.Time
}

func newAudits(every time.Duration) *audits {
	return &audits{timer: time.NewTimer(every), due: time.Now().Add(every), every: every}
}

// next sets the time of the next one.
func (a *audits) next(in time.Duration) {
	a.due, a.every = time.Now().Add(in), in
	a.timer.Reset(in)
}

// putOff reports whether one that is due now has to wait, and sets the timer then.
func (a *audits) putOff(now time.Time) bool {
	wait := auditQuiet - now.Sub(a.changed)
	if wait <= 0 || now.Sub(a.due) >= (auditPatience-1)*a.every {
		return false
	}
	a.timer.Reset(wait)
	return true
}
