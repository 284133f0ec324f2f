package report

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/fairway-net/fairway/agent/cluster"
)

// The bounds on what one agent writes.
const (
	maxQueued    = 256
	eventsPerSec = 1
	eventsBurst  = 25
	// maxPerObject bounds the Notes about one object that become Events within a window. Notes that change with every
	// change of the object must not become a stream.
	maxPerObject = 10
	window       = 10 * time.Minute
	writeTimeout = 5 * time.Second
)

// A Writer creates Events; source/kube.Client is one.
type Writer interface {
	CreateEvent(ctx context.Context, e *eventsv1.Event) error
}

// A Reporter turns Notes into Events. Its methods may be called from any goroutine.
type Reporter struct {
	writer  Writer
	node    string
	now     func() time.Time
	limit   flowcontrol.RateLimiter
	queue   chan *eventsv1.Event
	dropped atomic.Uint64

	mu          sync.Mutex
	present     map[cluster.Note]bool // guarded by mu: the Notes of the last Report
	windowBegan time.Time             // guarded by mu; of the wall clock
	spent       map[cluster.Ref]int   // guarded by mu: Notes' Events of this window
	told        map[string]int        // guarded by mu: other Events of this window, by object and reason
}

// New returns a Reporter for the agent of a node. It writes nothing until Run is called; up to 256 Events wait for that.
func New(w Writer, node string) *Reporter {
	return &Reporter{
		writer:  w,
		node:    node,
		now:     time.Now,
		limit:   flowcontrol.NewTokenBucketRateLimiter(eventsPerSec, eventsBurst),
		queue:   make(chan *eventsv1.Event, maxQueued),
		present: map[cluster.Note]bool{},
		spent:   map[cluster.Ref]int{},
		told:    map[string]int{},
	}
}

// Run writes Events until ctx ends, and returns nil.
func (r *Reporter) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.queue:
			if r.limit.Wait(ctx) != nil {
				return nil
			}
			r.write(ctx, e)
		}
	}
}

func (r *Reporter) write(ctx context.Context, e *eventsv1.Event) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := r.writer.CreateEvent(ctx, e); err != nil && !apierrors.IsAlreadyExists(err) {
		r.dropped.Add(1)
	}
}

// Report takes all Notes that hold at present, and writes a Warning for each that did not hold at the last call.
func (r *Reporter) Report(notes []cluster.Note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.turn(now)
	present := make(map[cluster.Note]bool, len(notes))
	for _, n := range notes {
		if !r.present[n] && !present[n] {
			r.enqueueNote(now, n)
		}
		present[n] = true
	}
	r.present = present
}

// turn begins a new window when it is time; it is called with mu held.
func (r *Reporter) turn(now time.Time) {
	if began := now.Truncate(window); !began.Equal(r.windowBegan) { // also when the clock was set back
		r.windowBegan = began
		clear(r.spent)
		clear(r.told)
	}
}

// enqueueNote is called with mu held.
func (r *Reporter) enqueueNote(now time.Time, n cluster.Note) {
	if r.spent[n.Object] >= maxPerObject {
		r.dropped.Add(1)
		return
	}
	r.spent[n.Object]++
	r.enqueue(r.noteEvent(now, n))
}

// Event writes one Event of a type ("Normal" or "Warning") that has no Note behind it, such as the agent's start on
// its Node. It does not block. No more than ten are written about an object for one reason in ten minutes.
func (r *Reporter) Event(about cluster.Ref, eventType, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.turn(now)
	key := about.String() + " " + reason
	if r.told[key] >= maxPerObject {
		r.dropped.Add(1)
		return
	}
	r.told[key]++
	r.enqueue(r.event(now, about, eventType, reason, message))
}

func (r *Reporter) enqueue(e *eventsv1.Event) {
	select {
	case r.queue <- e:
	default:
		r.dropped.Add(1)
	}
}

// Dropped counts the Events that were not written: because the API did not take them, or for the bounds on their number.
func (r *Reporter) Dropped() uint64 { return r.dropped.Load() }

// Discard is a Reporter for an agent that has no API to write to. Its zero value is ready.
type Discard struct{}

// Run waits until ctx ends, and returns nil.
func (Discard) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Report does nothing.
func (Discard) Report([]cluster.Note) {}

// Event does nothing.
func (Discard) Event(cluster.Ref, string, string, string) {}

// Dropped returns 0.
func (Discard) Dropped() uint64 { return 0 }
