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

// saved is a rule set as iptables-save prints it, with rules of others before and after ours in filter's OUTPUT.
func saved(t *testing.T) (text string, want *iptables.Ruleset) {
	t.Helper()
	table, _ := proxy.Plan(synth.Even(2, 6, 2), cluster.IPv4, proxy.Config{NodePorts: &proxy.NodePortPolicy{Localhost: true}}, nil)
	want = iptables.Render(table, options, nil)
	filter, nat, _ := strings.Cut(want.String(), "COMMIT\n")
	before, after, _ := strings.Cut(filter, "-A OUTPUT -m conntrack")
	return before + "-A OUTPUT -d 192.0.2.1/32 -j DROP\n-A OUTPUT -m conntrack" + after + "-A OUTPUT -j LOG\nCOMMIT\n" + nat, want
}

func parsed(t *testing.T, text string) *iptables.Ruleset {
	t.Helper()
	r, err := iptables.Parse(cluster.IPv4, text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const outputJump = `-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES` + "\n"

// A jump that is put back in filter stands where it stood: behind KUBE-FIREWALL and the operator's rule, which keep their places.
func TestPlaceInFilter(t *testing.T) {
	text, want := saved(t)
	known := parsed(t, text)
	read := parsed(t, strings.Replace(text, outputJump, "", 1))
	if got := iptables.Drifts(known, read); len(got) != 1 || got[0].Kind != iptables.JumpMissing || got[0].Chain != "OUTPUT" {
		t.Errorf("found %v", got)
	}
	read.Filter.Remember(&known.Filter)
	input := iptables.Diff(read, want).String()
	// KUBE-FIREWALL is taken out for the moment, so one rule is left before it.
	if !strings.Contains(input, "-D OUTPUT -j KUBE-FIREWALL\n-I OUTPUT 2 ") || !strings.Contains(input, "-I OUTPUT 1 -j KUBE-FIREWALL\n") {
		t.Errorf("the input is\n%s", input)
	}
	if got := iptables.Written(read, want).Filter.Builtins["OUTPUT"]; !slices.Equal(got, known.Filter.Builtins["OUTPUT"]) {
		t.Errorf("afterwards it is known that OUTPUT has %q, expected %q", got, known.Filter.Builtins["OUTPUT"])
	}
	if got := known.Filter.Above("OUTPUT"); !slices.Equal(got, []string{"-A OUTPUT -d 192.0.2.1/32 -j DROP\n"}) {
		t.Errorf("above are %q", got)
	}
}

// What is read of single chains takes the place of what was known of them, and nothing else.
func TestPatch(t *testing.T) {
	text, _ := saved(t)
	known := parsed(t, text)
	before := known.String()
	part := parsed(t, "*filter\nCOMMIT\n*nat\n:KUBE-MARK-MASQ - [0:0]\n:OUTPUT ACCEPT [0:0]\n-A KUBE-MARK-MASQ -j RETURN\n-A OUTPUT -j ACCEPT\nCOMMIT\n")
	patched := iptables.Patch(known, part, []iptables.ChainName{{Table: "nat", Chain: "KUBE-MARK-MASQ"}, {Table: "nat", Chain: "OUTPUT"}, {Table: "nat", Chain: "KUBE-NODEPORTS"}})
	var got []string
	for _, d := range iptables.Drifts(known, patched) {
		got = append(got, d.Chain+" "+string(d.Kind))
	}
	slices.Sort(got)
	if want := []string{"KUBE-MARK-MASQ rule-changed", "KUBE-NODEPORTS chain-missing", "OUTPUT jump-missing"}; !slices.Equal(got, want) {
		t.Errorf("found %q, expected %q", got, want)
	}
	if known.String() != before {
		t.Error("what was known has been changed")
	}
}
