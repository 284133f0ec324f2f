package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A meter counts the processor time of a process and of everything that it starts, also of what has lived for a moment
// only or has not ended yet: it is a cgroup (v2) of their own. What the kernel does for them later, in threads of its own, it
// can't see.
type meter struct {
	dir  string
	file *os.File // dir, to start a process in
}

// emptyBound is how long the processes of a meter may take to be gone after they were killed.
const emptyBound = 30 * time.Second

// newMeter makes a cgroup below that of this process, and removes those of dead runs.
func newMeter() (*meter, error) {
	parent, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	if err := sweepMeters(parent); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("fairway-bench-%d-", os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	m := &meter{dir: dir}
	if m.file, err = os.Open(dir); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return m, nil
}

// ownCgroup is the folder of this process's cgroup of version 2.
func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	root := regexp.MustCompile(`(?m)^\S+ (\S+) cgroup2 `).FindSubmatch(mounts)
	path := regexp.MustCompile(`(?m)^0::(.*)$`).FindSubmatch(own)
	if root == nil || path == nil {
		return "", errors.New("no cgroup of version 2 here, which processor time is counted with")
	}
	return filepath.Join(string(root[1]), string(path[1])), nil
}

// sweepMeters ends and removes what a run left that could not do so itself.
func sweepMeters(parent string) error {
	left, err := filepath.Glob(filepath.Join(parent, "fairway-bench-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[2])
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			if err := removeCgroup(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// close ends all processes of the meter.
func (m *meter) close() error { return errors.Join(m.file.Close(), removeCgroup(m.dir)) }

func removeCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("end the processes of a cgroup: %w", err)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Since(start) > emptyBound {
			return fmt.Errorf("remove a cgroup: %w", err)
		}
	}
}

// cpu is the processor time so far, in user and kernel mode.
func (m *meter) cpu() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(m.dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", m.dir)
}

// pids are the processes of this moment.
func (m *meter) pids() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(m.dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
