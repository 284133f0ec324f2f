package agent

import (
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A logReporter writes a line for each Note when it comes and when it goes, and passes the Notes on.
type logReporter struct {
	next Reporter
	seen map[cluster.Note]bool
}

func newLogReporter(next Reporter) *logReporter { return &logReporter{next: next} }

// Report implements Reporter. It is for one caller at a time.
func (r *logReporter) Report(notes []cluster.Note) {
	now := make(map[cluster.Note]bool, len(notes))
	for _, n := range notes {
		now[n] = true
		if !r.seen[n] {
			klog.InfoS("Note", "object", n.Object.String(), "reason", n.Reason, "detail", n.Detail)
		}
	}
	for n := range r.seen {
		if !now[n] {
			klog.InfoS("Note no longer holds", "object", n.Object.String(), "reason", n.Reason)
		}
	}
	r.seen = now
	if r.next != nil {
		r.next.Report(notes)
	}
}
