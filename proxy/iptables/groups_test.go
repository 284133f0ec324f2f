package iptables_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

// crowd renders a cluster with a single Service of so many endpoints, up to 100 to a node.
func crowd(endpoints int, prev *iptables.Ruleset) *iptables.Ruleset {
	table, _ := proxy.Plan(synth.Even(50, 1, endpoints), cluster.IPv4, config, nil)
	return iptables.Render(table, options, prev)
}

// TestGroups: with hundreds of endpoints no packet passes more than tens of rules, and one endpoint more changes two chains of
// the Service, and the endpoint's own.
func TestGroups(t *testing.T) {
	for _, c := range []struct{ endpoints, longest, groups int }{{64, 65, 0}, {65, 17, 16}, {250, 32, 16}, {1000, 56, 32}, {5000, 129, 128}} {
		r := crowd(c.endpoints, nil)
		longest, groups := 0, 0
		for _, chain := range r.NAT.Chains {
			longest = max(longest, strings.Count(chain.Rules, "\n"))
			if strings.HasPrefix(chain.Name, "KUBE-SVC-") && strings.Count(chain.Name, "-") == 3 {
				groups++
			}
		}
		if longest > c.longest || groups > c.groups || groups < c.groups*9/10 {
			t.Errorf("%d endpoints: %d groups, the longest chain has %d rules; expected %d and at most %d", c.endpoints, groups, longest, c.groups, c.longest)
		}
		more := crowd(c.endpoints+1, r)
		changed := 0
		for _, chain := range more.NAT.Chains {
			if old := r.NAT.Chain(chain.Name); old == nil || old.Rules != chain.Rules {
				changed++
			}
		}
		if changed > 3 && c.endpoints != 64 {
			t.Errorf("%d endpoints: one more changed %d chains, expected at most 3", c.endpoints, changed)
		}
		back := crowd(c.endpoints, more)
		if !slices.EqualFunc(back.NAT.Chains, r.NAT.Chains, func(a, b *iptables.Chain) bool { return a.Name == b.Name && a.Rules == b.Rules }) {
			t.Errorf("%d endpoints: one more and one fewer led to other rules", c.endpoints)
		}
	}
}
