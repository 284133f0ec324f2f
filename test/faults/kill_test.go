package faults

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// killsEnv is how many times the agent is killed for each backend; a few dozen without it.
const (
	killsEnv   = "FAIRWAY_KILLS"
	killsUsual = 50
)

// A kept is what the tables of a family hold of the agent's: the rules of every chain, "filter KUBE-SERVICES", and of every built-in
// chain those that lead there.
type kept map[string][]string

var (
	chainLine = regexp.MustCompile(`^:(KUBE-\S+) `)
	ruleLine  = regexp.MustCompile(`^(?:\[(\d+):\d+\] )?-A (\S+) (.*)$`)
)

// parseKept reads what iptables-save prints, and the packets that each rule has counted, when that is there.
func parseKept(save string) (k kept, packets map[string][]int) {
	k, packets = kept{}, map[string][]int{}
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name + " "
		}
		if m := chainLine.FindStringSubmatch(line); m != nil {
			k[table+m[1]] = nil
		}
		if m := ruleLine.FindStringSubmatch(line); m != nil && strings.Contains(line, "KUBE-") {
			n, _ := strconv.Atoi(m[1])
			k[table+m[2]] = append(k[table+m[2]], m[3])
			packets[table+m[2]] = append(packets[table+m[2]], n)
		}
	}
	return k, packets
}

// of is one table of it.
func (k kept) of(table string) kept {
	part := kept{}
	for chain, rules := range k {
		if strings.HasPrefix(chain, table+" ") {
			part[chain] = rules
		}
	}
	return part
}

func (k kept) equal(o kept) bool { return maps.EqualFunc(k, o, slices.Equal[[]string]) }

// gained is the filter table on the way to another: with the rules of both, those that come before those that go. A chain that only
// loses rules is not touched yet.
func (k kept) gained(next kept) kept {
	both := maps.Clone(next)
	for chain, rules := range k {
		goes := slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return slices.Contains(next[chain], r) })
		comes := slices.ContainsFunc(next[chain], func(r string) bool { return !slices.Contains(rules, r) })
		switch {
		case len(goes) > 0 && !comes:
			both[chain] = rules
		case len(goes) > 0:
			both[chain] = slices.Concat(next[chain], goes)
		}
		if _, stays := both[chain]; !stays {
			both[chain] = nil // it is empty, and goes in the last step
		}
	}
	return both
}

// onTheWay tells what a family's tables may hold when the agent was killed at any moment on the way from one state to another: each
// table is one of the steps of one restore, in the order in which it takes them, and nat is old or new as a whole.
func onTheWay(from, to kept) (steps []string, states []kept) {
	add := func(step string, filter, nat kept) {
		all := maps.Clone(filter)
		maps.Copy(all, nat)
		steps, states = append(steps, step), append(states, all)
	}
	filter, nat := from.of("filter"), from.of("nat")
	nextFilter, nextNAT := to.of("filter"), to.of("nat")
	add("old", filter, nat)
	if !nat.equal(nextNAT) {
		add("filter has gained", filter.gained(nextFilter), nat)
		add("nat is new", filter.gained(nextFilter), nextNAT)
	}
	add("new", nextFilter, nextNAT)
	return steps, states
}

// A killed is the rig of these tests: an agent on n1 alone, with some hundred Services besides the one of all tests.
type killed struct {
	*rig
	rng    *rand.Rand
	moving *corev1.Service
	// states are what the kernel holds when the agent has programmed a state of the cluster, by state and family.
	states []map[cluster.Family]kept
}

const (
	bulkServices = 150
	bulkStates   = 3
)

