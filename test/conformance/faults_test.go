package conformance_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// refusing stands in for an iptables-restore on a kernel that refuses the rules that the pattern in the file next to it matches,
// for as long as that exists. What it says then is what the real one of each backend says.
const refusing = `#!/bin/sh
input=$(cat)
[ -e '%[1]s' ] && line=$(printf '%%s\n' "$input" | grep -n -f '%[1]s' | head -n 1 | cut -d : -f 1)
if [ -n "$line" ]; then
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
		ok(t, os.WriteFile(armed, []byte("default/cursed\n"), 0o644))
		first, cursed := web(10), checked(lab.Service("cursed", vips(66), lab.TCPPort("http", 80, target)), healthPort)
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
			comesToSay(t, s.n1.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("cursed", 0))
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
			comesToSay(t, s.n1.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("cursed", 1))
		})
		s.comesToQuarantine(t, 0)
	})
}

// While the agent finds out which of many Services that change at once the kernel refuses, no connection fails: not to the others,
// and not to the one in question, which keeps the rules of its older value; and so it stays, until the kernel takes the new one.
func TestSearchFailsNoConnection(t *testing.T) {
	const others = 40
	onBackends(t, func(t *testing.T, s *stage) {
		path, armed := s.standIn(t, refusing)
		for i := range others {
			s.put(web(10+i), lab.Ready(s.p2))
		}
		cursed := lab.Service("cursed", vips(66), lab.TCPPort("http", 80, target))
		s.put(cursed, lab.Ready(s.p2), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: forwarding, Env: []string{path}})
		ok(t, os.WriteFile(armed, []byte("-m recent .*cursed\ncursed.* -m recent\n"), 0o644)) // a kernel without xt_recent, for one Service
		probers := map[string]*lab.Prober{}
		for _, n := range []int{10, 10 + others/2, 9 + others, 66} {
			for _, f := range cluster.Families {
				ask := tcp(vip(f, n), 80)
				ask.Timeout = soon
				p, err := s.p1.Probe(lab.ProbeConfig{Dial: ask, Rate: 125, NoRepeats: true})
				ok(t, err)
				probers[fmt.Sprintf("%s Service %d", f, n)] = p
			}
		}
		for i := range others {
			s.put(web(10+i), lab.Ready(s.p3))
		}
		cursed.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.put(cursed, lab.Ready(s.p2), lab.Ready(s.p3))
		s.write(t)
		s.comesToQuarantine(t, 1)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for i := range others {
				comesToSee(t, s.p1.Namespace, tcp(vip(f, 10+i), 80), saw(s.p1.Addr(f), "p3"))
			}
		})
		if said := s.agent.Output(); !strings.Contains(said, "the Service keeps the IPv4 rules") || !strings.Contains(said, "the Service keeps the IPv6 rules") {
			t.Errorf("the agent does not say that the Service keeps its rules:\n%s", said)
		}
		ok(t, os.Remove(armed))
		cursed.Spec.Ports[0].Name = "web"
		s.put(cursed, lab.Ready(s.p2), lab.Ready(s.p3))
		s.write(t)
		s.comesToQuarantine(t, 0)
		for name, p := range probers {
			r := p.Stop()
			t.Logf("%s: %s", name, r)
			if r.Failed() > 0 || r.Attempts < 50 {
				t.Errorf("%s: %s, want none failed", name, r)
			}
		}
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
