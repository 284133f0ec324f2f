package agent

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A batch is what changed from one Snapshot to a later one.
type batch struct {
	// revision is that of the goal made of the later one.
	revision uint64
	// services counts the Services that came, went or changed, endpoints the EndpointSlices that did. An object that changed
	// several times in between counts once.
	services, endpoints int
	// triggered has, by family, when the changes of slices happened which had not been seen before.
	triggered [2][]time.Time
}

// compareSnapshots finds what changed between two Snapshots; old is nil for none. It takes the time of comparing pointers for
// what did not change.
func compareSnapshots(old, next *cluster.Snapshot) (b batch) {
	var before []*cluster.Service
	if old != nil {
		before = old.Services
	}
	byName := func(a, b *cluster.Service) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	}
	pairs(before, next.Services, byName, func(was, is *cluster.Service) {
		if !sameService(was, is) {
			b.services++
		}
		b.compareSlices(was, is)
	})
	return b
}

// sameService compares two versions of a Service, nil for none, without their endpoints.
func sameService(a, b *cluster.Service) bool {
	if a == nil || b == nil {
		return false
	}
	x, y := *a, *b
	x.Slices, y.Slices = nil, nil
	return reflect.DeepEqual(x, y)
}

func (b *batch) compareSlices(was, is *cluster.Service) {
	slicesOf := func(s *cluster.Service) []*cluster.EndpointSlice {
		if s == nil {
			return nil
		}
		return s.Slices
	}
	byName := func(a, b *cluster.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }
	pairs(slicesOf(was), slicesOf(is), byName, func(was, is *cluster.EndpointSlice) {
		b.endpoints++
		switch {
		case is == nil || is.Triggered.IsZero():
			// When a slice is deleted, its time is that of an earlier change.
		case was == nil || !was.Triggered.Equal(is.Triggered):
			f := familyIndex(is.Family)
			b.triggered[f] = append(b.triggered[f], is.Triggered)
		}
	})
}

// pairs calls changed for what is not the same pointer in two lists that are in order: with nil for what is only in one.
func pairs[T any](old, next []*T, compare func(a, b *T) int, changed func(was, is *T)) {
	for len(old) > 0 || len(next) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(next) == 0:
			order = -1
		case old[0] != next[0]:
			order = compare(old[0], next[0])
		}
		switch {
		case order < 0:
			changed(old[0], nil)
			old = old[1:]
		case order > 0:
			changed(nil, next[0])
			next = next[1:]
		default:
			if old[0] != next[0] {
				changed(old[0], next[0])
			}
			old, next = old[1:], next[1:]
		}
	}
}

func familyIndex(f cluster.Family) int {
	if f == cluster.IPv6 {
		return 1
	}
	return 0
}

// The bounds on what is remembered while rules can't be programmed: then changes are counted with later ones, and of those
// only some are timed.
const (
	maxBatches   = 1000
	maxTriggered = 10000
)

// changes remembers what changed and is not programmed yet.
type changes struct {
	// start is when the agent started: only what happened later is timed, as in kube-proxy.
	start time.Time

	// served tells, in the order of cluster.Families, which families have a Part of rules. Others' changes are never programmed,
	// and not timed.
	served [2]bool

	mu      sync.Mutex
	batches []batch           // guarded by mu, in the order of their revisions
	parts   map[string]uint64 // guarded by mu: the programmed revision of each Part of rules
}

func newChanges(s *status, start time.Time) *changes {
	c := &changes{start: start, parts: map[string]uint64{}}
	for i, f := range cluster.Families {
		if name := rulesPrefix + f.String(); s.parts[name] != nil {
			c.parts[name], c.served[i] = 0, true
		}
	}
	return c
}

// add remembers a batch until all rules are programmed.
func (c *changes) add(b batch) {
	if b.services+b.endpoints == 0 || c.served == [2]bool{} {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, times := range b.triggered {
		b.triggered[i] = nil
		if c.served[i] {
			b.triggered[i] = slices.DeleteFunc(times, func(t time.Time) bool { return !t.After(c.start) })
		}
	}
	if n := len(c.batches); n == maxBatches {
		last := &c.batches[n-1]
		last.revision, last.services, last.endpoints = b.revision, last.services+b.services, last.endpoints+b.endpoints
		for i := range last.triggered {
			all := append(last.triggered[i], b.triggered[i]...)
			last.triggered[i] = all[:min(len(all), maxTriggered)]
		}
		return
	}
	c.batches = append(c.batches, b)
}

// programmed records that the rules of a family have a revision in the kernel, and returns when the changes happened that came
// with it.
func (c *changes) programmed(f cluster.Family, revision uint64) (triggered []time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parts[rulesPrefix+f.String()] = revision
	everywhere := revision
	for _, r := range c.parts {
		everywhere = min(everywhere, r)
	}
	done := 0
	for i := range c.batches {
		b := &c.batches[i]
		if b.revision > revision {
			break
		}
		times := &b.triggered[familyIndex(f)]
		triggered = append(triggered, *times...)
		*times = nil
		if b.revision <= everywhere {
			done++
		}
	}
	c.batches = slices.Delete(c.batches, 0, done)
	return triggered
}

// pending counts the changes that are not programmed everywhere.
func (c *changes) pending() (services, endpoints int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.batches {
		services += b.services
		endpoints += b.endpoints
	}
	return services, endpoints
}
