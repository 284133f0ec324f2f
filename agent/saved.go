package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/snapshot"
)

const (
	// saveEvery is the least time between two writes to the disk: what is saved is for the day on which the API does not answer, and
	// need not be up to the second.
	saveEvery = time.Minute
	// A saved Snapshot is put in force when the API fails to answer for savedPatience, or has not told all for savedMost; looked at
	// every savedLook.
	savedPatience = 300 * time.Millisecond
	savedMost     = 3 * time.Second
	savedLook     = 50 * time.Millisecond
)

// A saver keeps what was last programmed on the disk. It writes in the background, and a failure is no more than a Note.
type saver struct {
	dir, nodeName string
	every         time.Duration
	// offers holds the latest Snapshot that was offered and not taken.
	offers chan *cluster.Snapshot
	remark func(...cluster.Note)
	// last is the Snapshot that the disk has, as far as this agent knows.
	last *cluster.Snapshot
	// saved is when that was, in Unix milliseconds, and failures counts the writes that failed.
	saved, failures atomic.Int64
}

func newSaver(dir, nodeName string, remark func(...cluster.Note)) *saver {
	return &saver{dir: dir, nodeName: nodeName, every: saveEvery, offers: make(chan *cluster.Snapshot, 1), remark: remark}
}

// load reads what an earlier agent saved; nil when there is nothing to be used, with a Note unless that is the normal case.
func (s *saver) load() *cluster.Snapshot {
	saved, err := snapshot.Load(s.dir, s.nodeName)
	switch {
	case err == nil:
		s.saved.Store(saved.Saved.UnixMilli())
		return saved
	case !errors.Is(err, fs.ErrNotExist):
		s.note(cluster.ReasonSnapshotRefused, "what was saved for a start without the Kubernetes API is not used: %v; it is replaced when the next one is saved", err)
	}
	return nil
}

func (s *saver) note(reason, format string, args ...any) {
	s.remark(cluster.Note{Object: cluster.Ref{Kind: "Node", Name: s.nodeName, UID: s.nodeName}, Reason: reason, Detail: fmt.Sprintf(format, args...)})
}

// offer takes a Snapshot that is programmed. It does not block, and is for one caller at a time.
func (s *saver) offer(programmed *cluster.Snapshot) {
	select {
	case <-s.offers:
	default:
	}
	s.offers <- programmed
}

// run saves what is offered until the context ends, and then what was offered last.
func (s *saver) run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case next := <-s.offers:
			if s.save(next) {
				sleep(ctx, s.every)
			}
		}
	}
	select {
	case next := <-s.offers:
		s.save(next)
	default:
	}
	return nil
}

// save writes a Snapshot, and reports whether there was a need to.
func (s *saver) save(next *cluster.Snapshot) bool {
	if s.last != nil && sameObjects(s.last, next) {
		return false
	}
	start := time.Now()
	if err := snapshot.Save(s.dir, next, s.nodeName, start); err != nil {
		s.failures.Add(1)
		s.note(cluster.ReasonSnapshotNotSaved, "what is programmed can't be saved for a start without the Kubernetes API: %v; right would be a writable directory with room (stateDir)", err)
		return true
	}
	s.last = next
	s.saved.Store(start.UnixMilli())
	s.remark()
	klog.V(2).InfoS("Saved what is programmed", "dir", s.dir, "services", len(next.Services), "took", time.Since(start))
	return true
}

// sameObjects tells whether two Snapshots are of the same cluster; the Host, which is not saved, aside.
func sameObjects(a, b *cluster.Snapshot) bool {
	return slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Services, b.Services) && slices.Equal(a.ServiceCIDRs, b.ServiceCIDRs)
}

// metrics are those of the saver.
func (s *saver) metrics() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_snapshot_saved_timestamp_seconds",
			Help: "When what was programmed was last saved to the disk; 0 for never."}, func() float64 { return float64(s.saved.Load()) / 1000 }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "fairway_snapshot_save_errors_total",
			Help: "Failed attempts to save what is programmed."}, func() float64 { return float64(s.failures.Load()) }),
	}
}

// fallBack puts a saved Snapshot in force when the API does not answer. lost, nil where there is no API, tells whether it does.
func (l *loop) fallBack(ctx context.Context, saved *cluster.Snapshot, lost func() (time.Time, error)) {
	for start := time.Now(); sleep(ctx, savedLook) && !l.published(); {
		waited := time.Since(start)
		failing := false
		if lost != nil {
			_, err := lost()
			failing = err != nil
		}
		if failing && waited >= savedPatience || waited >= savedMost {
			klog.InfoS("The cluster does not answer, what was last saved is put in force until it does", "saved", saved.Saved)
			l.publishSaved(saved)
			return
		}
	}
}

func staleNote(node cluster.Ref, saved time.Time) cluster.Note {
	return cluster.Note{Object: node, Reason: cluster.ReasonSnapshotStale,
		Detail: fmt.Sprintf("the cluster has not answered since the agent started; what was saved at %s is added to what there is, and nothing is taken away until it answers", saved.UTC().Format(time.RFC3339))}
}
