package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// standIn stands in for iptables-restore and does what the file "mode" next to it says: nothing special when that is empty.
// Each run is a line of the file "calls". What it says when it refuses a Service is what the real one of each backend says.
const standIn = `#!/bin/sh
mode=$(cat '%[1]s/mode')
echo "$mode" >>'%[1]s/calls'
case $mode in
exit*) echo 'an injected fault' >&2; exit ${mode#exit } ;;
segfault) kill -SEGV $$ ;;
hang) exec sleep 3600 ;;
refuse*)
	input=$(cat)
	line=$(printf '%%s\n' "$input" | grep -n "${mode#refuse }" | head -n 1 | cut -d : -f 1)
	if [ -n "$line" ]; then
		case $0 in
		*nft*) echo "line $line: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SERVICES" >&2; exit 4 ;;
		*) echo "iptables-restore: line $(printf '%%s\n' "$input" | wc -l) failed" >&2; exit 1 ;;
		esac
	fi
	printf '%%s\n' "$input" | exec '%[2]s' "$@" ;;
esac
exec '%[2]s' "$@"
`

// tools are the programs of an agent, in a folder that is its whole PATH.
type tools struct {
	*rig
	dir string
}

// tools starts the agent of n1 again with a folder of links to the real programs as its PATH, and with stand-ins for both
// families' iptables-restore.
func (r *rig) tools() *tools {
	r.Helper()
	t := &tools{r, filepath.Join(r.lab.Dir, "bin")}
	r.ok(os.Mkdir(t.dir, 0o755))
	for _, f := range cluster.Families {
		for _, tool := range []string{"", "-save", "-restore"} {
			name := lab.Tool(r.backend, f, tool)
			original, err := exec.LookPath(name)
			r.ok(err)
			if tool == "-restore" {
				r.ok(os.WriteFile(filepath.Join(t.dir, name), fmt.Appendf(nil, standIn, t.dir, original), 0o755))
			} else {
				r.ok(os.Symlink(original, filepath.Join(t.dir, name)))
			}
		}
	}
	for _, name := range []string{"cat", "sleep", "grep", "head", "cut", "wc"} {
		original, err := exec.LookPath(name)
		r.ok(err)
		r.ok(os.Symlink(original, filepath.Join(t.dir, name)))
	}
	t.mode("")
	r.again(func(o *lab.AgentOptions) { o.Env = append(o.Env, "PATH="+t.dir) })
	return t
}

// mode sets what the stand-ins do from now on, and forgets their calls.
func (t *tools) mode(mode string) {
	t.Helper()
	tmp := filepath.Join(t.dir, "mode.new")
	t.ok(os.WriteFile(tmp, []byte(mode), 0o644))
	t.ok(os.Rename(tmp, filepath.Join(t.dir, "mode")))
	t.ok(os.WriteFile(filepath.Join(t.dir, "calls"), nil, 0o644))
}

// calls counts the runs since the mode was set.
func (t *tools) calls() int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(t.dir, "calls"))
	t.ok(err)
	return strings.Count(string(text), "\n")
}

// failures counts the failed Syncs of the rules of n1.
func (r *rig) failures() (n float64) {
	r.Helper()
	for _, f := range cluster.Families {
		n += r.metric(r.n1, fmt.Sprintf(`fairway_sync_errors_total{part="rules-%s"}`, f))
	}
	return n
}

// fails waits until the Syncs of both families have failed again, some times, and says that the agent is not ready.
func (r *rig) fails(times int) {
	r.Helper()
	before := r.failures()
	r.eventually(lookBound, func() error {
		if n := r.failures() - before; n < float64(2*times) {
			return fmt.Errorf("%v failures, want %d", n, 2*times)
		}
		return r.unready(r.n1)
	})
}

// Fault 5: the kernel refuses the rules of one Service. All others are applied, and the one is named.
func TestFault05RefusedService(t *testing.T) {
	onBackends(t, func(r *rig) {
		tools := r.tools()
		flows := r.flow(r.serviceFlows())
		tools.mode("refuse default/cursed")
		began := time.Now()
		r.put(service("cursed", 66, 0), lab.Ready(r.p2))
		r.put(service("other", 20, 0), lab.Ready(r.p3))
		r.write()
		r.comes("the other Service is served", began, time.Second, func() error { return r.serves(20, r.p3) })
		r.eventually(eventBound, func() error {
			return r.said(r.n1, 0, note{"Service default/cursed", cluster.ReasonQuarantined, ""})
		})
		if n := r.metric(r.n1, "fairway_quarantined_services"); n != 1 {
			r.Errorf("%v Services are in quarantine, want 1", n)
		}
		r.ready(r.n1) // it has done all that it can
		tools.mode("")
		cursed := service("cursed", 66, 0)
		cursed.Spec.SessionAffinity = "ClientIP"
		r.put(cursed, lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(66, r.p2) })
		flows.stop()
	})
}