func newKilled(t *testing.T, backend lab.Backend) *killed {
	k := &killed{rig: newRig(t, backend, topology()), rng: rand.New(rand.NewPCG(4, uint64(len(backend))))}
	for _, name := range []string{"n2", "n3"} {
		k.ok(k.agents[name].Stop(startBound))
	}
	k.moving = lab.Service("moving", []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:96::20")}, lab.TCPPort("tcp", webPort, targetPort))
	k.cluster.SetService(k.moving)
	for state := range bulkStates {
		k.set(state)
		// Ready is also who has not read the last change. When the kernel shows a part of it, ready means all of it.
		k.eventually(startBound, func() error {
			for _, f := range cluster.Families {
				if !strings.Contains(fmt.Sprint(k.holds(f)), fmt.Sprintf("default/state-%d", state)) {
					return fmt.Errorf("state %d is not programmed", state)
				}
			}
			return nil
		})
		k.ready(k.n1)
		held := map[cluster.Family]kept{}
		for _, f := range cluster.Families {
			held[f] = k.holds(f)
		}
		k.states = append(k.states, held)
	}
	return k
}

// set writes a state of the cluster. In each another third of the Services has no endpoints, and the others have others; the one that
// is asked moves among pods that always answer. One Service tells which state it is.
func (k *killed) set(state int) {
	k.Helper()
	service := func(name string, i int) *corev1.Service {
		return lab.Service(name, []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:96::1:%x", i))},
			lab.TCPPort("tcp", 80, 8080), lab.UDPPort("udp", 80, 8080))
	}
	for i := range bulkServices {
		s := service(fmt.Sprintf("bulk-%d", i), i+1)
		k.cluster.SetService(s)
		var endpoints []lab.Endpoint
		for j := range 4 {
			if i%bulkStates != state {
				endpoints = append(endpoints, lab.Endpoint{NodeName: "n2", Ready: true, Serving: true, Addrs: []netip.Addr{
					netip.AddrFrom4([4]byte{10, 200, 2, byte(100 + 10*state + j)}), netip.MustParseAddr(fmt.Sprintf("fd00:200:0:2::%x", 100+10*state+j))}})
			}
		}
		k.cluster.SetEndpoints(s, endpoints...)
	}
	for i := range bulkStates {
		k.cluster.RemoveService(service(fmt.Sprintf("state-%d", i), 250))
	}
	k.cluster.SetService(service(fmt.Sprintf("state-%d", state), 250+state))
	pods := []*lab.Pod{k.p2, k.p3, k.p4}
	k.cluster.SetEndpoints(k.moving, lab.Ready(pods[state]), lab.Ready(pods[(state+1)%3]))
	k.write()
}

// holds is what the kernel of n1 holds of a family.
func (r *rig) holds(f cluster.Family) kept {
	r.Helper()
	save, err := r.n1.Save(r.backend, f, "")
	r.ok(err)
	held, _ := parseKept(save)
	return held
}

// kill ends the agent as a crash does, and returns when none of its children is left.
func (k *killed) kill() {
	k.Helper()
	k.agents["n1"].Kill()
	k.eventually(startBound, func() error {
		if left := k.iptables(); len(left) > 0 {
			return fmt.Errorf("children of the killed agent are left: %v", left)
		}
		return nil
	})
}

// iptables lists the programs of iptables that run on n1.
func (k *killed) iptables() (list []string) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range environments {
		env, err := os.ReadFile(file) // who has ended meanwhile has none
		if err != nil || !strings.Contains(string(env), "XTABLES_LOCKFILE="+k.n1.LockFile()+"\x00") {
			continue
		}
		if name, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm")); err == nil && strings.Contains(string(name), "tables") {
			list = append(list, filepath.Dir(file)+" "+strings.TrimSpace(string(name)))
		}
	}
	return list
}

