package main

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

// askGap is the time between two connections of a follower: as precise as its times are.
const askGap = 2 * time.Millisecond

// answerBound is how long a follower waits for an answer. Most come within the call that asks, unless the machine has much to do.
const answerBound = 200 * time.Millisecond

// A follower opens one connection after the other to a ClusterIP whose only endpoint moves, and notes when it gets to each place.
type follower struct {
	ends *ends
	to   netip.AddrPort
	quit chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	err    error
	places map[netip.Addr]int
	seen   []time.Time // by place; zero: it was not reached, nor was a later one
	lost   int         // connections without an answer
}

// newFollower starts a follower.
func newFollower(e *ends, to netip.AddrPort) *follower {
	f := &follower{ends: e, to: to, quit: make(chan struct{}), places: map[netip.Addr]int{}}
	f.done.Go(func() {
		err := e.client.Do(func() error { return preferred(f.run) })
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
	})
	return f
}

func (f *follower) run() error {
	for {
		select {
		case <-f.quit:
			return nil
		default:
		}
		reached, err := f.ends.reach(f.to, answerBound)
		now := time.Now()
		if err != nil && !errors.Is(err, errNoAnswer) {
			return err
		}
		f.note(reached, now, err == nil)
		time.Sleep(askGap)
	}
}

func (f *follower) note(reached netip.Addr, now time.Time, answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !answered {
		f.lost++
		return
	}
	place, ok := f.places[reached]
	if !ok {
		return
	}
	for i := place; i >= 0 && f.seen[i].IsZero(); i-- {
		f.seen[i] = now
	}
}

// expect tells the follower of a place, before the endpoint goes there, and returns its number.
func (f *follower) expect(place netip.Addr) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places[place] = len(f.seen)
	f.seen = append(f.seen, time.Time{})
	return len(f.seen) - 1
}

// at tells when a place, or a later one, was reached first; zero: not yet.
func (f *follower) at(place int) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[place], f.err
}

// stop ends the follower. lost is the number of connections without an answer.
func (f *follower) stop() (lost int, err error) {
	close(f.quit)
	f.done.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost, f.err
}