// Fault 6: iptables-restore fails in every way. What is in the kernel stays and works, the agent is not ready and says why,
// tries again at growing distances, and is done soon after the fault is over.
func TestFault06RestoreFails(t *testing.T) {
	onBackends(t, func(r *rig) {
		r.restoreFails(2, map[string]string{
			"exit 1":   "exit status 1: an injected fault",
			"exit 2":   "exit status 2: an injected fault",
			"exit 4":   "exit status 4: an injected fault",
			"segfault": "signal: segmentation fault",
		})
	})
}

// Fault 6: iptables-restore hangs. The agent ends it after half a minute, and tries again.
func TestFault06RestoreHangs(t *testing.T) {
	onBackends(t, func(r *rig) { r.restoreFails(1, map[string]string{"hang": "killed"}) })
}

// blamedBound is less than the minute after which a Service in quarantine is tried again, and more than a retry takes.
const blamedBound = 45 * time.Second

// restoreFails makes iptables-restore fail in ways, one after the other, each until both families' Syncs have failed some times.
// For each there is what the agent should say.
func (r *rig) restoreFails(times int, ways map[string]string) {
	tools := r.tools()
	flows := r.flow(r.serviceFlows())
	was, next := r.p2, r.p3
	r.put(service("moves", 20, 0), lab.Ready(was))
	r.write()
	r.eventually(eventBound, func() error { return r.serves(20, was) })
	for mode, says := range ways {
		before := r.failures()
		tools.mode(mode)
		r.put(service("moves", 20, 0), lab.Ready(next))
		r.write()
		r.fails(times)
		if body := r.readyz(r.n1); !strings.Contains(body, says) {
			r.Errorf("%s: /readyz says %q, want the reason %q", mode, body, says)
		}
		if err := r.still(20, was); err != nil {
			r.Errorf("%s: what was in the kernel does not work any more: %v", mode, err)
		}
		// Each failed Sync may look for a culprit, and that is all.
		calls, most := tools.calls(), 6*(r.failures()-before+2)
		if float64(calls) > most {
			r.Errorf("%s: %d runs, want at most %v", mode, calls, most)
		}
		r.Logf("%s: %d runs in %v failed Syncs", mode, calls, r.failures()-before)
		tools.mode("")
		over := time.Now()
		r.comes(mode+", since it is over", over, 4*time.Second, func() error { return r.serves(20, next) })
		if took := time.Since(over); took > blamedBound {
			r.Errorf("%s: after %s: the Service was blamed for it", mode, took)
		}
		r.ready(r.n1)
		was, next = next, was
	}
	flows.stop()
}

