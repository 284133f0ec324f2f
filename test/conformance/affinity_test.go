package conformance_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// crowdSize is how many addresses a crowd has. With three endpoints, chance gives all of them the same one, or the same
// ones as before, less than once in 10^10 times.
const crowdSize = 24

// sticky gives a Service the session affinity ClientIP for some seconds; zero is the API's default of three hours.
func sticky(svc *corev1.Service, seconds int32) *corev1.Service {
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	if seconds > 0 {
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return svc
}

// crowd gives the client c more addresses and returns them by family. To affinity they are different clients.
func (s *stage) crowd(t *testing.T) map[cluster.Family][]netip.Addr {
	t.Helper()
	return s.crowdOf(t, crowdSize)
}

// crowdOf is crowd with so many addresses, 120 at most.
func (s *stage) crowdOf(t *testing.T, size int) map[cluster.Family][]netip.Addr {
	t.Helper()
	out := map[cluster.Family][]netip.Addr{}
	var batch strings.Builder
	for i := range size {
		for f, a := range map[cluster.Family]netip.Addr{
			cluster.IPv4: netip.MustParseAddr(fmt.Sprint("192.168.0.", 120+i)),
			cluster.IPv6: netip.MustParseAddr(fmt.Sprint("fd00:192:168::", 120+i)),
		} {
			out[f] = append(out[f], a)
			fmt.Fprintf(&batch, "addr add %s/%d dev eth0", a, a.BitLen())
			if f == cluster.IPv6 {
				batch.WriteString(" nodad")
			}
			batch.WriteByte('\n')
		}
	}
	_, err := s.c.RunInput(batch.String(), "ip", "-batch", "-")
	ok(t, err)
	return out
}

// A choice is the endpoint that answers each client.
type choice map[netip.Addr]string

// choose asks once from every address of c.
func (s *stage) choose(t *testing.T, from []netip.Addr, d lab.Dial) choice {
	t.Helper()
	out := choice{}
	for _, a := range from {
		d.From = netip.AddrPortFrom(a, 0)
		r := s.c.Ask(d)
		ok(t, r.Expect(lab.OK))
		out[a] = r.Name
	}
	return out
}

// stay fails the test unless every client gets the endpoint that it had.
func (s *stage) stay(t *testing.T, had choice, dials ...lab.Dial) {
	t.Helper()
	from := slices.SortedFunc(maps.Keys(had), netip.Addr.Compare)
	for _, d := range dials {
		if have := s.choose(t, from, d); !maps.Equal(have, had) {
			t.Errorf("%s %s: clients have %v, had %v", d.Proto, d.To, have, had)
		}
	}
}

// spread fails the test unless the clients have several of the endpoints with the given names, and no other.
func (c choice) spread(t *testing.T, names ...string) {
	t.Helper()
	used := map[string]int{}
	for _, name := range c {
		used[name]++
	}
	t.Logf("%d clients have %v", len(c), used)
	if len(used) < 2 {
		t.Errorf("all %d clients have one endpoint, %v", len(c), used)
	}
	for name := range used {
		if !slices.Contains(names, name) {
			t.Errorf("clients have %v, want only %v", used, names)
		}
	}
}

// comesToTranslate waits until the rules of n1 translate to the servers of exactly these pods.
func (s *stage) comesToTranslate(t *testing.T, pods ...*lab.Pod) {
	t.Helper()
	for _, f := range cluster.Families {
		var want []string
		for _, p := range pods {
			want = append(want, netip.AddrPortFrom(p.Addr(f), target).String())
		}
		slices.Sort(want)
		ok(t, lab.Eventually(soon, func() error {
			if have := slices.Compact(targets(s.save(t, f))); !slices.Equal(have, want) {
				return fmt.Errorf("targets are %v, want %v", have, want)
			}
			return nil
		}))
	}
}

// A client stays with one endpoint, whichever way it comes: VIP or node port at any address, in either order. Another
// client may get another.
func TestCase52Affinity(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		const localPort = port + 1
		s.put(sticky(both(10), 0), lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		s.put(sticky(externalLocal(nodePort(web(11), localPort)), 0), lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		crowd := s.crowd(t)
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			onVIP, onNode, onSecond := tcp(vip(f, 10), 80), tcp(s.n1.Addr(f), port), tcp(s.second(f), port)
			for _, ns := range []*lab.Namespace{s.c.Namespace, s.p2.Namespace, s.n1.Namespace} {
				if got := shares(t, ns, onVIP, 50); len(got) != 1 {
					t.Errorf("%s: 50 connections from one client: %v", ns.NetNS(), got)
				}
			}
			half := crowdSize / 2
			had := s.choose(t, crowd[f][:half], onVIP)
			maps.Copy(had, s.choose(t, crowd[f][half:], onNode))
			had.spread(t, "p1", "p2", "p3")
			s.stay(t, had, onNode, onVIP, onSecond, onVIP)

			onUDP := udp(vip(f, 10), 80)
			had = s.choose(t, crowd[f], onUDP)
			had.spread(t, "p1", "p2", "p3")
			s.stay(t, had, onUDP, udp(s.n1.Addr(f), port), onUDP)

			// With policy Local the node port offers fewer endpoints than the VIP; the client stays with what it got there.
			onLocal := tcp(s.n1.Addr(f), localPort)
			had = s.choose(t, crowd[f], onLocal)
			had.spread(t, "p1", "p2")
			s.stay(t, had, tcp(vip(f, 11), 80), onLocal)
		})
	})
}

