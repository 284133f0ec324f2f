package iptables_test

import (
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
	"github.com/fairway-net/fairway/test/textkernel"
)

// TestStages: after every commit, what packets meet in nat is all as before or all as wanted.
func TestStages(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	var rulesets []*iptables.Ruleset
	for range 6 {
		table, _ := proxy.Plan(synth.Random(r), cluster.IPv4, config, nil)
		rulesets = append(rulesets, iptables.Render(table, options, nil))
	}
	rulesets = append(rulesets, &iptables.Ruleset{Family: cluster.IPv4})
	have := rulesets[len(rulesets)-1]
	for i := range 30 {
		if i%3 == 2 { // somebody takes rules away, all of nat's or some chains'
			have = flushed(have, i%2 == 0, func() bool { return r.IntN(1+i%4) == 0 })
		}
		want := rulesets[r.IntN(len(rulesets))]
		before, after := reachable(have), reachable(want)
		most := 1 + r.IntN(9)
		commits, diff := 0, iptables.DiffInStages(have, want, most)
		got, err := textkernel.Apply(have, diff, func(between *iptables.Ruleset) {
			commits++
			if now := reachable(between); !maps.Equal(now, before) && !maps.Equal(now, after) {
				t.Fatalf("with stages of %d, after commit %d nat is between the two in\n%s", most, commits, diff)
			}
		})
		if err != nil {
			t.Fatalf("stages of %d: %v", most, err)
		}
		same(t, "at the end", got, want)
		if one := iptables.Diff(have, want); len(one.Services()) != len(diff.Services()) || one.Chains() != diff.Chains() {
			t.Errorf("stages of %d write %d chains of %d Services, one commit %d of %d", most, diff.Chains(), len(diff.Services()), one.Chains(), len(one.Services()))
		}
		have = got
	}
}

// flushed returns a Ruleset of which chains of nat that are chosen are empty, and the built-in ones if they shall be.
func flushed(r *iptables.Ruleset, builtins bool, chosen func() bool) *iptables.Ruleset {
	after := *r
	if after.NAT.Chains = nil; builtins {
		after.NAT.Jumps, after.NAT.Builtins = nil, nil
	}
	for _, c := range r.NAT.Chains {
		if chosen() {
			c = &iptables.Chain{Name: c.Name}
		}
		after.NAT.Chains = append(after.NAT.Chains, c)
	}
	return &after
}

// reachable returns the rules of nat that packets can meet, by chain.
func reachable(r *iptables.Ruleset) map[string]string {
	met := map[string]string{}
	var follow func(from, rules string)
	follow = func(from, rules string) {
		met[from] += rules
		for rule := range strings.Lines(rules) {
			_, target, _ := strings.Cut(strings.TrimSuffix(rule, "\n"), " -j ")
			name, _, _ := strings.Cut(target, " ")
			c := r.NAT.Chain(name)
			if c == nil {
				continue
			}
			if _, seen := met[c.Name]; !seen {
				follow(c.Name, c.Rules)
			}
		}
	}
	for _, j := range r.NAT.Jumps {
		follow(j.From, j.Rule)
	}
	return met
}

// TestStagesAfterFlush: the chains that a flush leaves, empty, are filled before anything leads to them.
func TestStagesAfterFlush(t *testing.T) {
	table, _ := proxy.Plan(synth.Even(10, 60, 3), cluster.IPv4, config, nil)
	want := iptables.Render(table, options, nil)
	have := flushed(want, true, func() bool { return true })
	full := 0
	got, err := textkernel.Apply(have, iptables.DiffInStages(have, want, 7), func(between *iptables.Ruleset) {
		if len(between.NAT.Jumps) > 0 {
			return
		}
		now := 0
		for _, c := range between.NAT.Chains {
			if c.Rules != "" {
				now++
			}
		}
		if now <= full || now > full+7 {
			t.Errorf("a commit fills %d chains, expected 1 to 7", now-full)
		}
		full = now
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "at the end", got, want)
	if all := len(want.NAT.Chains); full != all {
		t.Errorf("%d of %d chains are filled before there is a jump to them", full, all)
	}
}

// TestStagesBlame: a line of any stage leads to its Service.
func TestStagesBlame(t *testing.T) {
	table, _ := proxy.Plan(synth.Even(10, 60, 3), cluster.IPv4, config, nil)
	diff := iptables.DiffInStages(&iptables.Ruleset{Family: cluster.IPv4}, iptables.Render(table, options, nil), 7)
	blamed := map[cluster.Ref]bool{}
	n := 0
	for line := range strings.Lines(diff.String()) {
		n++
		if ref, ok := diff.Blame(n); ok {
			if !strings.HasPrefix(line, "-A ") || strings.Contains(line, "--comment") && !strings.Contains(line, ref.Namespace+"/"+ref.Name) {
				t.Errorf("line %d is blamed on %s: %s", n, ref, line)
			}
			blamed[ref] = true
		}
	}
	if len(blamed) != 60 || n != diff.Lines() {
		t.Errorf("the %d lines lead to %d Services, expected 60", n, len(blamed))
	}
}

// TestStagesRejectFirst: on a first load, what must be rejected is, from before the first chain of nat.
func TestStagesRejectFirst(t *testing.T) {
	table, _ := proxy.Plan(synth.Even(10, 60, 3), cluster.IPv4, config, nil)
	want := iptables.Render(table, options, nil)
	commits := 0
	_, err := textkernel.Apply(&iptables.Ruleset{Family: cluster.IPv4}, iptables.DiffInStages(&iptables.Ruleset{Family: cluster.IPv4}, want, 7), func(between *iptables.Ruleset) {
		if commits++; commits > 1 {
			return
		}
		if len(between.NAT.Chains) > 0 || len(between.Filter.Jumps) != len(want.Filter.Jumps) || len(between.Filter.Chains) != len(want.Filter.Chains) {
			t.Errorf("after the first commit nat has %d chains, and filter %d jumps and %d chains of %d and %d", len(between.NAT.Chains),
				len(between.Filter.Jumps), len(between.Filter.Chains), len(want.Filter.Jumps), len(want.Filter.Chains))
		}
	})
	if err != nil || commits < 3 {
		t.Errorf("%d commits: %v", commits, err)
	}
}
