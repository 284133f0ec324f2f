package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/snapshot"
)

// heard collects the Notes that a saver makes.
type heard struct {
	mu    sync.Mutex
	notes []cluster.Note
	calls int
}

func (h *heard) remark(notes ...cluster.Note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes, h.calls = notes, h.calls+1
}

func (h *heard) reason() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.notes) == 0 {
		return ""
	}
	return h.notes[0].Reason
}

// What is offered is saved, at a bounded rate, and the last of it when the agent ends; the same cluster is not saved twice.
func TestSaver(t *testing.T) {
	h := &heard{}
	s := newSaver(filepath.Join(t.TempDir(), "state"), "a", h.remark)
	if saved := s.load(); saved != nil || h.reason() != "" {
		t.Fatalf("before the first: %v, %s", saved, h.reason())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	first := aSnapshot("10.0.0.1")
	s.offer(first)
	clusterIP := func() string {
		saved, err := snapshot.Load(s.dir, "a")
		if err != nil {
			return err.Error()
		}
		return saved.Services[0].ClusterIPs[0].String()
	}
	eventually(t, "the first is saved", func() bool { return clusterIP() == "10.0.0.1" })
	s.offer(aSnapshot("10.0.0.2"))
	s.offer(aSnapshot("10.0.0.3"))
	time.Sleep(10 * time.Millisecond) // it would be saved by now, if it did not wait for a minute
	if got := clusterIP(); got != "10.0.0.1" {
		t.Errorf("saved at once is %s", got)
	}
	cancel()
	if err := <-ended; err != nil || clusterIP() != "10.0.0.3" {
		t.Errorf("at the end %s is saved, %v", clusterIP(), err)
	}
	h.calls = 0
	copied := *s.last
	copied.Host = &cluster.Host{}
	if s.save(&copied) || h.calls > 0 {
		t.Error("the same cluster is saved again")
	}
}

// A disk that can't be written to is a Note that goes when it can; so is a file that can't be used, which stops nobody.
func TestSaverTrouble(t *testing.T) {
	h := &heard{}
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way of the directory
		t.Fatal(err)
	}
	s := newSaver(dir, "a", h.remark)
	if !s.save(aSnapshot("10.0.0.1")) || h.reason() != cluster.ReasonSnapshotNotSaved || s.failures.Load() != 1 {
		t.Errorf("told %q, %d failures", h.reason(), s.failures.Load())
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if !s.save(aSnapshot("10.0.0.1")) || h.reason() != "" {
		t.Errorf("told %q when it works again", h.reason())
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(dir, files[0].Name()), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if saved := s.load(); saved != nil || h.reason() != cluster.ReasonSnapshotRefused {
		t.Errorf("from nonsense comes %v, told %q", saved, h.reason())
	}
}

// A saved Snapshot is put in force when the API fails or says nothing, and not when it answers; then the agent is not ready, and what
// the API says takes its place.
func TestFallBack(t *testing.T) {
	saved := aSnapshot("10.0.0.1")
	saved.Saved = time.Unix(1e9, 0)
	down := func() (time.Time, error) { return time.Now(), errors.New("refused") }
	up := func() (time.Time, error) { return time.Time{}, nil }

	rules, checks := &fakePart{name: rulesPrefix + "IPv4"}, &fakePart{name: "checks"}
	l, reporter := startLoop(t, rules, checks)
	h := &heard{}
	l.saver = newSaver(t.TempDir(), "a", h.remark)
	l.setHost(&cluster.Host{})
	start := time.Now()
	l.fallBack(t.Context(), saved, down)
	if waited := time.Since(start); waited < savedPatience {
		t.Errorf("it waited %v", waited)
	}
	eventually(t, "the saved one is programmed", func() bool {
		_, _, p := rules.see()
		return clusterIP(p) == "10.0.0.1" && l.status.view().parts[rules.name].programmed > 0
	})
	v := l.status.view()
	if code, body := readyBody(v, time.Now()); v.ready() || code != 503 || !body.(readiness).Stale {
		t.Errorf("ready with a saved snapshot: %d %+v", code, body)
	}
	if !slices.Contains(reporter.reasons(), cluster.ReasonSnapshotStale) {
		t.Errorf("told are %v", reporter.reasons())
	}
	if len(l.saver.offers) > 0 {
		t.Error("a saved snapshot is saved again")
	}
	l.publish(aSnapshot("10.0.0.2"))
	eventually(t, "the API's is programmed", func() bool { return l.status.view().ready() })
	eventually(t, "nobody is told any more", func() bool { return !slices.Contains(reporter.reasons(), cluster.ReasonSnapshotStale) })
	eventually(t, "it is offered to be saved", func() bool { return len(l.saver.offers) == 1 })

	l, _ = startLoop(t, &fakePart{name: "x"})
	l.publish(aSnapshot("10.0.0.2"))
	l.fallBack(t.Context(), saved, down)
	if s := l.snapshot; !s.Saved.IsZero() {
		t.Error("a saved snapshot took the place of the API's")
	}

	l, _ = startLoop(t, &fakePart{name: "x"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*savedPatience)
	defer cancel()
	l.fallBack(ctx, saved, up)
	if l.published() {
		t.Error("a saved snapshot is in force while the API answers")
	}
	l.fallBack(t.Context(), saved, nil)
	if !l.published() {
		t.Error("nothing is in force although nobody tells anything")
	}
}

// A stale Plan says since when.
func TestStalePlan(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	s.Saved = time.Unix(1e9, 0)
	p := MakePlan(s, Config{NodeName: "a"}, Offline, nil)
	if !p.Stale() || !slices.ContainsFunc(p.Notes, func(n cluster.Note) bool {
		return n.Reason == cluster.ReasonSnapshotStale && strings.Contains(n.Detail, "2001-09-09T01:46:40Z")
	}) {
		t.Errorf("stale %v, notes %v", p.Stale(), p.Notes)
	}
}
