package iptables_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
	"github.com/fairway-net/fairway/test/textkernel"
)

var options = iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true}

var config = proxy.Config{NodeName: synth.NodeName, ClusterCIDRs: proxy.PairOf([]netip.Prefix{
	netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:10:128::/48")}),
	Addresses: &proxy.AddressPolicy{AllExternalIPs: true, AllLoadBalancerIPs: true}}

// same compares what rule sets say.
func same(t *testing.T, what string, got, want *iptables.Ruleset) {
	t.Helper()
	if d := iptables.Diff(got, want); !d.Empty() {
		t.Fatalf("%s: there is a difference left:\n%s", what, d)
	}
	if d := iptables.Diff(want, got); !d.Empty() {
		t.Fatalf("%s: there is a difference left, the other way round:\n%s", what, d)
	}
}

// TestRandomWalk walks through clusters: at every step the memo must not show, and what Diff writes must lead from the
// one to the other, without a moment in which a VIP is neither translated nor rejected.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := synth.Random(r)
		tables := map[cluster.Family]*proxy.Table{}
		rules := map[cluster.Family]*iptables.Ruleset{}
		kernels := map[cluster.Family]*iptables.Ruleset{cluster.IPv4: {Family: cluster.IPv4}, cluster.IPv6: {Family: cluster.IPv6}}
		config := config
		config.ForwardUnknown = seed%4 == 3
		config.NodePorts = &proxy.NodePortPolicy{Localhost: seed%2 == 1}
		if seed%3 == 1 {
			s.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("fd00:10:96::/112")}
		}
		for step := range 15 {
			what := fmt.Sprintf("seed %d, step %d", seed, step)
			for _, f := range cluster.Families {
				table, notes := proxy.Plan(s, f, config, tables[f])
				fresh, freshNotes := proxy.Plan(s, f, config, nil)
				if !reflect.DeepEqual(cluster.SortNotes(notes), cluster.SortNotes(freshNotes)) {
					t.Fatalf("%s: the memo shows in the notes: %v, expected %v", what, notes, freshNotes)
				}
				o := options
				o.Large, o.Counters = step%7 == 6, step%5 == 4
				want := iptables.Render(table, o, rules[f])
				if got, from := want.String(), iptables.Render(fresh, o, nil).String(); got != from {
					t.Fatalf("%s: the memo shows in the rules:\n%s\nexpected\n%s", what, got, from)
				}
				had := served(kernels[f])
				diff := iptables.Diff(kernels[f], want)
				if seed%2 == 1 {
					diff = iptables.DiffInStages(kernels[f], want, 1+step%4*3)
				}
				after, err := textkernel.Apply(kernels[f], diff, func(between *iptables.Ruleset) {
					now := served(between)
					for vip := range had {
						if wanted := served(want); wanted[vip] && !now[vip] {
							t.Fatalf("%s: between two commits %s is neither translated nor rejected", what, vip)
						}
					}
				})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				same(t, what, after, want)
				if parsed, err := iptables.Parse(f, want.String()); err != nil || parsed.String() != want.String() {
					t.Fatalf("%s: parsed and printed again it differs (%v)", what, err)
				}
				tables[f], rules[f], kernels[f] = table, want, after
			}
			s = synth.Step(r, s)
		}
	}
}

// served returns the matches of VIPs that are translated or rejected.
func served(r *iptables.Ruleset) map[string]bool {
	vips := map[string]bool{}
	for _, name := range iptables.Tables {
		for _, c := range r.Table(name).Chains {
			for line := range strings.Lines(c.Rules) {
				f := strings.Fields(line)
				i, j := index(f, "-d"), index(f, "--dport")
				// A rule with "!" masquerades; it stands in the service's own chain.
				if i > 0 && j > 0 && (strings.HasSuffix(f[i+1], "/32") || strings.HasSuffix(f[i+1], "/128")) && index(f, "!") < 0 {
					vips[f[i+1]+" "+f[index(f, "-p")+1]+" "+f[j+1]] = true
				}
			}
		}
	}
	return vips
}

func index(fields []string, f string) int {
	for i, g := range fields {
		if f == g {
			return i
		}
	}
	return -1
}

