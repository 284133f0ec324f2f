package netfilter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// waitFor is how long a test waits for what should take milliseconds, or seconds with iptables-legacy.
const waitFor = time.Minute

// A sight is an Observer that keeps what it is told.
type sight struct {
	mu      sync.Mutex
	changes []Change
	quiet   map[cluster.Family]time.Time
	told    chan struct{}
}

// watching watches a Backend until the test ends.
func watching(t *testing.T, b *Backend) *sight {
	t.Helper()
	quietEvery = 20 * time.Millisecond
	s := &sight{quiet: map[cluster.Family]time.Time{}, told: make(chan struct{}, 1)}
	w, err := b.OpenWatch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- w.Run(ctx, Observer{
			Changed: func(c Change) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.changes = append(s.changes, c)
				select {
				case s.told <- struct{}{}:
				default:
				}
			},
			Quiet: func(f cluster.Family, at time.Time) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.quiet[f] = at
			}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// take returns the changes that were told since.
func (s *sight) take() []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.changes
	s.changes = nil
	return list
}

// settled waits until all that happened until now has been told.
func (s *sight) settled(t *testing.T, f cluster.Family) {
	t.Helper()
	now := time.Now()
	eventually(t, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if at := s.quiet[f]; !at.After(now) {
			return fmt.Errorf("quiet at %v", at)
		}
		return nil
	})
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(waitFor); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// A guard keeps a family's rules by what a watch tells.
type guard struct {
	*sight
	rules *Rules
	want  Desired
	// drifts and changes are what was found since they were last taken, reads counts full ones.
	drifts  []iptables.Drift
	changes []Change
	above   []Above
	reads   int
}

func newGuard(t *testing.T, b *Backend, want Desired) *guard {
	g := &guard{rules: NewRules(b), want: want}
	g.rules.KeepFirst = true
	mustSync(t, g.rules, want)
	g.sight = watching(t, b)
	g.settle(t)
	return g
}

// settle follows the watch until it has nothing more to tell.
func (g *guard) settle(t *testing.T) {
	t.Helper()
	for {
		g.sight.settled(t, g.want.Table.Family)
		if !g.step(t) {
			return
		}
	}
}

// step does what the watch has asked for, and tells whether that was anything.
func (g *guard) step(t *testing.T) bool {
	t.Helper()
	any := false
	for _, c := range g.take() {
		if c.Family == g.want.Table.Family {
			g.rules.Doubt(c)
			g.changes = append(g.changes, c)
			any = true
		}
	}
	if !any {
		return false
	}
	report := mustSync(t, g.rules, g.want)[0]
	g.drifts = append(g.drifts, report.Drifts...)
	g.above = report.Above
	if report.Full {
		g.reads++
	}
	return true
}

// takeDrifts returns what was found since, as "table chain kind".
func (g *guard) takeDrifts() (list []string) {
	for _, d := range g.drifts {
		list = append(list, strings.TrimSpace(d.Table+" "+d.Chain)+" "+string(d.Kind))
	}
	slices.Sort(list)
	g.drifts, g.changes, g.reads = nil, nil, 0
	return list
}

