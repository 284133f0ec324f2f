package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

func TestSyncWritesOnlyWhatChanged(t *testing.T) {
	k := newFake(cluster.IPv4)
	rules := NewRules(k)
	w := newWorld(cluster.IPv4, 30)
	want := w.desired()
	first := mustSync(t, rules, want)[0]
	nat, filter := 0, 0
	for line := range strings.Lines(want.Ruleset.String()) {
		switch {
		case line == "*nat\n":
			filter, nat = nat, 0
		case strings.HasPrefix(line, "-A "):
			nat++
		}
	}
	if first.RulesNAT != nat || first.RulesFilter != filter {
		t.Errorf("counted %d and %d rules, want %d and %d", first.RulesFilter, first.RulesNAT, filter, nat)
	}
	if !first.Full || first.WroteNAT != nat || first.WroteFilter != filter {
		t.Errorf("at start (full %t) %d and %d rules were written, want %d and %d", first.Full, first.WroteFilter, first.WroteNAT, filter, nat)
	}
	if k.applies != 1 || k.reads != 2 {
		t.Errorf("at start %d writes and %d reads, want 1 and 2 (before, and to see how it is printed)", k.applies, k.reads)
	}
	second := mustSync(t, rules, want)[0]
	if second.Written || second.Full || second.WroteFilter+second.WroteNAT > 0 || k.applies != 1 || k.reads != 2 {
		t.Errorf("with nothing changed: %+v, %d writes, %d reads", second, k.applies, k.reads)
	}
	w.services[7] = w.service(7, 4)
	want = w.desired()
	third := mustSync(t, rules, want)[0]
	if !third.Written || third.Full || third.WroteNAT == 0 || third.WroteNAT > third.Lines || third.Chains > 6 || k.applies != 2 || k.reads != 2 {
		t.Errorf("after one change: %+v, %d writes, %d reads", third, k.applies, k.reads)
	}
	mustHold(t, k, want.Ruleset)
	rules.Invalidate()
	if fourth := mustSync(t, rules, want)[0]; !fourth.Full || fourth.Written {
		t.Errorf("after it was told to look again: %+v", fourth)
	}
}

// After any failure the kernel is read again, and one family's failure does not keep the other from being written.
func TestSyncAfterFailure(t *testing.T) {
	broken := errors.New("broken")
	k4, k6 := newFake(cluster.IPv4), newFake(cluster.IPv6)
	rules := NewRules(both{k4, k6})
	want := []Desired{newWorld(cluster.IPv4, 3).desired(), newWorld(cluster.IPv6, 3).desired()}
	for _, stage := range []string{"read", "read of the first write"} {
		k4.fail = broken
		if stage != "read" {
			rules.Invalidate()
		}
		if _, err := rules.Sync(context.Background(), want); !errors.Is(err, broken) {
			t.Fatalf("%s: %v", stage, err)
		}
		mustHold(t, k6, want[1].Ruleset)
		mustSync(t, rules, want...)
		mustHold(t, k4, want[0].Ruleset)
	}
	want[0] = newWorld(cluster.IPv4, 5).desired()
	k4.fail = broken
	reads := k4.reads
	if _, err := rules.Sync(context.Background(), want); !errors.Is(err, broken) {
		t.Fatalf("write: %v", err)
	}
	k4.tables[iptables.NAT]["KUBE-MARK-MASQ"] = nil // what became of the failed write is not known
	if reports := mustSync(t, rules, want...); !reports[0].Full || reports[1].Full {
		t.Errorf("after a failed write: %+v", reports)
	}
	if k4.reads == reads {
		t.Error("the kernel was not read after a failed write")
	}
	mustHold(t, k4, want[0].Ruleset)
}

type both struct{ v4, v6 *fakeTables }

func (b both) of(f cluster.Family) *fakeTables {
	if f == cluster.IPv6 {
		return b.v6
	}
	return b.v4
}

func (b both) Read(ctx context.Context, f cluster.Family, known *iptables.Ruleset) (*iptables.Ruleset, error) {
	return b.of(f).Read(ctx, f, known)
}

func (b both) Diff(have, want *iptables.Ruleset) *iptables.Restore { return iptables.Diff(have, want) }

func (b both) ReadChains(ctx context.Context, f cluster.Family, chains []iptables.ChainName) (*iptables.Ruleset, error) {
	return b.of(f).ReadChains(ctx, f, chains)
}

