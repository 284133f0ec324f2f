package agent

import (
	"testing"
	"time"
)

// TestAuditsWait: while goals keep coming an audit is put off, but not for ever.
func TestAuditsWait(t *testing.T) {
	const every = 30 * time.Second
	a := newAudits(every)
	defer a.timer.Stop()
	for _, c := range []struct {
		late, unchanged time.Duration // since it was due, and since the latest goal
		want            bool
	}{
		{0, time.Hour, false},
		{0, auditQuiet, false},
		{0, auditQuiet - time.Millisecond, true},
		{every, 0, true},
		{(auditPatience-1)*every - time.Millisecond, 0, true},
		{(auditPatience - 1) * every, 0, false},
	} {
		now := a.due.Add(c.late)
		a.changed = now.Add(-c.unchanged)
		if got := a.putOff(now); got != c.want {
			t.Errorf("%s late, %s after a change: put off %v, expected %v", c.late, c.unchanged, got, c.want)
		}
	}
}