// Every mutation is noticed by the watch alone, named by its kind, and repaired exactly; what is others' stays.
func TestWatchNoticesAndRepairs(t *testing.T) {
	mutations := []struct {
		name string
		// run has lines of arguments for iptables; nft is a command for iptables-nft instead.
		run  string
		nft  string
		want []string
		// targeted is that iptables-nft needs no full read.
		targeted bool
	}{
		{name: "nat flushed", run: "-t nat -F", want: []string{"nat table-flushed"}},
		{name: "filter flushed", run: "-F", want: []string{"filter table-flushed"}},
		{name: "everything", run: "-F\n-t nat -F\n-X", want: []string{"filter table-flushed", "nat table-flushed"}},
		{name: "everything, and nat's chains", run: "-t nat -F\n-t nat -X", want: []string{"nat table-flushed"}},
		{name: "chain flushed", run: "-t nat -F SVC!", want: []string{"nat SVC! chain-flushed"}, targeted: true},
		{name: "chain flushed and deleted", run: "-t nat -F KUBE-SERVICES\n-t nat -F SVC!\n-t nat -X SVC!",
			want: []string{"nat KUBE-SERVICES chain-flushed", "nat SVC! chain-missing"}, targeted: true},
		{name: "jump deleted", run: "-t nat -D PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
			want: []string{"nat PREROUTING jump-missing"}, targeted: true},
		{name: "filter jump deleted", run: "-D FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD",
			want: []string{"filter FORWARD jump-missing"}, targeted: true},
		{name: "rule deleted", run: "-t nat -D SVC! 1", want: []string{"nat SVC! rule-missing"}, targeted: true},
		{name: "rule of the same size", run: "-t nat -R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8000/0x8000",
			want: []string{"nat KUBE-MARK-MASQ rule-changed"}, targeted: true},
		{name: "rule inserted", run: "-t nat -I SVC! 1 -j RETURN", want: []string{"nat SVC! rule-inserted"}, targeted: true},
		{name: "order", run: "-D KUBE-FORWARD 1\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
			want: []string{"filter KUBE-FORWARD rule-order"}, targeted: true},
		{name: "chain renamed", run: "-t nat -E SVC! mine", want: []string{"nat KUBE-SERVICES rule-changed", "nat SVC! chain-missing"}},
		{name: "chain of ours made", run: "-t nat -N KUBE-SVC-FOREIGN\n-t nat -A KUBE-SVC-FOREIGN -j ACCEPT",
			want: []string{"nat KUBE-SVC-FOREIGN chain-added"}, targeted: true},
		{name: "jump doubled", run: "-t nat -A OUTPUT -j KUBE-SERVICES", want: []string{"nat OUTPUT rule-inserted"}, targeted: true},
		{name: "table deleted", nft: "delete table FAMILY nat", want: []string{"nat table-flushed"}},
		{name: "ruleset flushed", nft: "flush ruleset", want: []string{"filter table-flushed", "nat table-flushed"}},
	}
	onBackends(t, func(t *testing.T, b *Backend) {
		for _, f := range cluster.Families {
			want := newWorld(f, 12).desired()
			g := newGuard(t, b, want)
			g.takeDrifts()
			svc := serviceChain(want.Ruleset)
			command := b.Binaries[f].Command
			for _, m := range mutations {
				if m.nft != "" && b.Name != NFT {
					continue
				}
				// No subtest: it would have a thread of its own, and so run in the machine's own network namespace.
				name := f.String() + " " + m.name
				foreign := foreignRules(t, command)
				if m.nft != "" || strings.HasSuffix(m.run, "-F") || strings.Contains(m.run, "-F\n") {
					foreign = nil // they go, too
				}
				for line := range strings.Lines(m.run) {
					tamper(t, command, strings.ReplaceAll(line, "SVC!", svc))
				}
				if m.nft != "" {
					tamper(t, nftPath(t), strings.ReplaceAll(m.nft, "FAMILY", nftFamily(f)))
				}
				eventually(t, func() error {
					g.step(t)
					if len(g.drifts) == 0 {
						return fmt.Errorf("%s: nothing was noticed", name)
					}
					return nil
				})
				g.settle(t)
				mustHold(t, b, want.Ruleset)
				if m.targeted && b.Name == NFT && g.reads > 0 {
					t.Errorf("%s: everything was read back %d times", name, g.reads)
				}
				if b.Name == NFT && !strings.Contains(g.changes[0].By, "pid ") {
					t.Errorf("%s: who it was is not told: %+v", name, g.changes)
				}
				var expected []string
				for _, w := range m.want {
					expected = append(expected, strings.ReplaceAll(w, "SVC!", svc))
				}
				got := slices.Compact(g.takeDrifts())
				// Of several commands, some may be noticed and repaired before the next.
				if several := strings.Contains(m.run, "\n"); !several && !slices.Equal(got, expected) || several && len(got) == 0 {
					t.Errorf("%s: found %q, expected %q", name, got, expected)
				}
				for _, rule := range foreign {
					tamper(t, command, strings.Replace(rule, "-A", "-C", 1))
				}
			}
		}
	})
}

// foreignRules adds rules of others, which stay.
func foreignRules(t *testing.T, path string) []string {
	t.Helper()
	rules := []string{"-t nat -A POSTROUTING -o eth9 -j MASQUERADE", "-t nat -A mine-too -j RETURN", "-t filter -A INPUT -i eth9 -j ACCEPT"}
	if _, err := run(context.Background(), command{path: path, args: strings.Fields("-t nat -S mine-too")}); err != nil {
		tamper(t, path, "-t nat -N mine-too")
	}
	for _, r := range rules {
		tamper(t, path, r)
	}
	return rules
}

// machineNamespace is the network namespace that the tests were started in.
var machineNamespace, _ = os.Readlink("/proc/self/ns/net")

