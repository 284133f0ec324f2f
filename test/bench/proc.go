package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// usage is what a process has used up to a moment. Memory is in KiB, as /proc has it.
type usage struct {
	rss, peak      int // resident now, and at most so far (VmRSS, VmHWM)
	file           int // the part of rss that is mapped files, which is the program's code for the most part (RssFile)
	children       int // the most that one child had (VmHWM), as far as looking often shows it
	cpu, childrens time.Duration
}

// userHZ is the unit of times in /proc/PID/stat: hundredths of a second on every architecture that Go knows.
const userHZ = 100

// look is how often a watch looks for children.
const look = 5 * time.Millisecond

// A watch observes a process, whose children come and go.
type watch struct {
	pid  int
	end  chan struct{}
	done sync.WaitGroup

	mu       sync.Mutex
	children int // guarded by mu
}

func watchProcess(pid int) *watch {
	w := &watch{pid: pid, end: make(chan struct{})}
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
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.pid))
	if err != nil {
		panic("bench: " + err.Error()) // only a bad pattern fails
	}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, pid := range strings.Fields(string(pids)) {
			// Right after the fork the child shows its parent's memory.
			name, err := os.Readlink("/proc/" + pid + "/exe")
			if err != nil || !strings.Contains(name, "xtables") {
				continue
			}
			if status, err := readStatus(pid); err == nil {
				w.mu.Lock()
				w.children = max(w.children, status["VmHWM"])
				w.mu.Unlock()
			}
		}
	}
}

// usage returns what the process has used so far.
func (w *watch) usage() (u usage, err error) {
	pid := strconv.Itoa(w.pid)
	status, err := readStatus(pid)
	if err != nil {
		return u, err
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return u, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	u = usage{rss: status["VmRSS"], peak: status["VmHWM"], file: status["RssFile"], children: w.children}
	// The name, in parentheses, may contain anything; the state behind it is field 3, utime field 14 (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks [4]int
	for i := range ticks {
		if ticks[i], err = strconv.Atoi(fields[14-3+i]); err != nil {
			return u, fmt.Errorf("read /proc/%s/stat: %w", pid, err)
		}
	}
	u.cpu = time.Duration(ticks[0]+ticks[1]) * time.Second / userHZ
	u.childrens = time.Duration(ticks[2]+ticks[3]) * time.Second / userHZ
	return u, nil
}

// readStatus returns the sizes in /proc/PID/status, in KiB.
func readStatus(pid string) (map[string]int, error) {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return nil, err
	}
	sizes := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if n, ok := strings.CutSuffix(strings.TrimSpace(value), " kB"); ok {
			if sizes[name], err = strconv.Atoi(n); err != nil {
				return nil, fmt.Errorf("read /proc/%s/status: %w", pid, err)
			}
		}
	}
	if len(sizes) == 0 { // it has ended, and nobody has waited for it yet
		return nil, errors.Join(fmt.Errorf("process %s", pid), fs.ErrNotExist)
	}
	return sizes, nil
}
