package iptables_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

// TestParserPieces: in whatever pieces the text comes, the result is the same; and what was known is not stored twice.
func TestParserPieces(t *testing.T) {
	table, _ := proxy.Plan(synth.Even(4, 200, 3), cluster.IPv4, config, nil)
	want := iptables.Render(table, options, nil)
	text := want.String()
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		p := iptables.NewParser(cluster.IPv4, want)
		for rest := text; rest != ""; {
			n := min(len(rest), 1+r.IntN(2000))
			if _, err := p.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		got, err := p.Ruleset()
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != text {
			t.Fatal("parsed and printed again it differs")
		}
		for i, c := range got.NAT.Chains {
			if unsafe.StringData(c.Rules) != unsafe.StringData(want.NAT.Chains[i].Rules) {
				t.Fatalf("the rules of chain %s are stored twice", c.Name)
			}
		}
	}
}

// TestParserApart: a chain whose rules do not come in one piece has them all, in their order.
func TestParserApart(t *testing.T) {
	const text = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SVC-B - [0:0]\n-A KUBE-SVC-A -j RETURN\n-A KUBE-SVC-B -j RETURN\n-A KUBE-SVC-A -j ACCEPT\nCOMMIT\n"
	r, err := iptables.Parse(cluster.IPv4, text)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.NAT.Chain("KUBE-SVC-A").Rules, "-A KUBE-SVC-A -j RETURN\n-A KUBE-SVC-A -j ACCEPT\n"; got != want {
		t.Errorf("the chain has %q, expected %q", got, want)
	}
}

func TestParserRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"*nat\nhello\nCOMMIT\n":         `line 2: "hello"`,
		"*nat\n:KUBE-SVC-A\nCOMMIT\n":   "line 2: chain",
		"-A KUBE-SVC-A -j RETURN\n":     "line 1: ",
		"*nat\n:KUBE-SVC-A - [0:0]\n":   `ends within table "nat"`,
		"*nat\n-A KUBE-SVC-A -j RETURN": `ends within table "nat"`,
	} {
		if r, err := iptables.Parse(cluster.IPv4, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, %v; expected an error with %s", text, r, err, want)
		}
	}
}

// TestUnshownTable: a table that is not shown is not an empty one.
func TestUnshownTable(t *testing.T) {
	const of = "# Table `%s' is incompatible, use 'nft' tool.\n"
	const filter = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
	if _, err := iptables.Parse(cluster.IPv4, filter+fmt.Sprintf(of, "mangle")); err != nil {
		t.Errorf("a table of others: %v", err)
	}
	_, err := iptables.Parse(cluster.IPv4, filter+fmt.Sprintf(of, "nat"))
	if unshown := iptables.UnshownError(""); !errors.As(err, &unshown) || unshown != "nat" || !strings.Contains(err.Error(), "table nat has rules") {
		t.Errorf("nat: %v", err)
	}
}
