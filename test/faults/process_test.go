package faults

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/test/lab"
)

// Fault 3: the agent is stopped with SIGSTOP while Services and endpoints come and go, and goes on with SIGCONT. It knows at once
// what it missed, and nothing that is gone is left.
func TestFault03Stopped(t *testing.T) {
	onBackends(t, func(r *rig) {
		moves := service("moves", 20, 0)
		r.put(moves, lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
		flows := r.flow(r.serviceFlows())
		agent, began, n := r.agents["n1"], time.Now(), 0
		r.ok(agent.Signal(unix.SIGSTOP))
		for ; time.Since(began) < lasts(time.Minute, 3*time.Second); n++ {
			r.put(moves, [][]lab.Endpoint{{lab.Ready(r.p3)}, {lab.Ready(r.p2), lab.Ready(r.p3)}, nil}[n%3]...)
			r.put(service(fmt.Sprint("new-", n), 30+n%100, 0), lab.Ready(r.p2))
			if n >= 3 {
				gone := service(fmt.Sprint("new-", n-3), 30+(n-3)%100, 0)
				r.cluster.RemoveService(gone)
				r.cluster.RemoveEndpoints(gone)
			}
			r.write()
			time.Sleep(30 * time.Millisecond)
		}
		r.put(moves, lab.Ready(r.p3))
		r.write()
		if err := r.still(20, r.p2); err != nil {
			r.Errorf("without the agent, what it left does not work: %v", err)
		}
		began = time.Now()
		r.ok(agent.Signal(unix.SIGCONT))
		r.comes(fmt.Sprintf("%d changes, since SIGCONT", n), began, 2*time.Second, func() error { return r.serves(20, r.p3) })
		for i := n - 3; i < n; i++ {
			r.eventually(eventBound, func() error { return r.serves(30+i%100, r.p2) })
		}
		r.eventually(eventBound, func() error { return r.serves(30 + (n-4)%100) })
		flows.stop()
		r.exactly()
	})
}

// A shortage takes something from a running agent that it needs, and gives it back.
type shortage struct {
	what  string
	begin func(*rig, *lab.Agent) (end func())
}

// limit is a shortage by a limit of the process, see setrlimit(2).
func limit(what string, resource int, value func(*rig, *lab.Agent) uint64) shortage {
	return shortage{what, func(r *rig, a *lab.Agent) func() {
		var old unix.Rlimit
		r.ok(unix.Prlimit(a.PID(), resource, nil, &old))
		r.ok(unix.Prlimit(a.PID(), resource, &unix.Rlimit{Cur: value(r, a), Max: old.Max}, nil))
		return func() {
			// The limit went with an agent that did not survive it.
			_ = unix.Prlimit(a.PID(), resource, &old, nil)
		}
	}}
}

var shortages = []shortage{
	limit("EMFILE", unix.RLIMIT_NOFILE, func(r *rig, a *lab.Agent) uint64 {
		var open map[string]bool // all the time: what comes and goes, as a child's pipes, would leave room for more
		for range 10 {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.PID()))
			r.ok(err)
			now := map[string]bool{}
			for _, e := range entries {
				now[e.Name()] = open == nil || open[e.Name()]
			}
			open = now
			time.Sleep(50 * time.Millisecond)
		}
		// Three are left, for a folder and its file to be read and for a question to /readyz. A child takes six.
		limit := uint64(0)
		for free := 0; free < 3; limit++ {
			if !open[fmt.Sprint(limit)] {
				free++
			}
		}
		return limit
	}),
	limit("RLIMIT_AS", unix.RLIMIT_AS, func(*rig, *lab.Agent) uint64 { return 1 << 20 }),
	{"no more processes", func(r *rig, a *lab.Agent) func() {
		// Limits of a user do not hold for root.
		const controller = "/sys/fs/cgroup/pids"
		dir, err := os.MkdirTemp(controller, filepath.Base(r.lab.Dir)+"-")
		if err != nil {
			r.Skipf("the kernel's pids controller (cgroup v1) is not to be had: %v", err)
		}
		write := func(file, text string) {
			r.Helper()
			r.ok(os.WriteFile(file, []byte(text), 0o644))
		}
		write(filepath.Join(dir, "cgroup.procs"), fmt.Sprint(a.PID()))
		text, err := os.ReadFile(filepath.Join(dir, "pids.current"))
		r.ok(err)
		write(filepath.Join(dir, "pids.max"), strings.TrimSpace(string(text)))
		return func() {
			write(filepath.Join(dir, "pids.max"), "max")
			text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			r.ok(err)
			for _, pid := range strings.Fields(string(text)) {
				_ = os.WriteFile(filepath.Join(controller, "cgroup.procs"), []byte(pid), 0o644) // it may have ended meanwhile
			}
			r.eventually(startBound, func() error { return os.Remove(dir) })
		}
	}},
}

// Fault 46: no file descriptors, no memory, no processes. What is in the kernel stays and works, and the agent is not ready, or
// has ended for Kubernetes to start it again; afterwards it is as it should be.
func TestFault46Shortage(t *testing.T) {
	for _, s := range shortages {
		t.Run(s.what, func(t *testing.T) {
			onBackends(t, func(r *rig) {
				r.put(service("moves", 20, 0), lab.Ready(r.p2))
				r.write()
				r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
				flows := r.flow(r.serviceFlows())
				agent := r.agents["n1"]
				end := s.begin(r, agent)
				r.put(service("moves", 20, 0), lab.Ready(r.p3))
				r.write()
				time.Sleep(lasts(time.Minute, 3*time.Second)) // so long it has for doing wrong
				if err := r.still(20, r.p2); err != nil {
					r.Errorf("what was in the kernel does not work any more: %v", err)
				}
				if status, body, err := r.n1.Get("http://127.0.0.1:10256/readyz", time.Second); err == nil && status == http.StatusOK {
					r.Errorf("it is ready: %s", body) // no answer is a sign as well
				}
				end()
				began := time.Now()
				select {
				case <-agent.Exited():
					r.Logf("the agent has ended (%s)", agent.State())
					began = time.Now()
					r.start(r.n1, agent.Options)
				default:
				}
				r.comes("since it has what it needs", began, 5*time.Second, func() error { return r.serves(20, r.p3) })
				r.ready(r.n1)
				r.Logf("%v failed Syncs", r.failures())
				flows.stop()
				r.exactly()
			})
		})
	}
}
