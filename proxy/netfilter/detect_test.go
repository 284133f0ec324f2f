package netfilter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// fakeHost is a host by the names of its binaries and what they print; a value that begins with "!" is a failure.
type fakeHost map[string]string

func (h fakeHost) detector() *detector {
	return &detector{
		run: func(_ context.Context, c command) (string, error) {
			out := h[strings.TrimPrefix(c.path, "/sbin/")]
			if len(c.args) > 0 {
				out = h[strings.TrimPrefix(c.String(), "/sbin/")]
			}
			if stderr, failed := strings.CutPrefix(out, "!"); failed {
				return "", &exitError{code: 1, stderr: stderr}
			}
			return out, nil
		},
		lookPath: func(name string) (string, error) {
			if _, ok := h[name]; !ok {
				return "", errors.New("not found")
			}
			return "/sbin/" + name, nil
		},
		version: func(_ cluster.Family, path string) (v [3]int, randomFully bool, err error) {
			if h["old"] != "" {
				return [3]int{1, 4, 21}, false, nil
			}
			return [3]int{1, 8, 9}, true, nil
		},
		hasIPv6: func() bool { return h["no IPv6"] == "" },
	}
}

// hostWith has the binaries of the given commands; more are pairs of what a command prints.
func hostWith(commands string, more ...string) fakeHost {
	h := fakeHost{}
	for _, c := range strings.Fields(commands) {
		h[c], h[c+"-save"], h[c+"-restore"] = "", "", ""
	}
	for i := 0; i < len(more); i += 2 {
		h[more[i]] = more[i+1]
	}
	return h
}

const (
	allCommands  = "iptables iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft"
	plainVersion = "iptables --version"
	hint         = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
	canary       = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
	threeRules   = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
	ofKubeProxy  = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-FIREWALL - [0:0]\n-A KUBE-SERVICES -j RETURN\nCOMMIT\n"
	probe        = " -w 1 -t nat -S POSTROUTING"
)