// Every new connection renews a client's affinity, so it stays for as long as it comes back within the timeout. After a longer
// pause it is given any endpoint.
func TestCase53AffinityTimeout(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		const seconds = 3
		s.put(sticky(web(10), seconds), lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		crowd := s.crowd(t)
		s.start(t, lab.AgentOptions{})
		var regulars []*regular
		for _, f := range cluster.Families {
			for _, a := range crowd[f] {
				d := tcp(vip(f, 10), 80)
				d.From = netip.AddrPortFrom(a, 0)
				regulars = append(regulars, &regular{ns: s.c.Namespace, dial: d, timeout: seconds * time.Second})
			}
		}
		// With a visit every second, this takes four timeouts, unless the machine is so busy that some come late.
		ok(t, lab.Eventually(6*soon, func() error {
			next := time.Now().Add(time.Second)
			var short error
			for _, r := range regulars {
				if err := r.visit(t); err != nil {
					short = err
				}
			}
			time.Sleep(time.Until(next))
			return short
		}))
		time.Sleep(2 * seconds * time.Second)
		for _, f := range cluster.Families {
			moved := 0
			for _, r := range regulars {
				if cluster.FamilyOf(r.dial.To.Addr()) != f {
					continue
				}
				answer := r.ns.Ask(r.dial)
				ok(t, answer.Expect(lab.OK))
				if answer.Name != r.name {
					moved++
				}
			}
			t.Logf("%s: after a pause %d of %d clients have another endpoint", f, moved, crowdSize)
			if moved == 0 {
				t.Errorf("%s: after twice the timeout all clients still have their endpoint", f)
			}
		}
	})
}

// A regular is a client that comes back in time, if the machine lets it.
type regular struct {
	ns      *lab.Namespace
	dial    lab.Dial
	timeout time.Duration
	// name is who answers, since when, and last is when the latest visit began.
	name        string
	since, last time.Time
}

// visit asks once. It fails the test when another endpoint answers within the timeout. The error says that this client has not
// been coming for four timeouts yet; a visit that was late begins anew.
func (r *regular) visit(t *testing.T) error {
	t.Helper()
	began := time.Now()
	answer := r.ns.Ask(r.dial)
	ok(t, answer.Expect(lab.OK))
	// The kernel's clock is coarse: two of its ticks, at a hundred a second, are within doubt.
	if gap := time.Since(r.last); gap > r.timeout-20*time.Millisecond {
		if r.name != "" {
			t.Logf("%s came late, after %v", r.dial.From.Addr(), gap)
		}
		r.name, r.since = answer.Name, began
	} else if answer.Name != r.name {
		t.Fatalf("%s had %s, and %v later %s", r.dial.From.Addr(), r.name, gap, answer.Name)
	}
	r.last = began
	if been := began.Sub(r.since); been < 4*r.timeout {
		return fmt.Errorf("%s has come for %v, want four times %v", r.dial.From.Addr(), been, r.timeout)
	}
	return nil
}

// Affinity outlives a restart of the agent and changes of the rules. Who loses the endpoint gets another and stays there; all
// others stay where they are. Another port of the Service has nothing to do with it.
func TestCase54AffinityLasts(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := sticky(lab.Service("web", vips(10), lab.TCPPort("http", 80, target), lab.TCPPort("more", 81, target)), 0)
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		crowd := s.crowd(t)
		s.start(t, lab.AgentOptions{})
		had, more := map[cluster.Family]choice{}, map[cluster.Family]choice{}
		for _, f := range cluster.Families {
			had[f] = s.choose(t, crowd[f], tcp(vip(f, 10), 80))
			more[f] = s.choose(t, crowd[f], tcp(vip(f, 10), 81))
			had[f].spread(t, "p1", "p2", "p3")
			if maps.Equal(had[f], more[f]) {
				t.Errorf("%s: at two ports every client has the same endpoint: %v", f, had[f])
			}
		}
		stayed := func() {
			t.Helper()
			for _, f := range cluster.Families {
				s.stay(t, had[f], tcp(vip(f, 10), 80))
				s.stay(t, more[f], tcp(vip(f, 10), 81))
			}
		}
		stayed()
		s.agent.Kill()
		s.startOn(t, s.agent.Options, s.n1)
		stayed()
		// Another pod makes an endpoint more, at an address where nobody is: the rules of both ports are written again.
		extra := lab.Endpoint{Addrs: addrs("10.244.2.99", "fd00:10:244:2::99"), NodeName: "n2", Ready: true, Serving: true}
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3), extra)
		s.write(t)
		s.comesToTranslate(t, s.p1, s.p2, s.p3, &lab.Pod{PodSpec: lab.PodSpec{Addrs: extra.Addrs}})
		stayed()

		lost := func(gone string, left ...*lab.Pod) {
			t.Helper()
			s.write(t)
			s.comesToTranslate(t, left...)
			for _, f := range cluster.Families {
				s.moved(t, had[f], tcp(vip(f, 10), 80), gone)
				s.moved(t, more[f], tcp(vip(f, 10), 81), gone)
			}
			stayed()
		}
		s.cluster.SetEndpoints(svc, lab.NotReady(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		lost("p1", s.p2, s.p3)
		s.cluster.SetEndpoints(svc, lab.Ready(s.p3))
		lost("p2", s.p3)
	})
}

// moved asks once from every client, and fails the test unless those that had the endpoint that is gone have another, and all
// others what they had. It changes the choice to what they have now.
func (s *stage) moved(t *testing.T, had choice, d lab.Dial, gone string) {
	t.Helper()
	for a, now := range s.choose(t, slices.Collect(maps.Keys(had)), d) {
		if had[a] == gone && now != gone {
			had[a] = now
		}
		if now != had[a] || now == gone {
			t.Errorf("%s: %s had %s and has %s, while %s is gone", d.To, a, had[a], now, gone)
		}
	}
}