func (b both) Apply(ctx context.Context, f cluster.Family, r *iptables.Restore) error {
	return b.of(f).Apply(ctx, f, r)
}

// refusing makes a fake refuse nat rules that contain one of the texts.
func refusing(texts ...string) func(string) bool {
	return func(section string) bool {
		return strings.HasPrefix(section, "*nat\n") &&
			slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(section, text) })
	}
}

func names(quarantined []Quarantine) (list []string) {
	for _, q := range quarantined {
		list = append(list, q.Note.Object.Name)
	}
	return list
}

// Culprits are found without a line, among many, with few restores.
func TestQuarantineBySearch(t *testing.T) {
	k := newFake(cluster.IPv4)
	k.refuse = refusing("default/svc-0016", "default/svc-0431")
	rules := NewRules(k)
	now := time.Unix(1e9, 0)
	rules.now = func() time.Time { return now }
	w := newWorld(cluster.IPv4, 600)
	want := w.desired()
	report := mustSync(t, rules, want)[0]
	if got := names(report.Quarantined); !slices.Equal(got, []string{"svc-0016", "svc-0431"}) {
		t.Fatalf("in quarantine: %v", got)
	}
	if report.Refused > 24 || k.applies > maxRestores {
		t.Errorf("%d refusals in %d restores", report.Refused, k.applies)
	}
	refused := map[cluster.Ref]proxy.Earlier{w.services[16].Ref(): {}, w.services[431].Ref(): {}}
	mustHold(t, k, iptables.Render(want.Table.Keeping(refused), want.Options, nil))

	// The one that is refused still waits twice as long; a changed one is tried at once.
	now = now.Add(retryFirst)
	if report = mustSync(t, rules, want)[0]; report.Retry != 2*retryFirst || report.Refused == 0 {
		t.Errorf("after the first wait: %+v", report)
	}
	k.refuse = refusing("default/svc-0431")
	w.services[16] = w.service(16, 3)
	want = w.desired()
	report = mustSync(t, rules, want)[0]
	if got := names(report.Quarantined); !slices.Equal(got, []string{"svc-0431"}) || !report.Written {
		t.Errorf("after a change: %+v", report)
	}
	w.services = slices.Delete(w.services, 431, 432)
	want = w.desired()
	if report = mustSync(t, rules, want)[0]; len(report.Quarantined) != 0 || report.Retry != 0 {
		t.Errorf("a deleted Service is still in quarantine: %+v", report)
	}
	mustHold(t, k, want.Ruleset)
}

// Also with hundreds of culprits a Sync ends, what is not one of them is served, and the rest follows.
func TestQuarantineEnds(t *testing.T) {
	k := newFake(cluster.IPv4)
	k.refuse = refusing(" -p sctp ")
	rules := NewRules(k)
	now := time.Unix(1e9, 0)
	rules.now = func() time.Time { return now }
	want := newWorld(cluster.IPv4, 900).desired()
	report := mustSync(t, rules, want)[0]
	if k.applies > maxRestores+2 {
		t.Errorf("%d restores in one Sync", k.applies)
	}
	sctp := map[cluster.Ref]bool{}
	for _, q := range report.Quarantined {
		sctp[q.Note.Object] = true
	}
	for _, p := range want.Table.Ports {
		if p.Protocol != cluster.SCTP && sctp[p.Service.Ref()] {
			t.Errorf("%s is in quarantine", p.Name)
		}
	}
	k.refuse = nil
	now = now.Add(retryFirst)
	if report = mustSync(t, rules, want)[0]; len(report.Quarantined) != 0 {
		t.Errorf("%d are still in quarantine", len(report.Quarantined))
	}
	mustHold(t, k, want.Ruleset)
}

// A failure that passes while the agent looks for whom to blame puts nobody into quarantine, whenever it passes.
func TestFailureThatPasses(t *testing.T) {
	for failures := 1; failures <= 3; failures++ {
		for _, services := range []int{1, 5} {
			k := newFake(cluster.IPv4)
			left := failures
			k.refuse = func(string) bool {
				left--
				return left >= 0
			}
			rules := NewRules(k)
			want := newWorld(cluster.IPv4, services).desired()
			reports, err := rules.Sync(context.Background(), []Desired{want})
			if err != nil { // it did not pass in time; the caller tries again
				reports = mustSync(t, rules, want)
			}
			if len(reports[0].Quarantined) > 0 {
				t.Errorf("%d failures, %d Services: in quarantine are %v", failures, services, reports[0].Quarantined)
			}
			mustHold(t, k, want.Ruleset)
		}
	}
}