// Fault 7: another program holds the xtables lock, for a moment and for long. What is in the kernel works, the agent names who
// holds the lock, and nothing that changed meanwhile is lost. iptables-nft has no such lock: changes arrive.
func TestFault07LockHeld(t *testing.T) {
	onBackends(t, func(r *rig) {
		flows := r.flow(r.serviceFlows())
		for i, held := range []time.Duration{time.Second, 10 * time.Second, lasts(time.Minute, 0)} {
			if held == 0 {
				continue
			}
			lock, err := os.OpenFile(r.n1.LockFile(), os.O_CREATE|os.O_RDWR, 0o600)
			r.ok(err)
			defer lock.Close()
			r.eventually(eventBound, func() error { return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
			taken, n := time.Now(), 20+2*i
			r.put(service("first", n, 0), lab.Ready(r.p2))
			r.write()
			time.Sleep(held / 2)
			r.put(service("first", n, 0), lab.Ready(r.p3))
			r.put(service("second", n+1, 0), lab.Ready(r.p2))
			r.write()
			all := func() error {
				return errors.Join(r.serves(n, r.p3), r.serves(n+1, r.p2))
			}
			if r.backend == lab.NFT {
				r.eventually(eventBound, all)
			}
			time.Sleep(held - time.Since(taken))
			if holder := fmt.Sprintf("holder: pid %d", os.Getpid()); r.backend == lab.Legacy && held > time.Second {
				if body := r.readyz(r.n1); !strings.Contains(body, holder) && !strings.Contains(r.agents["n1"].Output(), holder) {
					r.Errorf("neither /readyz nor the log says %q: %s", holder, body)
				}
				if err := r.unready(r.n1); err != nil {
					r.Error(err)
				}
			}
			r.ok(lock.Close())
			if r.backend == lab.Legacy {
				r.comes(fmt.Sprintf("held for %v, since it is free", held), time.Now(), 2*time.Second, all)
			}
			r.ready(r.n1)
		}
		flows.stop()
		r.exactly()
	})
}

// Fault 14: a program vanishes while the agent runs. The reason is told, what is in the kernel works, and the agent goes on when
// it is back.
func TestFault14ProgramVanishes(t *testing.T) {
	onBackends(t, func(r *rig) {
		tools := r.tools()
		flows := r.flow(r.serviceFlows())
		names := []string{lab.Tool(r.backend, cluster.IPv4, "-restore"), lab.Tool(r.backend, cluster.IPv6, "-restore")}
		for _, name := range names {
			r.ok(os.Rename(filepath.Join(tools.dir, name), filepath.Join(tools.dir, name+".gone")))
		}
		r.put(service("new", 20, 0), lab.Ready(r.p2))
		r.write()
		r.fails(2)
		for _, name := range names {
			if body := r.readyz(r.n1); !strings.Contains(body, name+": no such file or directory") {
				r.Errorf("/readyz does not say that %s is missing: %s", name, body)
			}
			r.ok(os.Rename(filepath.Join(tools.dir, name+".gone"), filepath.Join(tools.dir, name)))
		}
		r.comes("since the program is back", time.Now(), 4*time.Second, func() error { return r.serves(20, r.p2) })
		flows.stop()
	})
}

// Fault 14: no program of iptables is there when the agent starts. Routes are kept, the reason is told, and the agent ends when
// they are back, to be started with them.
func TestFault14NoProgramsAtStart(t *testing.T) {
	onBackends(t, func(r *rig) {
		tools := r.tools()
		flows := r.flow(r.serviceFlows())
		gone := tools.dir + ".gone"
		r.ok(os.Rename(tools.dir, gone))
		o := r.agents["n1"].Options
		r.ok(r.agents["n1"].Stop(startBound))
		agent := r.start(r.n1, o)
		r.eventually(startBound, func() error {
			body := r.readyz(r.n1)
			if want := lab.Tool(r.backend, cluster.IPv4, "") + " is not in PATH"; !strings.Contains(body, "no usable iptables") || !strings.Contains(body, want) {
				return fmt.Errorf("/readyz does not say that no iptables is usable, and %q: %s", want, body)
			}
			return r.unready(r.n1)
		})
		r.ip(r.n1, "route del "+r.n3.PodCIDRs[0].String()) // no flow goes there
		r.eventually(startBound, func() error { return r.exact(r.n1) })
		r.ok(os.Rename(gone, tools.dir))
		select {
		case <-agent.Exited():
		case <-time.After(2 * lookBound):
			r.Fatalf("the agent goes on without iptables although it is there: %s", agent.Output())
		}
		if out := agent.Output(); !strings.Contains(out, "iptables works now") {
			r.Errorf("the agent does not say why it ended: %s", out)
		}
		r.start(r.n1, o)
		r.ready(r.n1)
		flows.stop()
		r.exactly()
	})
}

// Fault 14: a match is missing. Only the Service that needs it is left out, with the reason; with the match there, it is served.
func TestFault14MatchMissing(t *testing.T) {
	onBackends(t, func(r *rig) {
		const installed = "/usr/lib/*/xtables/*.so"
		libs, err := filepath.Glob(installed)
		r.ok(err)
		if len(libs) == 0 {
			r.Fatalf("iptables has no extensions in %s", installed)
		}
		dir := filepath.Join(r.lab.Dir, "xtables")
		r.ok(os.Mkdir(dir, 0o755))
		recent := filepath.Join(dir, "libxt_recent.so")
		var original string
		for _, lib := range libs {
			if filepath.Base(lib) == filepath.Base(recent) {
				original = lib
				continue
			}
			r.ok(os.Symlink(lib, filepath.Join(dir, filepath.Base(lib))))
		}
		r.again(func(o *lab.AgentOptions) { o.Env = append(o.Env, "XTABLES_LIBDIR="+dir) })
		flows := r.flow(r.serviceFlows())
		sticky := service("sticky", 20, 0)
		sticky.Spec.SessionAffinity = "ClientIP"
		r.put(sticky, lab.Ready(r.p2))
		r.put(service("other", 21, 0), lab.Ready(r.p2))
		r.write()
		began := time.Now()
		r.comes("the other Service is served", began, time.Second, func() error { return r.serves(21, r.p2) })
		r.eventually(eventBound, func() error {
			return r.said(r.n1, 0, note{"Service default/sticky", cluster.ReasonQuarantined, "recent"})
		})
		r.ok(os.Symlink(original, recent))
		sticky.Spec.Ports[0].Port++ // another value, so it is tried at once
		r.put(sticky, lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error {
			return answers(r.p1.Namespace, to(lab.UDP, vip(cluster.IPv4, 20), webPort), r.p2)
		})
		flows.stop()
	})
}
