package conformance_test

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// foreign are rules of others on the node, among them those that kubelet keeps. NET stands for a network.
const foreign = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:HOUSE-MARKS - [0:0]
-A FORWARD -s NET -j HOUSE-MARKS
-A HOUSE-MARKS -m comment --comment "not fairway's" -j MARK --set-xmark 0x1/0x1
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:HOUSE-RULES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -s NET -j HOUSE-RULES
-A HOUSE-RULES -p tcp -m tcp --dport 25 -m comment --comment "no mail" -j DROP
-A KUBE-FIREWALL ! -s LOOPBACK -d LOOPBACK -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:HOUSE-NAT - [0:0]
-A POSTROUTING -s NET -j HOUSE-NAT
-A HOUSE-NAT -m comment --comment "the guest network" -j MASQUERADE
COMMIT
`

// restoreForeign loads the foreign rules into n1 and returns what both families hold then.
func (s *stage) restoreForeign(t *testing.T) string {
	t.Helper()
	for f, r := range foreignNetworks {
		ok(t, s.n1.Restore(s.backend, f, r.Replace(foreign), true))
	}
	return s.saveBoth(t)
}

// restoreForeignNAT loads a family's foreign rules in nat alone.
func (s *stage) restoreForeignNAT(t *testing.T, f cluster.Family) {
	t.Helper()
	ok(t, s.n1.Restore(s.backend, f, foreignNetworks[f].Replace(foreign[strings.Index(foreign, "*nat\n"):]), true))
}

var foreignNetworks = map[cluster.Family]*strings.Replacer{
	cluster.IPv4: strings.NewReplacer("NET", "203.0.113.0/24", "LOOPBACK", "127.0.0.0/8"),
	cluster.IPv6: strings.NewReplacer("NET", "2001:db8:1::/48", "LOOPBACK", "::1/128"),
}

func (s *stage) saveBoth(t *testing.T) string {
	t.Helper()
	return s.save(t, cluster.IPv4) + s.save(t, cluster.IPv6)
}

// An agent that is killed and started again under load costs no connection. It finds everything as it should be and writes
// nothing; what others have on the node stays byte for byte.
func TestCase67Restart(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.restoreForeign(t)
		s.put(nodePort(web(10), port), lab.Ready(s.p1), lab.Ready(s.p3))
		s.put(web(11))
		s.start(t, lab.AgentOptions{})
		sees(t, s.p2.Namespace, tcp(vip(cluster.IPv6, 10), 80), saw(s.p2.Addr(cluster.IPv6), "p1", "p3"))
		rules, counters := s.saveBoth(t), s.counters(t)

		vip := vip(cluster.IPv4, 10)
		// A connection that finds the rules incomplete goes astray or is refused. If its SYN is repeated in time it succeeds
		// all the same, so what counts is that none arrives at the router.
		astray, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == vip })
		ok(t, err)
		load := map[string]*lab.Prober{
			"pod to VIP":           probe(t, s.p2.Namespace, tcp(vip, 80)),
			"outside to node port": probe(t, s.c.Namespace, tcp(s.n1.Addr(cluster.IPv4), port)),
		}
		restarts := 0
		for start := time.Now(); restarts < 5 || time.Since(start) < 12*time.Second; restarts++ {
			s.agent.Kill()
			s.startOn(t, s.agent.Options, s.n1)
			time.Sleep(500 * time.Millisecond) // under load, for the agent to do what it should not
			s.wroteNothing(t)
		}
		for name, p := range load {
			r := p.Stop()
			t.Logf("%d restarts, %s: %v", restarts, name, r)
			if r.Failed() > 0 {
				t.Errorf("%s: %v", name, r)
			}
		}
		if n := astray.Count(); n > 0 {
			t.Errorf("%d packets to the VIP went to the router: %v", n, astray.Packets()[0])
		}
		if now := s.saveBoth(t); now != rules {
			t.Errorf("the rules were\n%s\nand are\n%s", rules, now)
		}
		s.keptCounters(t, counters)
	})
}

func probe(t *testing.T, ns *lab.Namespace, d lab.Dial) *lab.Prober {
	t.Helper()
	d.Timeout = 10 * time.Second
	p, err := ns.Probe(lab.ProbeConfig{Dial: d, Rate: 200})
	ok(t, err)
	return p
}

// wroteNothing fails the test when the agent on n1 has written anything since it started.
func (s *stage) wroteNothing(t *testing.T) {
	t.Helper()
	writes, err := s.metrics("fairway_sync_writes_total")
	ok(t, err)
	for part, n := range writes {
		if n > 0 {
			t.Errorf("after a restart with nothing changed the agent wrote %v times: %s\n%s", n, part, s.agent.Output())
		}
	}
}

var counted = regexp.MustCompile(`(?m)^\[(\d+):\d+\] (-A .*)$`)

// counters returns how many packets each rule of the services has counted. A rule that is written again begins at zero.
func (s *stage) counters(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, f := range cluster.Families {
		text, err := s.n1.Run(lab.Tool(s.backend, f, "-save"), "-c")
		ok(t, err)
		for _, m := range counted.FindAllStringSubmatch(text, -1) {
			n, err := strconv.Atoi(m[1])
			ok(t, err)
			out[f.String()+" "+m[2]] += n
		}
	}
	return out
}

// keptCounters fails the test unless all rules still have what they had counted before.
func (s *stage) keptCounters(t *testing.T, before map[string]int) {
	t.Helper()
	now, used := s.counters(t), 0
	for rule, n := range before {
		if n > 0 && strings.Contains(rule, "-A KUBE-S") {
			used++
		}
		if now[rule] < n {
			t.Errorf("the rule was written again, it had counted %d packets and has %d: %s", n, now[rule], rule)
		}
	}
	if used < 4 {
		t.Errorf("only %d rules of services had counted packets", used)
	}
}

// A hundred changes within a second lead to three restores at most, and to the last state.
func TestCase68Burst(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := web(10)
		s.put(svc, lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		before := s.writes(t)
		start := time.Now()
		ticker := time.NewTicker(9 * time.Millisecond)
		defer ticker.Stop()
		var last lab.Endpoint
		for i := range 100 {
			<-ticker.C
			last = lab.Endpoint{Addrs: addrs(fmt.Sprint("10.244.2.", 100+i), fmt.Sprint("fd00:10:244:2::", 100+i)), NodeName: "n2", Ready: true, Serving: true}
			s.cluster.SetEndpoints(svc, lab.Ready(s.p3), last)
			s.write(t)
		}
		took := time.Since(start)
		for i, f := range cluster.Families {
			want := []string{netip.AddrPortFrom(last.Addrs[i], target).String(), netip.AddrPortFrom(s.p3.Addr(f), target).String()}
			slices.Sort(want)
			ok(t, lab.Eventually(soon, func() error {
				if have := targets(s.save(t, f)); !slices.Equal(have, want) {
					return fmt.Errorf("targets are %v, want %v", have, want)
				}
				return nil
			}))
		}
		ok(t, s.agent.WaitReady(soon))
		after := s.writes(t)
		// Three for every second that it took: a busy machine may not manage it in one.
		most := 3 * (1 + float64(took.Milliseconds()/1100))
		for _, f := range cluster.Families {
			n := after[part(f)] - before[part(f)]
			t.Logf("%s: 100 changes in %v, %v restores", f, took.Round(time.Millisecond), n)
			if n < 1 || n > most {
				t.Errorf("%s: %v restores for 100 changes in %v, want 1 to %v", f, n, took, most)
			}
		}
	})
}

func (s *stage) writes(t *testing.T) map[string]float64 {
	t.Helper()
	writes, err := s.metrics("fairway_sync_writes_total")
	ok(t, err)
	return maps.Clone(writes)
}

var destination = regexp.MustCompile(`--to-destination (\S+)`)

// targets lists where rules translate to, sorted.
func targets(rules string) (out []string) {
	for _, m := range destination.FindAllStringSubmatch(rules, -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return out
}

// Cleanup removes everything of ours and nothing else: service addresses and node ports stop working, the routes are gone, and
// what kubelet and others have stays byte for byte. It can be run again.
func TestCase70Cleanup(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		untouched := s.restoreForeign(t)
		s.put(nodePort(web(10), port), lab.Ready(s.p1))
		s.put(web(11))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), s.masqueraded(f, "p1"))
			ends(t, s.p2.Namespace, tcp(vip(f, 11), 80), lab.Refused)
		})
		ok(t, s.agent.Stop(soon))
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			sees(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1")) // without the agent
		})
		bin, err := lab.AgentBinary()
		ok(t, err)
		for _, args := range [][]string{{"cleanup", "--iptables-backend=" + string(s.backend)}, {"cleanup"}} {
			out, err := s.n1.Run(bin, args...)
			ok(t, err)
			t.Logf("%v: %s", args, strings.TrimSpace(out))
			if now := s.saveBoth(t); now != untouched {
				t.Errorf("%v left\n%s\nwant\n%s", args, now, untouched)
			}
			for _, family := range []string{"-4", "-6"} {
				if left, err := s.n1.Run("ip", family, "route", "show", "table", "all", "proto", "102"); err != nil || left != "" {
					t.Errorf("%v left the routes %q, %v", args, left, err)
				}
			}
		}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 10), 80))
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(f, 11), 80))
			ends(t, s.c.Namespace, tcp(s.n1.Addr(f), port), lab.Refused)
		})
	})
}
