package file

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// How long a folder must be quiet before it is read, and how long it may be kept from being read by one who never
// stops writing.
const (
	quiet    = 50 * time.Millisecond
	maxDelay = time.Second
)

// lookAgain is the period in which it is verified that the watched folder is still what the path leads to. Only the
// replacement of the folder itself, or of one above it, is found in this way; changes within it are events.
const lookAgain = time.Second

// secondLook is how long a folder that has lost more than half of the cluster is watched before that is believed.
const secondLook = time.Second

// A Source publishes the cluster that a folder of manifests describes, and follows its changes. While the folder cannot
// be read, the last good state stays.
type Source struct {
	// Dir is the folder, or a symbolic link to one. It need not exist yet.
	Dir string
	// OnError, when set, is called when the folder becomes unreadable, when it is so in another way, and with nil when
	// it is good again. It is called from the goroutine of Run and must return quickly.
	OnError func(error)
	// OnDoubt, when set, is called when what the folder holds is not believed yet, with the reason, and with "" when that is over; as
	// OnError.
	OnDoubt func(why string)
	// Before is what the cluster had when it was last known, before Run.
	Before source.Census
}

var _ source.Source = (*Source)(nil)

// Run implements [source.Source]. The only errors are those of having no inotify at all (too many instances).
func (s *Source) Run(ctx context.Context, publish func(*cluster.Snapshot)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch folder %s: %w", s.Dir, err)
	}
	defer watcher.Close()
	f := follower{Source: s, watcher: watcher, assembler: source.NewAssembler(), publish: publish, before: s.Before}
	f.look()
	// due is when the folder is to be read; it is at rest while nothing happened.
	due := time.NewTimer(0)
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	var latest time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
			if !f.look() {
				continue
			}
		case <-watcher.Events:
		case <-watcher.Errors: // the queue overflowed: something happened, it is unknown what
		case <-due.C:
			latest = time.Time{}
			f.reload()
			if !f.doubted.IsZero() {
				due.Reset(time.Until(f.doubted))
			}
			continue
		}
		now := time.Now()
		if latest.IsZero() {
			latest = now.Add(maxDelay)
		}
		due.Reset(min(quiet, latest.Sub(now)))
	}
}

// A follower is the state of one Run.
type follower struct {
	*Source
	watcher   *fsnotify.Watcher
	watched   os.FileInfo // nil while the folder is not watched
	reader    reader
	assembler *source.Assembler
	publish   func(*cluster.Snapshot)
	published *cluster.Snapshot
	failure   string // of the last OnError
	before    source.Census
	// doubted is until when what was read is not believed; zero when it is.
	doubted time.Time
}

// look makes sure that what Dir leads to now is watched, and reports whether that is something new, or gone.
func (f *follower) look() bool {
	info, err := os.Stat(f.Dir)
	// A new folder may have the inode number of the old one, but the kernel has then ended the watch.
	if err == nil && f.watched != nil && os.SameFile(info, f.watched) && len(f.watcher.WatchList()) > 0 {
		return false
	}
	wasWatched := f.watched != nil
	if wasWatched {
		// That it is not watched any more is the normal case: the kernel ends the watch with the folder.
		_ = f.watcher.Remove(f.Dir)
		f.watched = nil
	}
	if err != nil || f.watcher.Add(f.Dir) != nil {
		return wasWatched
	}
	f.watched = info
	return true
}

// reload reads the folder, and publishes what it holds unless that is what was published before.
func (f *follower) reload() {
	items, err := f.reader.read([]string{f.Dir})
	f.report(err)
	if err != nil {
		return
	}
	next := assemble(f.assembler, items)
	if next == f.published || f.doubts(next) {
		return
	}
	f.published = next
	f.publish(next)
}

// doubts tells whether what was read is too little to be believed yet.
func (f *follower) doubts(next *cluster.Snapshot) bool {
	census, was := source.Count(next), f.doubted
	why := f.before.Shrunk(census)
	switch {
	case why != "" && was.IsZero():
		f.doubted = time.Now().Add(secondLook)
	case why == "" || !time.Now().Before(was):
		f.before, f.doubted, why = census, time.Time{}, ""
	}
	if f.OnDoubt != nil && f.doubted.IsZero() != was.IsZero() {
		f.OnDoubt(why)
	}
	return why != ""
}

func (f *follower) report(err error) {
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	if failure == f.failure {
		return
	}
	f.failure = failure
	if f.OnError != nil {
		f.OnError(err)
	}
}
