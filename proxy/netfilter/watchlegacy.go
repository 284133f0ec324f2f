package netfilter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// How often the rules are hashed at most, as shares of one core: when another's command of iptables-legacy has ended or the size of a
// table is another, but then no less often than every hintMost; and when there is no sign of a change. Writes of ours are no sign: to
// hash the rules of 10,000 Services costs half as much as to write one change of them.
const (
	hintShare = 20
	hintMost  = time.Second
	idleShare = 100
)

func (b *Backend) openLegacyWatch() (*Watch, error) {
	w := &legacyWatch{backend: b}
	for _, f := range b.Families() {
		socket, err := openSocket(f)
		if err != nil {
			w.close()
			return nil, err
		}
		w.sockets = append(w.sockets, socket)
		w.views = append(w.views, newLegacyView(f, socket))
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.close()
		return nil, fmt.Errorf("watch rules: inotify: %w", err)
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	w.watchLock()
	b.writes.keep()
	for _, v := range w.views {
		if _, err := v.look(b, false); err != nil {
			w.close()
			return nil, err
		}
	}
	return &Watch{backend: b, run: w.run, close: func() { w.inotify.Close() }}, nil
}

// A legacyWatch compares hashes of the rules.
type legacyWatch struct {
	backend *Backend
	inotify *os.File
	sockets []int
	views   []*legacyView
}

func (w *legacyWatch) close() {
	if w.inotify != nil {
		w.inotify.Close()
	}
	for _, s := range w.sockets {
		unix.Close(s)
	}
}

// watchLock follows the xtables lock's file. A command opens it before it reads the rules, and closes it when its change is in
// effect. Asking again for a file that is followed already does nothing, and follows a new one in its place.
func (w *legacyWatch) watchLock() {
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		// Without the file, which the first command makes, there is only the comparison from time to time.
		_, _ = unix.InotifyAddWatch(int(fd), lockFile(), unix.IN_CLOSE)
	})
}

func (w *legacyWatch) run(ctx context.Context, o Observer) error {
	defer w.close()
	// hinted is that there was a sign of a change since the last look; before idle, nobody looks without one.
	hinted := false
	var hints, idle time.Time
	for ctx.Err() == nil {
		until := time.Now().Add(quietEvery)
		if hinted && hints.Before(until) {
			until = hints
		}
		heard := w.wait(until)
		start := time.Now()
		hinted = hinted || heard && !w.backend.writes.heard(start)
		for _, v := range w.views {
			resized, err := v.resized(w.backend)
			if err != nil {
				return err
			}
			hinted = hinted || resized
		}
		// What was read is hashed soon, so that the next sign of a change can be compared with it.
		due := (hinted || w.outdated()) && !start.Before(hints) || !start.Before(idle)
		if !due {
			if !hinted {
				w.backend.quiet(o, start)
			}
			continue
		}
		for _, v := range w.views {
			changed, err := v.look(w.backend, hinted)
			if err != nil {
				return err
			}
			if changed {
				o.Changed(Change{Family: v.family})
			}
		}
		took := time.Since(start)
		hinted, hints, idle = false, start.Add(took+min(hintShare*took, hintMost)), start.Add(idleShare*took)
		w.backend.quiet(o, start)
	}
	return nil
}

// outdated tells whether rules were read since they were last looked at.
func (w *legacyWatch) outdated() bool {
	return slices.ContainsFunc(w.views, func(v *legacyView) bool { return w.backend.writes.readSince(v.family, v.at) })
}

// wait waits for a command to end; it returns false when none did until a moment.
func (w *legacyWatch) wait(until time.Time) (hint bool) {
	w.watchLock()
	if w.inotify.SetReadDeadline(until) != nil {
		return false
	}
	var events [4096]byte
	n, err := w.inotify.Read(events[:])
	return err == nil && n > 0
}

// A legacyView is what is known of a family's tables.
type legacyView struct {
	family cluster.Family
	tables []*xtTable
	// infos are the tables' sizes at a moment; prints are older, or as old.
	infos  []tableInfo
	at     time.Time
	prints map[uint64]print
}

// newLegacyView returns a view that has not been looked at yet, through a socket of the family.
func newLegacyView(f cluster.Family, socket int) *legacyView {
	v := &legacyView{family: f}
	for _, name := range iptables.Tables {
		v.tables = append(v.tables, &xtTable{layout: layouts[f], table: name, socket: socket})
	}
	return v
}

// resized tells whether a table has another size than when it was last looked at, and not by a write of ours.
func (v *legacyView) resized(b *Backend) (bool, error) {
	start := time.Now()
	infos := make([]tableInfo, len(v.tables))
	for i, t := range v.tables {
		var err error
		if infos[i], err = t.info(); err != nil {
			return false, fmt.Errorf("watch %s rules: %w", v.family, err)
		}
	}
	changed := !slices.Equal(infos, v.infos)
	if changed && b.writes.since(v.family, v.at) {
		// Which of the two it was, the next hash tells. Until then this is the size to compare with.
		changed = false
		v.infos, v.at = infos, start
	}
	return changed, nil
}

// look hashes the rules, and tells whether somebody else changed them since the last look, or may have. When there was a sign of a
// change, and the rules were read since the last look, equal hashes do not tell: what was read may have been gone again by now.
func (v *legacyView) look(b *Backend, hinted bool) (changed bool, err error) {
	start := time.Now()
	now, infos, err := v.read()
	if err != nil {
		return false, fmt.Errorf("watch %s rules: %w", v.family, err)
	}
	written := b.writes.take(v.family, start)
	changed = v.prints != nil && (hinted && b.writes.readSince(v.family, v.at) || differs(v.prints, now, written, start))
	v.infos, v.at, v.prints = infos, start, now
	return changed, nil
}

// maxMoved is how often a table is read that changes meanwhile.
const maxMoved = 20

func (v *legacyView) read() (prints map[uint64]print, infos []tableInfo, err error) {
	prints = map[uint64]print{}
	for _, t := range v.tables {
		var info tableInfo
		var some map[uint64]print
		for range maxMoved {
			if info, err = t.info(); err == nil {
				some, err = t.prints(info)
			}
			if !errors.Is(err, errMoved) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			return nil, nil, err
		}
		infos = append(infos, info)
		maps.Copy(prints, some)
	}
	return prints, infos, nil
}

// differs compares two looks, the later one begun at a moment. written are the chains that we wrote since the earlier, which may
// differ; of those that were done, the number of rules is known.
func differs(before, now map[uint64]print, written map[iptables.ChainName]ownWrite, start time.Time) bool {
	own := make(map[uint64]bool, len(written))
	for name, w := range written {
		key := chainKey(name.Table, name.Chain)
		own[key] = true
		p, there := now[key]
		switch {
		case !w.settled(start):
		case w.rules == iptables.Uncounted:
			return true // what others have there can't be told from what we wrote
		case there != (w.rules != iptables.Gone) || there && p.rules != w.rules:
			return true
		}
	}
	for key, p := range now {
		if before[key] != p && !own[key] {
			return true
		}
	}
	for key := range before {
		if _, there := now[key]; !there && !own[key] {
			return true
		}
	}
	return false
}