// tamper runs a program with a line of arguments, in which one may be quoted, in the test's network namespace; never in the
// machine's own.
func tamper(t *testing.T, path, line string) {
	t.Helper()
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil || machineNamespace == "" || here == machineNamespace {
		t.Fatalf("%q is no network namespace of the test (%v)", here, err)
	}
	var args []string
	for i, part := range strings.Split(strings.TrimSpace(line), "'") {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	shell(t, "", path, args...)
}

// serviceChain returns a chain of a service that has several rules, and one jump to it.
func serviceChain(r *iptables.Ruleset) string {
	for _, c := range r.NAT.Chains {
		if strings.HasPrefix(c.Name, "KUBE-SVC-") && len(c.Name) == len("KUBE-SVC-")+16 && strings.Count(c.Rules, "\n") > 2 &&
			strings.Count(r.String(), "-j "+c.Name+"\n") == 1 {
			return c.Name
		}
	}
	panic("no such chain")
}

func nftPath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("Debian's package nftables is needed: " + err.Error())
	}
	return path
}

// A rule of somebody else before our jumps: in nat they go first again, three times at most, and the rule stays; in filter they
// stay where they are, also when one was deleted and is put back.
func TestJumpsKeepTheirPlace(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		for _, f := range cluster.Families {
			path := b.Binaries[f].Command
			tamper(t, path, "-I FORWARD 1 -i eth8 -j DROP") // before we came, but our jumps went first
			want := newWorld(f, 6).desired()
			g := newGuard(t, b, want)
			first := func(table, chain string) string {
				list := strings.Split(shell(t, "", path, "-t", table, "-S", chain), "\n")
				return list[1]
			}
			found := func(kinds ...string) {
				t.Helper()
				eventually(t, func() error {
					g.step(t)
					if len(g.drifts) == 0 {
						return fmt.Errorf("nothing was noticed")
					}
					return nil
				})
				g.settle(t)
				mustHold(t, b, want.Ruleset)
				if got := g.takeDrifts(); !slices.Equal(got, kinds) {
					t.Errorf("found %q, expected %q", got, kinds)
				}
			}
			g.takeDrifts()
			for i := range maxMoves + 1 {
				rule := fmt.Sprintf("PREROUTING -i eth%d -j ACCEPT", i)
				tamper(t, path, "-t nat -I "+rule)
				found("nat PREROUTING jump-displaced")
				tamper(t, path, "-t nat -C "+rule)
				if moved := strings.HasSuffix(first("nat", "PREROUTING"), "-j KUBE-SERVICES"); moved != (i < maxMoves) {
					t.Errorf("after displacement %d nat begins with %q", i, first("nat", "PREROUTING"))
				}
			}
			if want := (Above{iptables.NAT, "PREROUTING", "-A PREROUTING -i eth3 -j ACCEPT", true}); !slices.Equal(g.above, []Above{want}) {
				t.Errorf("above the jumps: %+v, expected %+v", g.above, want)
			}
			tamper(t, path, "-t nat -D PREROUTING -i eth3 -j ACCEPT")

			const drop = "-A FORWARD -i eth9 -j DROP"
			tamper(t, path, "-I FORWARD -i eth9 -j DROP")
			found("filter FORWARD jump-displaced")
			tamper(t, path, "-D FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD")
			found("filter FORWARD jump-missing")
			for { // all jumps of the chain
				list := strings.Split(shell(t, "", path, "-S", "FORWARD"), "\n")
				i := slices.IndexFunc(list, func(l string) bool { return strings.Contains(l, "KUBE-") })
				if i < 0 {
					break
				}
				tamper(t, path, fmt.Sprint("-D FORWARD ", i))
			}
			eventually(t, func() error {
				g.step(t)
				if n := strings.Count(shell(t, "", path, "-S", "FORWARD"), "KUBE-"); n < 3 {
					return fmt.Errorf("%d jumps are back", n)
				}
				return nil
			})
			g.settle(t)
			mustHold(t, b, want.Ruleset)
			if got := first("filter", "FORWARD"); got != drop {
				t.Errorf("filter begins with %q, expected %q", got, drop)
			}
			if want := (Above{iptables.Filter, "FORWARD", drop, false}); !slices.Equal(g.above, []Above{want}) {
				t.Errorf("above the jumps: %+v, expected %+v", g.above, want)
			}
			tamper(t, path, "-F FORWARD")
		}
	})
}

