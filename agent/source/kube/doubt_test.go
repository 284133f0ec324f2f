package kube

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/fairway-net/fairway/agent/source"
)

// A doubter records what a Source says of its doubts.
type doubter struct {
	mu   sync.Mutex
	said []string
}

func (d *doubter) hear(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, why)
}

func (d *doubter) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.said, ";")
}

// large fills a server with twenty Nodes and Services.
func large(s *apiServer) {
	for i := range 20 {
		s.put(node(fmt.Sprintf("n%02d", i)), service(fmt.Sprintf("s%02d", i), fmt.Sprintf("10.32.0.%d", i+1)))
	}
}

// outage ends all watches, so that everything is listed anew, and changes what there is in the meantime.
func outage(t *testing.T, s *apiServer, r *recorder, change func()) {
	s.do(func() { s.down = true })
	until(t, "lost", func() bool { _, err := r.Lost(); return err != nil })
	change()
	s.do(func() { s.down, s.history = false, nil })
}

// An API whose cache has lost everything, while its store has not, takes nothing away: it is asked for the store, and then for the list
// anew.
func TestSourceDoubtsAnEmptyCache(t *testing.T) {
	s := newAPIServer(t)
	large(s)
	d := &doubter{}
	r := run(t, s, d.hear)
	until(t, "all is there", func() bool { return r.last() != nil && len(r.last().Services) == 20 })
	outage(t, s, r, func() { s.do(func() { s.emptyCache = true }) })
	until(t, "it is doubted", func() bool { return strings.Contains(d.text(), "0 of 20") })
	s.do(func() { s.emptyCache = false }) // it recovers, but nobody is told
	until(t, "it is believed again", func() bool { return strings.HasSuffix(d.text(), ";") })
	s.put(node("n99"))
	until(t, "it goes on", func() bool { return len(r.last().Nodes) == 21 })
	for _, snapshot := range r.all() {
		if len(snapshot.Nodes) < 20 || len(snapshot.Services) < 20 {
			t.Errorf("published with %d Nodes, %d Services", len(snapshot.Nodes), len(snapshot.Services))
		}
	}
}

// A cluster that has really shrunk while the API was away is believed after the second look.
func TestSourceBelievesTheSecondLook(t *testing.T) {
	s := newAPIServer(t)
	large(s)
	d := &doubter{}
	r := run(t, s, d.hear)
	until(t, "all is there", func() bool { return r.last() != nil && len(r.last().Services) == 20 })
	outage(t, s, r, func() {
		for i := range 15 {
			s.remove(service(fmt.Sprintf("s%02d", i), ""))
		}
	})
	until(t, "it has shrunk", func() bool { return len(r.last().Services) == 5 })
	if got := d.text(); got != "5 of 20 Services are left;" {
		t.Errorf("doubts: %q", got)
	}
	// Deletions one by one are events, and need no second look.
	for i := 15; i < 20; i++ {
		s.remove(service(fmt.Sprintf("s%02d", i), ""))
	}
	for i := range 18 {
		s.remove(node(fmt.Sprintf("n%02d", i)))
	}
	until(t, "it is almost empty", func() bool { return len(r.last().Nodes) == 2 && len(r.last().Services) == 0 })
	if got := d.text(); got != "5 of 20 Services are left;" {
		t.Errorf("doubts: %q", got)
	}
}

// After a start the first lists are compared with what was known before.
func TestSourceDoubtsItsFirstLists(t *testing.T) {
	s := newAPIServer(t)
	s.put(node("n1"))
	d := &doubter{}
	r := run(t, s, d.hear, source.Census{Nodes: 100})
	until(t, "it is published", func() bool { return r.last() != nil })
	if got := d.text(); got != "1 of 100 Nodes are left;" {
		t.Errorf("doubts: %q", got)
	}
}

// The second look takes a large list page by page.
func TestLookTakesPages(t *testing.T) {
	s := newAPIServer(t)
	large(s)
	s.pages = 7
	got, err := New(s.client(t)).look(t.Context())
	if want := (source.Census{Nodes: 20, Services: 20}); err != nil || got != want {
		t.Errorf("counted %+v, %v, want %+v", got, err, want)
	}
	s.do(func() { s.refused = map[string]int{"services": 403} })
	if _, err := New(s.client(t)).look(t.Context()); err == nil || !strings.Contains(err.Error(), "services") {
		t.Errorf("a refused list: %v", err)
	}
}
