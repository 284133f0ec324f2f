package conformance_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// refusing stands in for an iptables-restore on a kernel that refuses the rules of one Service, default/cursed, for as long
// as the file next to it exists. What it says then is what the real one of each backend says.
const refusing = `#!/bin/sh
input=$(cat)
line=$(printf '%%s\n' "$input" | grep -n default/cursed | head -n 1 | cut -d : -f 1)
if [ -n "$line" ] && [ -e '%[1]s' ]; then
	case $0 in
	*nft*) echo "iptables-restore v1.8.9 (nf_tables):
line $line: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SERVICES" >&2; exit 4 ;;
	*) echo "iptables-restore: line $(printf '%%s\n' "$input" | wc -l) failed" >&2; exit 1 ;;
	esac
fi
printf '%%s\n' "$input" | exec '%[2]s' "$@"
`

// standIn puts a script in place of both families' iptables-restore. The script is given the file that arms it, which does not exist
// yet, and the real program. It returns the environment variable for the agent, and the file.
func (s *stage) standIn(t *testing.T, script string) (path, armed string) {
	t.Helper()
	bin := filepath.Join(s.Dir, "bin")
	ok(t, os.Mkdir(bin, 0o755))
	armed = filepath.Join(bin, "armed")
	for _, f := range cluster.Families {
		name := lab.Tool(s.backend, f, "-restore")
		original, err := exec.LookPath(name)
		ok(t, err)
		ok(t, os.WriteFile(filepath.Join(bin, name), fmt.Appendf(nil, script, armed, original), 0o755))
	}
	return "PATH=" + bin + ":" + os.Getenv("PATH"), armed
}

// holdLock takes the xtables lock of n1; to close the file gives it back.
func (s *stage) holdLock(t *testing.T) *os.File {
	t.Helper()
	lock, err := os.OpenFile(s.n1.LockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	ok(t, err)
	t.Cleanup(func() { lock.Close() })
	ok(t, lab.Eventually(soon, func() error { return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) }))
	return lock
}

// A Service whose rules the kernel refuses is left out, and nothing else is: what changes at the same time arrives. When
// the Service is another and the kernel takes it, it is let in.
func TestQuarantine(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		path, armed := s.standIn(t, refusing)
		ok(t, os.WriteFile(armed, nil, 0o644))
		first, cursed := web(10), lab.Service("cursed", vips(66), lab.TCPPort("http", 80, target))
		s.put(first, lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{Flags: forwarding, Env: []string{path}}, s.n1)
		s.put(first, lab.Ready(s.p2))
		s.put(cursed, lab.Ready(s.p1))
		s.put(web(11), lab.Ready(s.p1))
		s.put(web(12))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
			comesToSee(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.p1.Addr(f), "p2"))
			ends(t, s.p1.Namespace, tcp(vip(f, 12), 80), lab.Refused)
			s.leavesAlone(t, s.p1.Namespace, tcp(vip(f, 66), 80))
		})
		s.comesToQuarantine(t, 1)
		if said := s.agent.Output(); !strings.Contains(said, "default/cursed") || !strings.Contains(said, cluster.ReasonQuarantined) {
			t.Errorf("the agent does not say which Service is in quarantine:\n%s", said)
		}
		ok(t, os.Remove(armed))
		cursed.Spec.Ports[0].Port = 81
		s.cluster.SetService(cursed)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 66), 81), saw(s.p2.Addr(f), "p1"))
		})
		s.comesToQuarantine(t, 0)
	})
}

func (s *stage) comesToQuarantine(t *testing.T, want float64) {
	t.Helper()
	ok(t, lab.Eventually(soon, func() error {
		have, err := s.metrics("fairway_quarantined_services")
		if err == nil && have[""] != want {
			err = fmt.Errorf("fairway_quarantined_services is %v, want %v", have, want)
		}
		return err
	}))
}

// A folder with a broken file keeps the last good state and says where it is broken; what changed meanwhile arrives once
// it is whole again.
func TestBrokenManifest(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{Flags: forwarding}, s.n1)
		broken := filepath.Join(s.cluster.Dir, "broken.yaml")
		ok(t, os.WriteFile(broken, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: half\n"), 0o644))
		ok(t, lab.Eventually(soon, func() error {
			if !strings.Contains(s.agent.Output(), "broken.yaml:") {
				return fmt.Errorf("the agent does not name the file and line:\n%s", s.agent.Output())
			}
			return nil
		}))
		s.cluster.RemoveService(web(10))
		s.put(web(11), lab.Ready(s.p1))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 11), 80))
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
		})
		ok(t, os.Remove(broken))
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 10), 80))
		})
	})
}

// While another process holds the xtables lock, the rules stay as they are; the agent gives up waiting, says who holds it,
// and tries again, so that every change arrives once the lock is free. Only legacy has that lock.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	s := newStage(t, lab.Legacy)
	svc := web(10)
	s.put(svc, lab.Ready(s.p1))
	s.startOn(t, lab.AgentOptions{}, s.n1)
	lock := s.holdLock(t)
	s.cluster.SetEndpoints(svc, lab.Ready(s.p2))
	s.put(web(11), lab.Ready(s.p1))
	s.write(t)
	for _, f := range cluster.Families {
		ok(t, lab.Eventually(2*soon, func() error {
			failures, err := s.metrics("fairway_sync_errors_total")
			if err == nil && failures[part(f)] < 1 {
				err = fmt.Errorf("the agent still waits for the lock: %v", failures)
			}
			return err
		}))
	}
	if holder := fmt.Sprintf("holder: pid %d", os.Getpid()); !strings.Contains(s.agent.Output(), holder) {
		t.Errorf("the agent does not say %q:\n%s", holder, s.agent.Output())
	}
	onFamilies(t, func(t *testing.T, f cluster.Family) {
		sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
	})
	ok(t, lock.Close())
	onFamilies(t, func(t *testing.T, f cluster.Family) {
		comesToSee(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.p1.Addr(f), "p2"))
		comesToSee(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1"))
	})
}
