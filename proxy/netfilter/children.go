package netfilter

import (
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// pidRemembered is how long a child is known by its pid after its end. What it wrote was told to the Watch before it ended, but may
// not have been looked at yet; and a pid is not used again as soon as that.
const pidRemembered = 10 * time.Second

// children are the programs that were started. Its zero value is ready.
type children struct {
	mu sync.Mutex
	// pids has when each ended; zero while it runs.
	pids map[int]time.Time
	// running, when not nil, is told with mu held which of them run, before a new one can have done anything that takes long.
	running func(pids []int)
}

// start starts a program. Whoever asks about its pid meanwhile waits until it is known.
func (c *children) start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	now := time.Now()
	for pid, end := range c.pids {
		if !end.IsZero() && now.Sub(end) > pidRemembered {
			delete(c.pids, pid)
		}
	}
	if c.pids == nil {
		c.pids = map[int]time.Time{}
	}
	c.pids[cmd.Process.Pid] = time.Time{}
	c.tell()
	return nil
}

// watch sets who is told which of them run; nil for nobody.
func (c *children) watch(running func([]int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = running
	c.tell()
}

// tell is called with mu held.
func (c *children) tell() {
	if c.running == nil {
		return
	}
	var pids []int
	for pid, end := range c.pids {
		if end.IsZero() {
			pids = append(pids, pid)
		}
	}
	c.running(pids)
}

func (c *children) ended(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pids[pid] = time.Now()
}

// has tells whether a process is one of them, or was started by one that is a script.
func (c *children) has(pid int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known(pid) {
		return true
	}
	group, err := syscall.Getpgid(pid)
	return err == nil && c.known(group)
}

// known is called with mu held.
func (c *children) known(pid int) bool {
	end, ok := c.pids[pid]
	return ok && (end.IsZero() || time.Since(end) <= pidRemembered)
}
