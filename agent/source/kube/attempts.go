package kube

import (
	"context"
	"math/rand/v2"
	"time"
)

// Attempts to reach the API come at growing distances with jitter, because after an outage every node of the cluster
// makes them. client-go's default of up to a minute leaves a node with old endpoints for too long.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second
	goodWatch  = time.Minute // a watch that held so long begins the distances anew
	// lastOptional is the longest distance for a list that the API does not have or does not allow.
	lastOptional = 5 * time.Minute
)

// attempts are those at one list.
type attempts struct {
	contact *contact
	// delay is about how long the next wait is.
	delay time.Duration
	// opened is when a watch was that has not ended, as far as is known.
	opened time.Time
}

// wait waits for the next attempt: each time longer, up to most, but no longer than until the API answers for another list. It returns the
// error of a ctx that ends.
func (a *attempts) wait(ctx context.Context, most time.Duration) error {
	if !a.opened.IsZero() && time.Since(a.opened) > goodWatch {
		a.delay = firstRetry
	}
	a.opened = time.Time{}
	timer := time.NewTimer(a.delay/2 + rand.N(a.delay))
	defer timer.Stop()
	a.delay = min(2*a.delay, most)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-a.contact.answered():
	}
	return nil
}