// Fault 4: the agent is killed at random moments, while it starts, reads, writes and is at rest, again and again. Afterwards the kernel
// is always at one of the steps of the one restore that was under way; the next start goes on from there, and writes
// what differs and nothing else; no connection fails.
func TestFault04KilledAtAnyMoment(t *testing.T) {
	kills := killsUsual
	if n := os.Getenv(killsEnv); n != "" {
		var err error
		if kills, err = strconv.Atoi(n); err != nil {
			t.Fatalf("%s: %v", killsEnv, err)
		}
	}
	for _, backend := range lab.Backends {
		t.Run(string(backend), func(t *testing.T) {
			k := newKilled(t, backend)
			flows := k.traffic()
			moving, err := k.p1.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.20"), webPort), Timeout: attemptTimeout}})
			k.ok(err)
			options := k.agents["n1"].Options
			k.kill()
			state := bulkStates - 1
			usual := k.starts(options, state)
			found := map[string]int{}
			for round := range kills {
				before := map[cluster.Family]kept{}
				for _, f := range cluster.Families {
					before[f] = k.holds(f)
				}
				state = (state + 1 + k.rng.IntN(bulkStates-1)) % bulkStates
				k.set(state)
				k.start(k.n1, options)
				time.Sleep(time.Duration(k.rng.Int64N(int64(2 * usual))))
				k.kill()
				for _, f := range cluster.Families {
					found[k.arrived(round, f, before[f], k.states[state][f])]++
				}
				if round%10 == 9 {
					k.starts(options, state)
				}
			}
			t.Logf("%d kills within %d ms after the start; found: %v", kills, (2 * usual).Milliseconds(), found)
			if found["old"] == 0 || found["new"] == 0 {
				t.Errorf("the kills did not come before and after the writing: %v", found)
			}
			k.starts(options, state)
			k.start(k.n1, options)
			k.ready(k.n1)
			k.wroteNothing(k.n1)
			if r := moving.Stop(); r.Failed() > 0 {
				t.Errorf("the Service that moves: %s", r)
			} else {
				t.Logf("the Service that moves: %s", r)
			}
			flows.stop()
		})
	}
}

// arrived returns the step at which a family was found, and fails the test when it is none.
func (k *killed) arrived(round int, f cluster.Family, from, to kept) string {
	k.Helper()
	held := k.holds(f)
	steps, states := onTheWay(from, to)
	for i, s := range states {
		if held.equal(s) {
			return steps[i]
		}
	}
	text := fmt.Sprintf("round %d, %s: the kernel holds none of the steps", round, f)
	for i, s := range states {
		text += fmt.Sprintf("\nto %q: %s", steps[i], difference(held, s))
	}
	k.Error(text)
	return "mixed"
}

// difference names the chains that differ, and shows the first.
func difference(a, b kept) string {
	var chains []string
	for _, chain := range slices.Sorted(maps.Keys(a)) {
		if rules, ok := b[chain]; !ok || !slices.Equal(a[chain], rules) {
			chains = append(chains, chain)
		}
	}
	for chain := range b {
		if _, ok := a[chain]; !ok {
			chains = append(chains, chain)
		}
	}
	if len(chains) == 0 {
		return ""
	}
	first := chains[0]
	return fmt.Sprintf("%d chains differ: %.300s …\n%s\n  have %.1000q\n  want %.1000q", len(chains), strings.Join(chains, ", "), first,
		strings.Join(a[first], "\n"), strings.Join(b[first], "\n"))
}

// counted is what rules of legacy have counted that an agent finds: a rule that is written again has not.
const counted = 7777

// mark prepares to tell whether rules are written again, and returns what the kernel holds. Under nft they have handles; under legacy they
// are given counters.
func (k *killed) mark(f cluster.Family) kept {
	k.Helper()
	save, err := k.n1.Run(lab.Tool(k.backend, f, "-save"), "-c")
	k.ok(err)
	if k.backend == lab.Legacy {
		marked := regexp.MustCompile(`(?m)^\[\d+:\d+\]`).ReplaceAllString(save, fmt.Sprintf("[%d:%d]", counted, counted))
		_, err := k.n1.RunInput(marked, lab.Tool(k.backend, f, "-restore"), "-c", "-w", "5")
		k.ok(err)
	}
	held, _ := parseKept(save)
	return held
}

// identities are what tells the rules of chains from others of the same text: nft's handles, or that they carry the counters.
func (k *killed) identities(f cluster.Family) map[string][]string {
	k.Helper()
	ids := map[string][]string{}
	if k.backend == lab.Legacy {
		save, err := k.n1.Run(lab.Tool(k.backend, f, "-save"), "-c")
		k.ok(err)
		_, packets := parseKept(save)
		for chain, list := range packets {
			for _, n := range list {
				ids[chain] = append(ids[chain], fmt.Sprint(n >= counted))
			}
		}
		return ids
	}
	family := map[cluster.Family]string{cluster.IPv4: "ip", cluster.IPv6: "ip6"}[f]
	list, err := k.n1.Run("nft", "--handle", "--stateless", "list", "ruleset", family)
	k.ok(err)
	table, chain := "", ""
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		switch {
		case len(words) > 2 && words[0] == "table":
			table = words[2]
		case len(words) > 1 && words[0] == "chain":
			chain = table + " " + words[1]
		case len(words) > 2 && words[len(words)-2] == "handle":
			ids[chain] = append(ids[chain], words[len(words)-1])
		}
	}
	return ids
}

