package report

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fairway-net/fairway/agent/cluster"
)

var (
	web  = cluster.Ref{Kind: "Service", Namespace: "shop", Name: "web", UID: "u-1"}
	n1   = cluster.Ref{Kind: "Node", Name: "n1", UID: "u-2"}
	noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

func note(about cluster.Ref, reason, detail string) cluster.Note {
	return cluster.Note{Object: about, Reason: reason, Detail: detail}
}

// An api holds Events by namespace and name, as the API server does.
type api struct {
	mu     sync.Mutex
	err    error
	events map[string]*eventsv1.Event
	calls  int
}

func (a *api) CreateEvent(_ context.Context, e *eventsv1.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	if a.err != nil {
		return a.err
	}
	key := e.Namespace + "/" + e.Name
	if a.events[key] != nil {
		return fmt.Errorf("create: %w", apierrors.NewAlreadyExists(schema.GroupResource{Resource: "events"}, e.Name))
	}
	if a.events == nil {
		a.events = map[string]*eventsv1.Event{}
	}
	a.events[key] = e
	return nil
}

// at returns a Reporter whose clock stands.
func at(now *time.Time, w Writer, node string) *Reporter {
	r := New(w, node)
	r.now = func() time.Time { return *now }
	return r
}

// drain writes everything that is queued.
func drain(r *Reporter) int {
	n := 0
	for ; len(r.queue) > 0; n++ {
		r.write(context.Background(), <-r.queue)
	}
	return n
}

func TestReportOncePerNote(t *testing.T) {
	now := noon
	a := &api{}
	r := at(&now, a, "n1")
	bad, worse := note(web, cluster.ReasonInvalidField, "bad"), note(web, cluster.ReasonInvalidField, "worse")
	for i, step := range []struct {
		after time.Duration
		notes []cluster.Note
		want  int
	}{
		{0, nil, 0},
		{0, []cluster.Note{bad, bad}, 1},
		{time.Hour, []cluster.Note{bad}, 0},
		{0, []cluster.Note{worse, bad}, 1},
		{0, []cluster.Note{worse}, 0},
		{time.Hour, []cluster.Note{worse, bad}, 1},
		{0, nil, 0},
		{time.Hour, []cluster.Note{note(n1, cluster.ReasonInvalidField, "bad")}, 1},
	} {
		now = now.Add(step.after)
		r.Report(step.notes)
		if got := drain(r); got != step.want {
			t.Errorf("step %d wrote %d Events, want %d", i, got, step.want)
		}
	}
	if len(a.events) != 4 || r.Dropped() != 0 {
		t.Errorf("%d Events, %d dropped", len(a.events), r.Dropped())
	}
}

func TestEventContents(t *testing.T) {
	now := noon.Add(time.Minute)
	a := &api{}
	r := at(&now, a, "n1")
	r.Report([]cluster.Note{note(web, cluster.ReasonInvalidField, strings.Repeat("ä", 1000))})
	r.Event(n1, corev1.EventTypeNormal, "Starting", "fairway starts")
	r.Event(cluster.Ref{Kind: "ServiceCIDR", Name: "kubernetes"}, corev1.EventTypeWarning, "InvalidField", "fairway starts")
	drain(r)
	if len(a.events) != 3 {
		t.Fatalf("%d Events", len(a.events))
	}
	for _, e := range a.events {
		want := corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "shop", Name: "web", UID: "u-1"}
		namespace, typ, reason, text := "shop", "Warning", "InvalidField", strings.Repeat("ä", 512)
		if e.Regarding.Kind == "Node" {
			want = corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "u-2"}
			namespace, typ, reason, text = "default", "Normal", "Starting", "fairway starts"
		}
		if e.Regarding.Kind == "ServiceCIDR" {
			want = corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR", Name: "kubernetes"}
			namespace, text = "default", "fairway starts"
		}
		if e.Regarding != want || e.Namespace != namespace || e.Type != typ || e.Reason != reason || e.Note != text ||
			e.ReportingController != "fairway" || e.ReportingInstance != "n1" || e.Action == "" || !e.EventTime.Time.Equal(now) {
			t.Errorf("Event %+v", e)
		}
		if errs := validation.IsDNS1123Subdomain(e.Name); len(errs) > 0 {
			t.Errorf("name %q: %v", e.Name, errs)
		}
	}
}