// When no Service is to blame, that is an error, and nobody goes into quarantine.
func TestRefusedForEverybody(t *testing.T) {
	k := newFake(cluster.IPv4)
	k.refuse = refusing("KUBE-MARK-MASQ")
	rules := NewRules(k)
	want := newWorld(cluster.IPv4, 50).desired()
	reports, err := rules.Sync(context.Background(), []Desired{want})
	if _, ok := refusal(err); !ok {
		t.Fatalf("got %v", err)
	}
	if len(reports[0].Quarantined) != 0 || k.applies > 2 {
		t.Errorf("%d restores, in quarantine: %v", k.applies, reports[0].Quarantined)
	}
	k.refuse = nil
	mustSync(t, rules, want)
	mustHold(t, k, want.Ruleset)
}

// When restores fail and one Service is all that changed, nothing is left to write without it. That does not convict it: it is an error,
// and the Service is served as soon as restores go through.
func TestRefusedWhateverItIs(t *testing.T) {
	k := newFake(cluster.IPv4)
	rules := NewRules(k)
	w := newWorld(cluster.IPv4, 5)
	mustSync(t, rules, w.desired())
	w.services[3] = w.service(3, 5)
	k.refuse = func(string) bool { return true }
	reports, err := rules.Sync(context.Background(), []Desired{w.desired()})
	if _, ok := refusal(err); !ok || len(reports[0].Quarantined) != 0 {
		t.Errorf("got %v, in quarantine: %v", err, reports[0].Quarantined)
	}
	k.refuse = nil
	mustSync(t, rules, w.desired())
	mustHold(t, k, w.desired().Ruleset)
}

// A host whose iptables words rules differently: written once, never taken for tampering, and tampering still found.
func TestSpelling(t *testing.T) {
	k := newFake(cluster.IPv4)
	k.print = func(rule string) string {
		// Not in the chain's name, which may end like that.
		begin, rest, _ := strings.Cut(strings.TrimPrefix(rule, "-A "), " ")
		return "-A " + begin + " " + strings.ReplaceAll(strings.ReplaceAll(rest, "0x4000/0x4000", "0x00004000/0x4000"), "/32 ", " ")
	}
	k.print = func(print func(string) string) func(string) string {
		return func(rule string) string {
			return strings.ReplaceAll(print(rule), `"kubernetes service portals"`, "kubernetes-service-portals")
		}
	}(k.print)
	rules := NewRules(k)
	w := newWorld(cluster.IPv4, 30)
	idle := func(when string) {
		t.Helper()
		rules.Invalidate()
		if report := mustSync(t, rules, w.desired())[0]; report.Written {
			t.Errorf("%s: it was written again", when)
		}
	}
	mustSync(t, rules, w.desired())
	idle("after the first write")
	w.services[3] = w.service(3, 2)
	mustSync(t, rules, w.desired())
	idle("after a change")
	k.tables[iptables.NAT]["KUBE-MARK-MASQ"][0] = "-j MARK --set-xmark 0x1/0x1"
	rules.Invalidate()
	if report := mustSync(t, rules, w.desired())[0]; !report.Written {
		t.Errorf("a changed rule was not found")
	}
	idle("after a repair")
	k.tables[iptables.NAT]["PREROUTING"] = nil
	rules.Invalidate()
	if report := mustSync(t, rules, w.desired())[0]; !report.Written {
		t.Errorf("a deleted jump was not found")
	}
	idle("after the second repair")

	// A spelling that first turns up later, and is noticed by reading again: repaired once, then known.
	k = newFake(cluster.IPv4)
	rules = NewRules(k)
	mustSync(t, rules, w.desired())
	k.print = func(rule string) string { return strings.ReplaceAll(rule, " -p sctp ", " -p 132 ") }
	w.services[2] = w.service(2, 3)
	mustSync(t, rules, w.desired())
	rules.Invalidate()
	mustSync(t, rules, w.desired())
	idle("after a late spelling")
}

