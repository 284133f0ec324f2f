package agent

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	p := pace{interval: 100 * time.Millisecond, share: 2, most: time.Second, retryMin: 100 * time.Millisecond, retryMax: 300 * time.Millisecond}
	wait := func(now, want time.Duration) {
		t.Helper()
		if got := p.wait(at(now)); got != want {
			t.Errorf("at %s it waits %s, expected %s", now, got, want)
		}
	}
	retry := func(now, want time.Duration, due bool) {
		t.Helper()
		if got, ok := p.retryIn(at(now)); got != want || ok != due {
			t.Errorf("at %s it is due in %s (%v), expected %s (%v)", now, got, ok, want, due)
		}
	}
	wait(0, 0) // the first change is not held up
	p.ran(at(0), at(10*time.Millisecond), Report{Wrote: true}, false)
	wait(20*time.Millisecond, 80*time.Millisecond) // the next ones are gathered
	wait(time.Second, 0)
	p.ran(at(time.Second), at(1200*time.Millisecond), Report{Wrote: true}, false)
	wait(1200*time.Millisecond, 200*time.Millisecond) // what takes long rests as long
	p.ran(at(time.Second), at(1200*time.Millisecond), Report{Waited: true}, true)
	wait(1200*time.Millisecond, 0) // unless it only waited
	p.ran(at(2*time.Second), at(2*time.Second), Report{}, false)
	wait(2*time.Second, 0) // what wrote nothing delays nothing
	all := pace{interval: 100 * time.Millisecond, all: true}
	if all.ran(at(0), at(0), Report{}, false); all.wait(at(0)) != 100*time.Millisecond {
		t.Errorf("where all runs count, the next one waits %s", all.wait(at(0)))
	}
	retry(2*time.Second, 0, false)

	p.ran(at(2*time.Second), at(8*time.Second), Report{Wrote: true}, false)
	wait(8*time.Second, time.Second) // nobody waits as long as a first load took

	for _, want := range []time.Duration{100, 200, 300, 300} {
		p.ran(at(3*time.Second), at(3*time.Second), Report{}, true)
		retry(3*time.Second, want*time.Millisecond, true)
	}
	p.ran(at(4*time.Second), at(4*time.Second), Report{Retry: time.Minute}, false)
	retry(4*time.Second, time.Minute, true) // asked for
	p.ran(at(5*time.Second), at(5*time.Second), Report{}, false)
	retry(5*time.Second, 0, false)
	p.ran(at(6*time.Second), at(6*time.Second), Report{}, true)
	retry(6*time.Second, 100*time.Millisecond, true) // a success starts the delays anew
	retry(7*time.Second, 0, true)
}
