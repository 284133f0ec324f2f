package iptables_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// TestStrays: after a kube-proxy has rewritten the fixed chains, the trees of filter that nothing leads to are strays; what somebody
// still uses is none, and nat is kube-proxy's own to sweep.
func TestStrays(t *testing.T) {
	s, err := iptables.ParseSaved(`*filter
:FORWARD ACCEPT [0:0]
:HOUSE - [0:0]
:KUBE-EXT-198.51.100.0/28 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-10.96.0.0/24 - [0:0]
:KUBE-SVC-10.96.0.0/28 - [0:0]
:KUBE-SVC-10.97.0.0/24 - [0:0]
:KUBE-SVC-10.97.0.0/28 - [0:0]
-A FORWARD -j KUBE-SERVICES
-A HOUSE -d 10.97.0.0/24 -j KUBE-SVC-10.97.0.0/24
-A KUBE-SVC-10.96.0.0/24 -d 10.96.0.0/28 -j KUBE-SVC-10.96.0.0/28
-A KUBE-SVC-10.97.0.0/24 -d 10.97.0.0/28 -j KUBE-SVC-10.97.0.0/28
COMMIT
*nat
:KUBE-SVC-10.96.0.0/24 - [0:0]
COMMIT
`)
	if err != nil {
		t.Fatal(err)
	}
	want := "*filter\n:KUBE-EXT-198.51.100.0/28 - [0:0]\n:KUBE-SVC-10.96.0.0/24 - [0:0]\n:KUBE-SVC-10.96.0.0/28 - [0:0]\n" +
		"-X KUBE-EXT-198.51.100.0/28\n-X KUBE-SVC-10.96.0.0/24\n-X KUBE-SVC-10.96.0.0/28\nCOMMIT\n"
	if got := s.Removal(s.Strays()); got.String() != want || got.Chains() != 3 {
		t.Errorf("%d chains by\n%s\nexpected\n%s", got.Chains(), got, want)
	}
}

// TestRemovalKeepsForeign: a chain that somebody else uses is emptied and stays, and then there is nothing to do about it.
func TestRemovalKeepsForeign(t *testing.T) {
	for _, c := range []struct{ name, rules, want string }{
		{"full", "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n", "*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n"},
		{"empty", "", ""},
	} {
		s, err := iptables.ParseSaved("*nat\n:PREROUTING ACCEPT [0:0]\n:HOUSE - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n-A PREROUTING -j KUBE-MARK-MASQ\n-A HOUSE -j KUBE-MARK-MASQ\n" + c.rules + "COMMIT\n")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Removal(iptables.Owned).String(); got != c.want || len(s.Chains(iptables.Owned)) != strings.Count(c.want, ":KUBE") {
			t.Errorf("%s: %q for %q, expected %q", c.name, got, s.Chains(iptables.Owned), c.want)
		}
	}
}

// TestChanges tells what Diff does, in the words of an operator.
func TestChanges(t *testing.T) {
	parse := func(filter, nat string) *iptables.Ruleset {
		r, err := iptables.Parse(cluster.IPv4, "*filter\n"+filter+"COMMIT\n*nat\n"+nat+"COMMIT\n")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	const jump = "-A PREROUTING -j KUBE-SERVICES\n"
	have := parse("", ":PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SVC-B - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-A\n"+jump)
	want := parse("", ":PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-B - [0:0]\n:KUBE-SVC-C - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-C\n")
	changes := iptables.Changes(have, want)
	if len(changes) != 2 || !reflect.DeepEqual(changes[0], iptables.TableChange{Table: iptables.Filter}) {
		t.Fatalf("%+v", changes)
	}
	c := changes[1]
	if c.Table != iptables.NAT || !slices.Equal(c.Added, []string{"KUBE-SVC-C"}) || !slices.Equal(c.Replaced, []string{"KUBE-SERVICES"}) ||
		!slices.Equal(c.Removed, []string{"KUBE-SVC-A"}) || len(c.JumpsAdded) != 0 || !slices.Equal(c.JumpsRemoved, []string{strings.TrimSuffix(jump, "\n")}) {
		t.Errorf("%+v", c)
	}
}