// What stood above at the start stays there; and so does everything when that is configured.
func TestJumpsThatAreNotMoved(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		path := b.Binaries[cluster.IPv4].Command
		want := newWorld(cluster.IPv4, 6).desired()
		mustSync(t, NewRules(b), want)
		tamper(t, path, "-t nat -I OUTPUT -p udp -j ACCEPT")
		tamper(t, path, "-t nat -I OUTPUT -j LOG --log-prefix 'not -j DROP '")
		expected := []Above{{iptables.NAT, "OUTPUT", "-A OUTPUT -p udp -j ACCEPT", false}}
		for _, keepFirst := range []bool{true, false} {
			rules := NewRules(b)
			rules.KeepFirst = keepFirst
			if r := mustSync(t, rules, want)[0]; r.Written || !slices.Equal(r.Above, expected) {
				t.Errorf("keepFirst %t, at start: %+v", keepFirst, r)
			}
			if keepFirst {
				continue
			}
			tamper(t, path, "-t nat -I OUTPUT -p tcp -j ACCEPT")
			rules.Invalidate()
			if r := mustSync(t, rules, want)[0]; r.Written || len(r.Above) != 2 || len(r.Drifts) != 1 || !r.Drifts[0].Left {
				t.Errorf("not to be moved: %+v", r)
			}
		}
	})
}

// Own writes are not taken for others', whatever their size; and what others do in the very moment of one is not missed.
func TestOwnWritesAndOthers(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		w := newWorld(cluster.IPv4, 400)
		g := newGuard(t, b, w.desired())
		g.takeDrifts()
		for i := range 10 {
			w.services[i] = w.service(i, 5+i)
			g.want = w.desired()
			mustSync(t, g.rules, g.want)
		}
		g.settle(t)
		if len(g.changes) > 0 {
			t.Fatalf("own writes were told: %+v", g.changes)
		}
		svc := serviceChain(w.desired().Ruleset)
		path := b.Binaries[cluster.IPv4].Command
		namespace := tamperer(t, path)
		for i := range 10 {
			w.services[20+i] = w.service(20+i, 9+i)
			g.want = w.desired()
			done := make(chan error)
			go func() { done <- namespace("-w", "30", "-t", "nat", "-D", svc, "1") }()
			mustSync(t, g.rules, g.want)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				g.step(t)
				if len(g.drifts) == 0 {
					return fmt.Errorf("what was done beside own write %d was not noticed", i)
				}
				return nil
			})
			g.settle(t)
			mustHold(t, b, g.want.Ruleset)
			g.takeDrifts()
		}
	})
}

// tamperer returns what runs a program in the namespace of the calling thread from any goroutine.
func tamperer(t *testing.T, path string) func(args ...string) error {
	t.Helper()
	tamper(t, "true", "")
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	enter := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), namespace.Fd())
	return func(args ...string) error {
		_, err := run(context.Background(), command{path: "nsenter", args: append([]string{enter, path}, args...)})
		return err
	}
}

// Messages that were lost mean that anything may have changed.
func TestWatchThatLosesMessages(t *testing.T) {
	inNamespace(t)
	b, err := Detect(context.Background(), NFT)
	if err != nil {
		t.Fatal(err)
	}
	nftBuffer = 2048
	defer func() { nftBuffer = 1 << 20 }()
	want := newWorld(cluster.IPv4, 200).desired()
	g := newGuard(t, b, want)
	g.takeDrifts()
	tamper(t, b.Binaries[cluster.IPv4].Command, "-t nat -F")
	eventually(t, func() error {
		g.step(t)
		if len(g.drifts) == 0 {
			return fmt.Errorf("nothing was noticed")
		}
		return nil
	})
	g.settle(t)
	mustHold(t, b, want.Ruleset)
	if g.reads == 0 {
		t.Error("not everything was read")
	}
}

// A rule that came, was read, and went again between two looks of the legacy watch leaves equal hashes, and what was read is wrong: a
// sign of a change says so then, once.
func TestReadBetweenLooks(t *testing.T) {
	inNamespace(t)
	b, err := Detect(context.Background(), Legacy)
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, NewRules(b), newWorld(cluster.IPv4, 3).desired())
	w, err := b.openLegacyWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	socket, err := openSocket(cluster.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	v := newLegacyView(cluster.IPv4, socket)
	look := func(hinted, want bool) {
		t.Helper()
		changed, err := v.look(b, hinted)
		if err != nil || changed != want {
			t.Errorf("changed is %t, want %t (%v)", changed, want, err)
		}
	}
	look(false, false)
	tamper(t, b.Binaries[cluster.IPv4].Command, "-I FORWARD -j REJECT")
	if _, err := b.Read(context.Background(), cluster.IPv4, nil); err != nil {
		t.Fatal(err)
	}
	tamper(t, b.Binaries[cluster.IPv4].Command, "-D FORWARD -j REJECT")
	look(true, true)
	look(true, false)
}