func TestDetect(t *testing.T) {
	cases := []struct {
		name, choice string
		host         fakeHost
		want         string // backend and families
		says         string // part of Why, Missing, Warnings or the error
	}{
		{"asked for", Legacy, hostWith(allCommands), "legacy IPv4 IPv6", "it was asked for"},
		{"hint", Auto, hostWith(allCommands, "iptables-legacy-save", hint, "iptables-nft-save", threeRules), "legacy IPv4 IPv6", "kubelet's chain KUBE-IPTABLES-HINT is in iptables-legacy"},
		{"hint of the other family", Auto, hostWith(allCommands, "ip6tables-nft-save", hint, "iptables-legacy-save", threeRules), "nft IPv4 IPv6", "KUBE-IPTABLES-HINT is in iptables-nft"},
		{"older hint", Auto, hostWith(allCommands, "iptables-nft-save", canary), "nft IPv4 IPv6", "KUBE-KUBELET-CANARY"},
		{"both hints, more rules", "", hostWith(allCommands, "iptables-nft-save", hint, "iptables-legacy-save", hint+threeRules), "legacy IPv4 IPv6", "iptables-legacy holds 3 rules, iptables-nft 0"},
		{"more rules", Auto, hostWith(allCommands, "iptables-nft-save", threeRules, "iptables-legacy-save", ofKubeProxy), "nft IPv4 IPv6", "iptables-nft holds 3 rules, iptables-legacy 1"},
		{"not readable", Auto, hostWith(allCommands, "iptables-legacy-save", "!Permission denied (you must be root)", plainVersion, "iptables v1.8.9 (nf_tables)"), "nft IPv4 IPv6", "give the agent the capabilities NET_ADMIN and NET_RAW"},
		{"left by kube-proxy", Auto, hostWith(allCommands, "iptables-nft-save", threeRules, "iptables-legacy-save", ofKubeProxy), "nft IPv4 IPv6", "iptables-legacy holds 1 chains of Services"},
		{"nothing there, plain is legacy", Auto, hostWith(allCommands, plainVersion, "iptables v1.8.9 (legacy)"), "legacy IPv4 IPv6", "the plain iptables command is iptables-legacy"},
		{"nothing there, plain is nft", Auto, hostWith(allCommands, plainVersion, "iptables v1.8.9 (nf_tables)"), "nft IPv4 IPv6", "the plain iptables command is iptables-nft"},
		{"nothing there, no plain", Auto, hostWith("iptables-nft iptables-legacy"), "nft IPv4", "there is no plain iptables command"},
		{"plain alone", Auto, hostWith("iptables ip6tables", plainVersion, "iptables v1.8.9 (nf_tables)", "ip6tables --version", "ip6tables v1.8.9 (nf_tables)"), "nft IPv4 IPv6", ""},
		{"plain alone, before 1.8", Legacy, hostWith("iptables", plainVersion, "iptables v1.6.2"), "legacy IPv4", "ip6tables-legacy is not in PATH"},
		{"plain is the other one", Legacy, hostWith("iptables", plainVersion, "iptables v1.8.9 (nf_tables)"), "", "legacy: IPv4: iptables-legacy is not in PATH"},
		{"no save", NFT, fakeHost{"iptables-nft": "", "iptables-nft-restore": ""}, "", "iptables-nft-save is not in PATH"},
		{"v6 refused", NFT, hostWith(allCommands, "ip6tables-nft"+probe, "!ip6tables v1.8.9: can't initialize ip6tables table `nat'"), "nft IPv4", "the kernel refuses it (ip6tables v1.8.9: can't initialize"},
		{"v4 refused", NFT, hostWith(allCommands, "iptables-nft"+probe, "!broken"), "nft IPv6", "the kernel refuses it (broken)"},
		{"lock held", Legacy, hostWith(allCommands, "iptables-legacy"+probe, "!Another app is currently holding the xtables lock. Stopped waiting after 1s."), "legacy IPv4 IPv6", ""},
		{"no IPv6", NFT, hostWith(allCommands, "no IPv6", "yes"), "nft IPv4", "the kernel runs without IPv6"},
		{"preferred one does not work", Auto, hostWith(allCommands, "iptables-nft-save", threeRules, "iptables-nft"+probe, "!broken", "ip6tables-nft"+probe, "!broken"), "legacy IPv4 IPv6", "does not work: IPv4: the kernel refuses it (broken)"},
		{"not permitted", NFT, hostWith(allCommands, "iptables-nft"+probe, "!Permission denied (you must be root)", "ip6tables-nft"+probe, "!Permission denied (you must be root)"), "", "not permitted; the capability NET_ADMIN is needed"},
		{"too old", Legacy, hostWith(allCommands, "old", "yes"), "", "is version 1.4.21, 1.6.2 is the oldest that does"},
		{"nothing at all", Auto, fakeHost{}, "", "legacy: IPv4: iptables-legacy is not in PATH"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b, err := c.host.detector().detect(context.Background(), c.choice)
			if (err != nil) != (c.want == "") {
				t.Fatalf("%+v, %v", b, err)
			}
			if err != nil {
				if !errors.Is(err, ErrNoBackend) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v", err)
				}
				return
			}
			got := b.Name
			for _, f := range b.Families() {
				got += " " + f.String()
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if all := fmt.Sprint(b.Why, b.Missing, b.Warnings); !strings.Contains(all, c.says) {
				t.Errorf("%s does not say %q", all, c.says)
			}
		})
	}
	if _, err := Detect(context.Background(), "ipvs"); err == nil || errors.Is(err, ErrNoBackend) {
		t.Errorf("a choice that is none: %v", err)
	}
}

func TestCleanupWithoutIptables(t *testing.T) {
	for says, host := range map[string]fakeHost{
		"is not in PATH":   {},
		"you must be root": hostWith("iptables-nft", "iptables-nft-save", "!Permission denied (you must be root)"),
	} {
		if _, err := host.detector().cleanup(context.Background(), Auto); !errors.Is(err, ErrNoBackend) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
}

// On a real host: the backend in which kubelet's hint is, and no trace left in the other.
func TestDetectForReal(t *testing.T) {
	for _, c := range []struct{ command, input, backend string }{
		{"iptables-legacy-restore", hint, Legacy},
		{"ip6tables-legacy-restore", hint, Legacy},
		{"iptables-nft-restore", hint, NFT},
		{"ip6tables-nft-restore", canary, NFT},
		{"iptables-nft-restore", threeRules, NFT},
	} {
		t.Run(c.command, func(t *testing.T) {
			inNamespace(t)
			shell(t, c.input, c.command, "--noflush")
			b, err := Detect(context.Background(), Auto)
			if err != nil {
				t.Fatal(err)
			}
			if b.Name != c.backend || len(b.Families()) != 2 || b.Version == "" || !b.RandomFully {
				t.Errorf("got %+v", b)
			}
			tables, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
			if err != nil {
				t.Fatal(err)
			}
			if c.backend == NFT && len(tables) > 0 {
				t.Errorf("looking at legacy created its tables %q", tables)
			}
		})
	}
}