// A program that undoes what was just written is an error, not a spelling.
func TestInterference(t *testing.T) {
	k := newFake(cluster.IPv4)
	rules := NewRules(k)
	k.print = func(rule string) string {
		if strings.HasPrefix(rule, "-A KUBE-MARK-MASQ") {
			return "# gone"
		}
		return rule
	}
	if _, err := rules.Sync(context.Background(), []Desired{newWorld(cluster.IPv4, 3).desired()}); err == nil {
		t.Fatal("no error")
	}
	k.print = nil
	want := newWorld(cluster.IPv4, 3).desired()
	mustSync(t, rules, want)
	mustHold(t, k, want.Ruleset)
}

func TestRestoreError(t *testing.T) {
	input := "*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j RETURN\n-A KUBE-SVC-A --foo x\nCOMMIT\n"
	cases := []struct {
		name, stderr string
		code         int
		line         int
		text         string
		locked       bool
	}{
		{"parser", "iptables-restore v1.8.9 (legacy): unknown option \"--foo\"\nError occurred at line: 4\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.",
			2, 4, "-A KUBE-SVC-A --foo x", false},
		{"kernel, legacy", "iptables-restore: line 5 failed", 1, 5, "COMMIT", false},
		{"kernel, nft", "iptables-nft-restore v1.8.9 (nf_tables): \nline 4: RULE_APPEND failed (No such file or directory): rule in chain KUBE-SVC-A", 4, 4, "-A KUBE-SVC-A --foo x", false},
		{"lock", "Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is currently holding the xtables lock. Stopped waiting after 5s.", 4, 0, "", true},
		{"permission", "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)", 4, 0, "", false},
	}
	for _, c := range cases {
		err := fmt.Errorf("sync: %w", newRestoreError(cluster.IPv4, &exitError{c.code, c.stderr}, input))
		var e *RestoreError
		if !errors.As(err, &e) || e.Line != c.line || e.Input != c.text || e.Code != c.code || errors.Is(err, ErrLocked) != c.locked {
			t.Errorf("%s: %+v", c.name, e)
		}
		if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "--help") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestFlockHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 22 fe:00:78 0 EOF
3: FLOCK  ADVISORY  WRITE 33 fe:00:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 44 fe:00:77 0 EOF
`
	if pid := flockHolder(strings.NewReader(locks), 77); pid != 33 {
		t.Errorf("got %d", pid)
	}
	if pid := flockHolder(strings.NewReader(locks), 79); pid != 0 {
		t.Errorf("got %d for a file that nobody holds", pid)
	}
}

func TestLimited(t *testing.T) {
	for _, full := range []error{nil, errOutput} {
		l := &limited{limit: 5, full: full}
		l.Write([]byte("abc"))
		if n, err := l.Write([]byte("defg")); l.text.String() != "abcde" || !l.overrun || n != 4 || err != full {
			t.Errorf("kept %q, overrun %v, wrote %d, %v", l.text.String(), l.overrun, n, err)
		}
	}
}

// What may be out of date is written only to tables in which nothing of ours stands; there as a whole, and culprits are found.
func TestAddOnly(t *testing.T) {
	now, old := newWorld(cluster.IPv4, 30), newWorld(cluster.IPv4, 20)
	old.services[7] = old.service(7, 5)
	stale := old.desired()
	stale.Add = true
	k := newFake(cluster.IPv4)
	mustSync(t, NewRules(k), stale)
	mustHold(t, k, stale.Ruleset)

	k = newFake(cluster.IPv4)
	k.refuse = refusing("default/svc-0007")
	report := mustSync(t, NewRules(k), stale)[0]
	if got := names(report.Quarantined); !slices.Equal(got, []string{"svc-0007"}) {
		t.Errorf("in quarantine: %v", got)
	}

	k = newFake(cluster.IPv4)
	current := now.desired()
	mustSync(t, NewRules(k), current)
	rules := NewRules(k)
	if report := mustSync(t, rules, stale)[0]; report.Written {
		t.Errorf("what is newer was written over: %+v", report)
	}
	mustHold(t, k, current.Ruleset)
	k.tables[iptables.NAT] = newFake(cluster.IPv4).tables[iptables.NAT]
	rules.Invalidate()
	mustSync(t, rules, stale)
	mixed := *current.Ruleset
	mixed.NAT = stale.Ruleset.NAT
	mustHold(t, k, &mixed)
	mustSync(t, rules, current)
	mustHold(t, k, current.Ruleset)
}
