package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// fullLists are lists of clients of which so many are full.
type fullLists struct{ full, reads int }

func (l *fullLists) Full(names []string) ([]string, int, error) {
	l.reads++
	return names[:min(l.full, len(names))], 100, nil
}

// TestClientWatch: a Service whose endpoints have more clients than are remembered gets a Note, for as long as that is so. The
// lists are read now and then, and only those of Services with affinity.
func TestClientWatch(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	table := func() *Plan { return MakePlan(s, Config{NodeName: "a"}, Offline, nil) }
	lists := &fullLists{full: 1}
	const every = 30 * time.Second
	w := clientWatch{lists: lists, every: every}
	start := time.Unix(1e9, 0)
	if notes := w.look(table().Services[0].Table, start); len(notes) != 0 || lists.reads != 0 {
		t.Errorf("without affinity: %v, %d reads", notes, lists.reads)
	}
	svc := *s.Services[0]
	svc.Affinity = time.Hour
	svc.Slices = []*cluster.EndpointSlice{{Name: "s", Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Name: svc.Ports[0].Name, Protocol: svc.Ports[0].Protocol, Port: 80}},
		Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("10.244.0.2"), Ready: true, Serving: true}}}}
	s = &cluster.Snapshot{Nodes: s.Nodes, Services: []*cluster.Service{&svc}}
	for _, c := range []struct {
		after time.Duration
		full  int
		notes int
		reads int
	}{{every, 1, 1, 1}, {every + time.Second, 0, 1, 1}, {2 * every, 0, 0, 2}, {3 * every, 1, 1, 3}} {
		lists.full = c.full
		notes := w.look(table().Services[0].Table, start.Add(c.after))
		if len(notes) != c.notes || lists.reads != c.reads {
			t.Errorf("after %s: %v, %d reads, expected %d and %d", c.after, notes, lists.reads, c.notes, c.reads)
		}
		for _, n := range notes {
			if n.Object != svc.Ref() || n.Reason != cluster.ReasonAffinityListFull || !strings.Contains(n.Detail, "100 clients") {
				t.Errorf("the note is %v", n)
			}
		}
	}
}