// starts starts an agent, waits until it has programmed a state, ends it, and returns how long it took. The rules
// that it found and wants must be the same ones afterwards.
func (k *killed) starts(o lab.AgentOptions, state int) time.Duration {
	k.Helper()
	before, ids := map[cluster.Family]kept{}, map[cluster.Family]map[string][]string{}
	for _, f := range cluster.Families {
		before[f] = k.mark(f)
		ids[f] = k.identities(f)
	}
	began := time.Now()
	k.start(k.n1, o)
	k.ready(k.n1)
	took := time.Since(began)
	k.kill()
	for _, f := range cluster.Families {
		now, same := k.holds(f), 0
		if !now.equal(k.states[state][f]) {
			k.Errorf("%s: the state after a start: %s", f, difference(now, k.states[state][f]))
		}
		after := k.identities(f)
		for chain, rules := range now {
			if !slices.Equal(rules, before[f][chain]) || !strings.Contains(chain, " KUBE-") {
				continue
			}
			if same += len(rules); !slices.Equal(ids[f][chain], after[chain]) || len(after[chain]) != len(rules) {
				k.Errorf("%s: chain %s was written again", f, chain)
			}
		}
		if same < 10 {
			k.Errorf("%s: only %d rules were to stay", f, same)
		}
	}
	return took
}

// Fault 4: what a killed agent had begun to write and not yet given to the kernel is never written: its successor may have read the
// kernel by then, and would not know of it. The stand-in for iptables-restore is slow.
func TestFault04NoOrphanWrites(t *testing.T) {
	for _, backend := range lab.Backends {
		t.Run(string(backend), func(t *testing.T) {
			r := newRig(t, backend, topology())
			r.ok(r.agents["n1"].Stop(startBound))
			bin := filepath.Join(r.lab.Dir, "bin")
			r.ok(os.Mkdir(bin, 0o755))
			began := filepath.Join(bin, "began")
			for _, f := range cluster.Families {
				name := lab.Tool(backend, f, "-restore")
				path, err := exec.LookPath(name)
				r.ok(err)
				script := fmt.Sprintf("#!/bin/sh\ninput=$(cat)\n: >'%s'\nsleep 1\nprintf '%%s\\n' \"$input\" | '%s' \"$@\"\n: >'%s'\n", began, path, filepath.Join(bin, "written"))
				r.ok(os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755))
			}
			before := r.rules(r.n1)
			late := lab.Service("late", []netip.Addr{netip.MustParseAddr("10.96.0.99"), netip.MustParseAddr("fd00:96::99")}, lab.TCPPort("tcp", 80, targetPort))
			r.cluster.SetService(late)
			r.cluster.SetEndpoints(late, lab.Ready(r.p2))
			r.write()
			options := r.agents["n1"].Options
			slow := options
			slow.Env = append(slow.Env, "PATH="+bin+":"+os.Getenv("PATH"))
			r.start(r.n1, slow)
			r.eventually(startBound, func() error { _, err := os.Stat(began); return err })
			r.agents["n1"].Kill()
			time.Sleep(2 * time.Second) // for who would write after his sleep
			r.same("rules, written by nobody,", before, r.rules(r.n1))
			if _, err := os.Stat(filepath.Join(bin, "written")); err == nil {
				t.Error("the orphan went on")
			}
			r.start(r.n1, options)
			r.ready(r.n1)
			r.eventually(startBound, func() error {
				return r.p1.Ask(lab.Dial{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.99:80"), Timeout: attemptTimeout}).Expect(lab.OK)
			})
		})
	}
}
