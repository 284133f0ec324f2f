package netfilter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

// Whatever a cluster asks for, the kernel prints the rules for it as they were rendered, and reading them back finds
// nothing to write.
func TestCanonicalRandom(t *testing.T) {
	config := proxy.Config{NodeName: synth.NodeName, ClusterCIDRs: proxy.PairOf([]netip.Prefix{
		netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:10:128::/48")}),
		Addresses: &proxy.AddressPolicy{AllExternalIPs: true, AllLoadBalancerIPs: true}}
	onBackends(t, func(t *testing.T, b *Backend) {
		rules := NewRules(b)
		for seed := range uint64(6) {
			s := synth.Random(rand.New(rand.NewPCG(seed, 11)))
			for _, f := range cluster.Families {
				o := iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true, Large: seed%2 == 1}
				table, _ := proxy.Plan(s, f, config, nil)
				want := desired(table, o)
				if report := mustSync(t, rules, want)[0]; report.Refused > 0 || len(report.Quarantined) > 0 {
					t.Errorf("seed %d, %s: %+v", seed, f, report)
				}
				mustHold(t, b, want.Ruleset)
				if report := mustSync(t, NewRules(b), want)[0]; report.Written {
					t.Errorf("%s is written again by one who finds it there", fmt.Sprint("seed ", seed, " ", f))
				}
			}
		}
	})
}