// TestHashes holds the names to kube-proxy's.
func TestHashes(t *testing.T) {
	svc := &cluster.Service{Namespace: "default", Name: "kubernetes", UID: "s",
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []cluster.ServicePort{{Name: "https", Protocol: cluster.TCP, Port: 443}},
		Slices: []*cluster.EndpointSlice{{Name: "x", Family: cluster.IPv4, Ports: []cluster.EndpointPort{{Name: "https", Protocol: cluster.TCP, Port: 6443}},
			Endpoints: []cluster.Endpoint{{Addr: netip.MustParseAddr("172.18.0.2"), Ready: true, Serving: true}}}}}
	table, _ := proxy.Plan(&cluster.Snapshot{Services: []*cluster.Service{svc}}, cluster.IPv4, config, nil)
	r := iptables.Render(table, options, nil)
	for _, name := range []string{"KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-V2PECCYPB6X2GSCW"} {
		if r.NAT.Chain(name) == nil {
			t.Errorf("there is no chain %s in\n%s", name, r)
		}
	}
}

// TestForeignRules: of the rules in built-in chains, those that lead to an entry chain are ours, whatever their words.
// Others stay, and what they lead to stays as well.
func TestForeignRules(t *testing.T) {
	have, err := iptables.Parse(cluster.IPv4, `*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:OTHERS - [0:0]
-A PREROUTING -m comment --comment "in an older version's words" -j KUBE-SERVICES
-A PREROUTING -s 192.0.2.1/32 -j KUBE-MARK-MASQ
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES"
-A PREROUTING -j LOG --log-prefix "not -j KUBE-SERVICES either "
-A OTHERS -g KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-MARK-MASQ
COMMIT
`)
	if err != nil {
		t.Fatal(err)
	}
	const want = `*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-D PREROUTING -m comment --comment "in an older version's words" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-XPGD46QRK7WJZT7O
COMMIT
`
	if got := iptables.Diff(have, &iptables.Ruleset{Family: cluster.IPv4}).String(); got != want {
		t.Errorf("to remove what is ours:\n%s\nexpected\n%s", got, want)
	}
}

func TestLargeCluster(t *testing.T) {
	for _, c := range []struct {
		endpoints int
		was, want bool
	}{{1000, false, false}, {1001, false, true}, {900, true, true}, {800, true, true}, {799, true, false}} {
		if got := iptables.LargeCluster(c.endpoints, c.was); got != c.want {
			t.Errorf("LargeCluster(%d, %v) = %v", c.endpoints, c.was, got)
		}
	}
}

// TestSize holds the rule set of a large cluster to what the layout promises.
func TestSize(t *testing.T) {
	table, _ := proxy.Plan(synth.Even(100, 10000, 5), cluster.IPv4, config, nil)
	o := options
	o.Large = true
	r := iptables.Render(table, o, nil)
	if n := r.Lines(); n > 90000 {
		t.Errorf("10,000 services with 5 endpoints have %d lines, expected at most 90,000", n)
	}
	longest := 0
	for _, c := range r.NAT.Chains {
		longest = max(longest, strings.Count(c.Rules, "\n"))
	}
	if longest > 48 {
		t.Errorf("the longest chain has %d rules", longest)
	}
	t.Logf("%d lines, the longest chain has %d rules", r.Lines(), longest)
}

func BenchmarkPlanAndRender(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		s := synth.Even(100, n, 5)
		o := options
		o.Large = true
		b.Run(fmt.Sprintf("services=%d/from=nothing", n), func(b *testing.B) {
			for b.Loop() {
				t, _ := proxy.Plan(s, cluster.IPv4, config, nil)
				iptables.Render(t, o, nil)
			}
		})
		b.Run(fmt.Sprintf("services=%d/from=one-change", n), func(b *testing.B) {
			t, _ := proxy.Plan(s, cluster.IPv4, config, nil)
			r := iptables.Render(t, o, nil)
			i := 0
			for b.Loop() {
				i++
				s = synth.Changed(s, i*7919%n, i)
				t, _ = proxy.Plan(s, cluster.IPv4, config, t)
				next := iptables.Render(t, o, r)
				if iptables.Diff(r, next).Empty() {
					b.Fatal("the change led to nothing")
				}
				r = next
			}
		})
	}
}
