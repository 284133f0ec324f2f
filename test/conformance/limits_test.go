package conformance_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// seldom bounds what the agent does when it reads everything back: that takes a hundredth of one core at most, so on a busy machine
// it comes less often than the sync period says.
const seldom = 4 * soon

// The kernel remembers a limited number of clients for each endpoint, 100 unless the module was told otherwise. When there are
// more, the agent says so of the Service, with what would be right; kube-proxy loses them in silence.
func TestCase55MoreClientsThanRememberedAreToldBetterThanKubeProxy(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(sticky(web(10), 0), lab.Ready(s.p1))
		s.put(sticky(web(11), 0), lab.Ready(s.p1))
		clients := s.crowdOf(t, 120)
		s.start(t, lab.AgentOptions{Flags: []string{"--iptables-sync-period=1s"}})
		told := func(f cluster.Family) int {
			return strings.Count(s.agent.Output(), "AffinityListFull")
		}
		for i, f := range cluster.Families {
			had := s.choose(t, clients[f][:90], tcp(vip(f, 10), 80))
			s.choose(t, clients[f][:90], tcp(vip(f, 11), 80))
			s.stay(t, had, tcp(vip(f, 10), 80))
			if n := told(f); n != i {
				t.Errorf("%s: with 90 clients it was told %d times, want %d", f, n, i)
			}
			s.choose(t, clients[f], tcp(vip(f, 10), 80))
			ok(t, lab.Eventually(seldom, func() error {
				if n := told(f); n != i+1 {
					return fmt.Errorf("%s: with 120 clients it was told %d times:\n%s", f, n, s.agent.Output())
				}
				return nil
			}))
			kept, err := s.n1.Run("cat", "/proc/net/xt_recent/"+recentList(t, s, f))
			ok(t, err)
			if n := strings.Count(kept, "\n"); n != 100 {
				t.Errorf("%s: the kernel remembers %d clients, the test expects 100", f, n)
			}
		}
		notes, err := s.metrics("fairway_notes")
		ok(t, err)
		if n := notes[`{reason="AffinityListFull"}`]; n < 1 {
			t.Errorf("fairway_notes says %v", notes)
		}
		if strings.Contains(s.agent.Output(), `AffinityListFull" object="Service default/web-11"`) {
			t.Errorf("it is said of a Service with 90 clients, too:\n%s", s.agent.Output())
		}
	})
}

// recentList returns the name of the list of web-10's endpoint.
func recentList(t *testing.T, s *stage, f cluster.Family) string {
	t.Helper()
	for _, line := range lines(s.save(t, f), "--rcheck") {
		if strings.Contains(line, "default/web-10:") {
			_, rest, _ := strings.Cut(line, "--name ")
			name, _, _ := strings.Cut(rest, " ")
			return name
		}
	}
	t.Fatal("there is no affinity rule of web-10")
	return ""
}

// Everything flushed, in all tables or in nat alone, comes back within the sync period and a little; rules of others are not
// asked for.
func TestCase65Flush(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(nodePort(web(10), port), lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(web(11))
		s.start(t, lab.AgentOptions{Flags: []string{"--iptables-sync-period=1s"}})
		flush := func(tables ...string) {
			t.Helper()
			for _, f := range cluster.Families {
				for _, table := range tables {
					_, err := s.n1.Run(lab.Tool(s.backend, f, ""), "-w", "5", "-t", table, "-F")
					ok(t, err)
				}
			}
		}
		flush("mangle") // which makes that table
		rules := s.saveBoth(t)
		for _, tables := range [][]string{{"nat", "filter", "mangle"}, {"nat"}, {"filter"}} {
			start := time.Now()
			flush(tables...)
			ok(t, lab.Eventually(soon, func() error {
				if now := s.saveBoth(t); now != rules {
					return fmt.Errorf("the rules were\n%s\nand are\n%s", rules, now)
				}
				return nil
			}))
			t.Logf("%v: back after %v", tables, time.Since(start).Round(time.Millisecond))
			onFamilies(t, func(t *testing.T, f cluster.Family) {
				sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
				sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1", "p3"))
				ends(t, s.p2.Namespace, tcp(vip(f, 11), 80), lab.Refused)
			})
		}
	})
}

// While somebody holds the xtables lock for less than it waits, a sync just takes longer, and nothing fails. What happens
// when it is held for longer is TestLockHeld.
func TestCase66LockHeldForAWhile(t *testing.T) {
	t.Parallel()
	s := newStage(t, lab.Legacy)
	svc := web(10)
	s.put(svc, lab.Ready(s.p1))
	s.startOn(t, lab.AgentOptions{}, s.n1)
	lock := s.holdLock(t)
	s.cluster.SetEndpoints(svc, lab.Ready(s.p2))
	s.write(t)
	time.Sleep(3 * time.Second) // the case's; iptables-restore waits for five
	for _, f := range cluster.Families {
		sees(t, s.p1.Namespace, tcp(vip(f, 10), 80), s.hairpin(f, "p1"))
	}
	ok(t, lock.Close())
	for _, f := range cluster.Families {
		comesToSee(t, s.p1.Namespace, tcp(vip(f, 10), 80), saw(s.p1.Addr(f), "p2"))
	}
	failures, err := s.metrics("fairway_sync_errors_total")
	ok(t, err)
	for _, f := range cluster.Families {
		if n := failures[part(f)]; n > 0 {
			t.Errorf("%s: %v syncs failed:\n%s", f, n, s.agent.Output())
		}
	}
}

// hairpin is the view of a pod that reaches itself.
func (s *stage) hairpin(f cluster.Family, name string) view { return saw(s.gateway(f), name) }

// group is the line of a chain that picks one of a group of endpoints.
var group = regexp.MustCompile(`(?m)^:KUBE-SVC-[A-Z2-7]{16}-[0-9a-f]{2} `)

// With more endpoints than a large cluster has (1,000), everything works, and the chains of a deleted Service are gone at once.
func TestCase69ManyEndpoints(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		crowd, svc := web(10), web(11)
		var many []lab.Endpoint
		for i := range 1200 {
			many = append(many, lab.Endpoint{Addrs: addrs(fmt.Sprintf("10.244.%d.%d", 100+i/200, 2+i%200), fmt.Sprintf("fd00:10:244:%x::%x", 100+i/200, 2+i%200)),
				NodeName: fmt.Sprint("n", 100+i/200), Ready: true, Serving: true})
		}
		s.put(crowd, many...)
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(nodePort(web(12), port), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			if n := len(targets(s.save(t, f))); n != 1203 {
				t.Errorf("there are %d targets, want 1203", n)
			}
			sees(t, s.p2.Namespace, tcp(vip(f, 11), 80), saw(s.p2.Addr(f), "p1", "p3"))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1"))
		})
		s.cluster.RemoveService(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			ok(t, lab.Eventually(soon, func() error {
				save := s.save(t, f)
				if found := lines(save, vip(f, 11).String()); len(found) > 0 {
					return fmt.Errorf("rules of a deleted Service: %v", found)
				}
				// Two Services, perhaps a part of a tree; and the groups of the crowd's endpoints.
				if n, groups := strings.Count(save, ":KUBE-SVC-"), len(group.FindAllString(save, -1)); n-groups > 3 || groups > 64 {
					return fmt.Errorf("%d chains KUBE-SVC-, %d of them groups of endpoints", n, groups)
				}
				return nil
			}))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1"))
		})
	})
}
