package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// usage is what a process has used up to a moment. Memory is in KiB, as /proc has it.
type usage struct {
	cpu       time.Duration // children included
	rss, peak int           // resident now, and at most so far (VmRSS, VmHWM); without children
	file      int           // the part of rss that is mapped files, which is the program's code for the most part (RssFile)
	child     int           // the most that one child had (VmHWM), as far as looking often shows it
}

// look is how often a watch looks for children.
const look = 5 * time.Millisecond

// A watch observes the memory of a process in a meter, and of its children, which come and go.
type watch struct {
	*meter
	pid  int
	end  chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	child int // guarded by mu
}

func watchProcess(m *meter, pid int) *watch {
	w := &watch{meter: m, pid: pid, end: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(look)
		defer tick.Stop()
		for {
			select {
			case <-w.end:
				return
			case <-tick.C:
				w.observe()
			}
		}
	})
	return w
}

func (w *watch) stop() {
	close(w.end)
	w.done.Wait()
}

// observe looks at the children of this moment. A child may end meanwhile.
func (w *watch) observe() {
	pids, err := w.pids()
	if err != nil || len(pids) < 2 {
		return
	}
	parent, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.pid))
	if err != nil {
		return
	}
	for _, pid := range pids {
		// Right after the fork a child shows its parent's memory.
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || name == parent {
			continue
		}
		if status, err := readStatus(pid); err == nil {
			w.mu.Lock()
			w.child = max(w.child, status["VmHWM"])
			w.mu.Unlock()
		}
	}
}

// usage returns what the process has used so far.
func (w *watch) usage() (u usage, err error) {
	status, err := readStatus(w.pid)
	if err != nil {
		return u, err
	}
	cpu, err := w.cpu()
	w.mu.Lock()
	defer w.mu.Unlock()
	return usage{cpu: cpu, rss: status["VmRSS"], peak: status["VmHWM"], file: status["RssFile"], child: w.child}, err
}

// companion returns the memory of the children of this moment, together.
func (w *watch) companion() (u usage, err error) {
	pids, err := w.pids()
	if err != nil {
		return u, err
	}
	for _, pid := range pids {
		if pid == w.pid {
			continue
		}
		status, err := readStatus(pid)
		if err != nil {
			return u, err
		}
		u.rss, u.peak, u.file = u.rss+status["VmRSS"], u.peak+status["VmHWM"], u.file+status["RssFile"]
	}
	return u, nil
}

// readStatus returns the sizes in /proc/PID/status, in KiB.
func readStatus(pid int) (map[string]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	sizes := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if n, ok := strings.CutSuffix(strings.TrimSpace(value), " kB"); ok {
			if sizes[name], err = strconv.Atoi(n); err != nil {
				return nil, fmt.Errorf("read /proc/%d/status: %w", pid, err)
			}
		}
	}
	if len(sizes) == 0 { // it has ended, and nobody has waited for it yet
		return nil, errors.Join(fmt.Errorf("process %d", pid), fs.ErrNotExist)
	}
	return sizes, nil
}