func TestManyNodesSayItOnce(t *testing.T) {
	now := noon
	a := &api{}
	notes := []cluster.Note{note(web, cluster.ReasonInvalidField, "bad"), note(n1, cluster.ReasonNextHopUnreachable, "10.0.0.1 is on no link")}
	for i := range 5 {
		r := at(&now, a, fmt.Sprint("n", i))
		now = now.Add(time.Second)
		r.Report(notes)
		drain(r)
		if r.Dropped() != 0 {
			t.Errorf("n%d counts what another wrote as dropped", i)
		}
	}
	count := map[string]int{}
	for _, e := range a.events {
		count[e.Reason]++
	}
	if count[cluster.ReasonInvalidField] != 1 || count[cluster.ReasonNextHopUnreachable] != 5 {
		t.Errorf("Events by reason: %v", count)
	}
}

func TestReportIsBounded(t *testing.T) {
	now := noon
	a := &api{}
	r := at(&now, a, "n1")
	for i := range 30 { // the remark changes with every change of the object
		r.Report([]cluster.Note{note(web, cluster.ReasonInvalidField, fmt.Sprint(i))})
	}
	if n := drain(r); n != maxPerObject || r.Dropped() != 30-maxPerObject {
		t.Errorf("%d Events for one object, %d dropped", n, r.Dropped())
	}
	now = now.Add(window)
	r.Report([]cluster.Note{note(web, cluster.ReasonInvalidField, "later")})
	if n := drain(r); n != 1 {
		t.Errorf("%d Events in the next window", n)
	}
	var many []cluster.Note
	for i := range 2 * maxQueued {
		many = append(many, note(cluster.Ref{Kind: "Node", Name: fmt.Sprint("x", i)}, cluster.ReasonInvalidField, "bad"))
	}
	r.Report(many) // nobody takes from the queue, and it does not block
	if n := len(r.queue); n != maxQueued || r.Dropped() != 30-maxPerObject+maxQueued {
		t.Errorf("%d queued, %d dropped", n, r.Dropped())
	}
}

// TestClockSetBack: when the clock is set back by an hour, Events do not wait for that hour to pass again.
func TestClockSetBack(t *testing.T) {
	now := noon
	a := &api{}
	r := at(&now, a, "n1")
	object := cluster.Ref{Kind: "Node", Name: "n1"}
	for range maxPerObject + 1 {
		r.Event(object, "Normal", "Again", "something happened")
	}
	if n := r.Dropped(); n != 1 {
		t.Fatalf("%d Events were dropped, want 1", n)
	}
	now = now.Add(-time.Hour)
	r.Event(object, "Normal", "Again", "something happened")
	if n := r.Dropped(); n != 1 {
		t.Errorf("after the clock was set back, %d more Events were dropped", n-1)
	}
}

func TestRunSurvivesTheAPI(t *testing.T) {
	a := &api{err: errors.New("connection refused")}
	r := New(a, "n1")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.Report([]cluster.Note{note(web, cluster.ReasonInvalidField, "bad")})
	await(t, func() bool { return r.Dropped() == 1 })
	a.mu.Lock()
	a.err = nil
	a.mu.Unlock()
	r.Event(n1, corev1.EventTypeNormal, "Starting", "fairway starts")
	await(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.events) == 1 })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var d Discard
	go func() { ended <- d.Run(ctx) }()
	d.Report([]cluster.Note{{}})
	d.Event(n1, "Normal", "Starting", "")
	cancel()
	if err := <-ended; err != nil || d.Dropped() != 0 {
		t.Errorf("Run: %v, %d dropped", err, d.Dropped())
	}
}

func await(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute")
		}
	}
}
