package doctor

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden file")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) time.Time { return now.Add(-d) }

// well are the Facts of a node that is all right.
func well() *Facts {
	return &Facts{
		Now: now,
		Agent: &Agent{
			Version: "v0.1.0", Node: "node1", Started: before(50 * time.Hour), Ready: true, Revision: 12, IPTables: "nft",
			Parts: []Part{
				{Name: "routes", Programmed: 12, Verified: before(200 * time.Millisecond), Audited: before(4 * time.Second)},
				{Name: "rules-IPv4", Programmed: 12, Verified: before(400 * time.Millisecond), Audited: before(25 * time.Second)},
			},
			API:          &API{},
			BGP:          BGP{Configured: true, Peers: []BGPPeer{{Address: netip.MustParseAddr("192.0.2.1"), State: "established", Up: true, AskedToKeep: true, Keeps: true}}},
			DropsInvalid: true, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, PodLinks: []string{"cni0"},
		},
		Kernel: Kernel{
			Sysctls:   map[string]string{SysctlIPForward: "1", SysctlBridgeNF: "1", SysctlTCPBeLiberal: "0"},
			Strict:    []string{"eth0"},
			Bridges:   []string{"cni0"},
			Conntrack: Conntrack{Count: 1000, Max: 262144},
			Rules: []Rules{
				{Backend: "legacy", Family: "IPv4", Command: "iptables-legacy"},
				{Backend: "nft", Family: "IPv4", Command: "iptables-nft", Chains: []string{"nat KUBE-SERVICES"}, Policy: "ACCEPT",
					Ways: []Way{{From: netip.MustParseAddr("10.244.1.2"), To: netip.MustParseAddr("10.244.2.2"), Verdict: "accept"}}},
			},
		},
		Networkd: Networkd{Seen: true},
	}
}

// with is well with a change.
func with(change func(*Facts)) *Facts {
	f := well()
	change(f)
	return f
}

// repaired is with a Repair.
func repaired(r Repair) *Facts { return with(func(f *Facts) { f.Agent.Repairs = []Repair{r} }) }

// noted is with Notes of reasons.
func noted(notes ...Note) *Facts { return with(func(f *Facts) { f.Agent.Notes = notes }) }

// own changes the rules of the agent's backend.
func own(change func(*Rules)) *Facts { return with(func(f *Facts) { change(&f.Kernel.Rules[1]) }) }

func way(verdict, rule, why string) []Way {
	return []Way{{From: netip.MustParseAddr("10.244.1.2"), To: netip.MustParseAddr("10.244.2.2"), Verdict: verdict, Rule: rule, Why: why}}
}

// networkd is with systemd-networkd, and routes taken away so long ago; never when that is negative.
func networkd(n Networkd, taken time.Duration) *Facts {
	return with(func(f *Facts) {
		f.Networkd = n
		if taken >= 0 {
			f.Agent.Repairs = []Repair{{Part: "routes", Kind: KindLost, Changes: 4, Occasions: 2, Times: []time.Time{before(taken)}}}
		}
	})
}

func down(of int, asked, keeps bool) *Facts {
	return with(func(f *Facts) {
		p := &f.Agent.BGP.Peers[0]
		p.AskedToKeep, p.Keeps = asked, keeps
		for i := range of {
			f.Agent.BGP.Peers = append(f.Agent.BGP.Peers, BGPPeer{Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 2+i)), State: "active", Since: before(time.Minute), LastError: "connection refused"})
		}
	})
}

const foreignRule = "-A FORWARD -p udp -m udp --sport 5995 -j REJECT --reject-with icmp-port-unreachable"

// TestChecks: each check, at each of its levels. A case's first wanted words are in what was seen, the last ones in what to do.
func TestChecks(t *testing.T) {
	for _, c := range []struct {
		name  string
		check func(*Facts) []Finding
		facts *Facts
		level Level
		saw   string
		do    string
	}{
		{"ready", checkAgent, well(), OK, "ready; revision 12 is in the kernel, verified 400ms ago, read back 25s ago", ""},
		{"no answer", checkAgent, with(func(f *Facts) { f.Agent, f.NoAgent = nil, "no agent answers at /x" }), Unknown, "no agent answers at /x", "kubectl"},
		{"a part fails", checkAgent, with(func(f *Facts) { f.Agent.Parts[1].Error = "the lock is held by pid 4" }), Fail, "rules-IPv4: the lock is held by pid 4", "tries again"},
		{"a part lags", checkAgent, with(func(f *Facts) { f.Agent.Parts[1].Programmed, f.Agent.Parts[1].Pending = 11, before(time.Minute) }), Fail, "rules-IPv4 has revision 11 of the cluster in the kernel, the latest is 12; it has waited for 1m0s", "log"},
		{"a change that has just come", checkAgent, with(func(f *Facts) {
			f.Agent.Ready, f.Agent.Parts[1].Programmed, f.Agent.Parts[1].Pending = false, 11, before(time.Second)
		}), OK, "revision 12 has just come, and is on its way into the kernel (rules-IPv4)", ""},
		{"in doubt", checkAgent, with(func(f *Facts) { f.Agent.Parts[1].InDoubt = true }), Warn, "rules-IPv4: somebody has just changed", "again"},
		{"no audit", checkAgent, with(func(f *Facts) { f.Agent.Parts[1].Audited = before(2 * time.Hour) }), Warn, "rules-IPv4 was last read back and compared 2h0m ago", "fairway_sync_duration_seconds"},
		{"no cluster yet", checkAgent, with(func(f *Facts) { f.Agent.Revision, f.Agent.Parts = 0, nil }), Fail, "has not seen the cluster yet", "api"},
		{"saved state", checkAgent, with(func(f *Facts) { f.Agent.Stale = true }), Warn, "what is in force was saved before", "API server"},
		{"a family of pods is absent", checkAgent, with(func(f *Facts) { f.Agent.Absent = []Absent{{"IPv4", "iptables is not in PATH"}} }), Fail, "IPv4 is not served, which this node's pods have: iptables is not in PATH", "restart"},
		{"another family is absent", checkAgent, with(func(f *Facts) { f.Agent.Absent = []Absent{{"IPv6", "the kernel runs without"}} }), OK, "ready", ""},
		{"not ready for a reason unknown", checkAgent, with(func(f *Facts) { f.Agent.Ready = false }), Fail, "it is not ready", "/readyz"},

		{"api", checkAPI, well(), OK, "it answers", ""},
		{"a folder", checkAPI, with(func(f *Facts) { f.Agent.API = nil }), OK, "read from a folder", ""},
		{"api just lost", checkAPI, with(func(f *Facts) { f.Agent.API = &API{before(time.Minute), "connection refused"} }), Warn, "lost 1m0s ago; what was known then stays in force: connection refused", "reaches"},
		{"api long lost", checkAPI, with(func(f *Facts) { f.Agent.API = &API{before(3 * time.Hour), ""} }), Fail, "lost 3h0m ago", "reaches"},

		{"no repair", checkRepairs, well(), OK, "nobody has changed", ""},
		{"a repair long ago", checkRepairs, repaired(Repair{"rules-IPv4", "jump-missing", 1, 1, []time.Time{before(5 * time.Hour)}, "pid 4 (iptables)"}), OK, "rules-IPv4, jump-missing: 1 change put right, once, last 5h0m ago, changed by pid 4 (iptables)", ""},
		{"a repair just now", checkRepairs, repaired(Repair{"rules-IPv4", "jump-missing", 1, 1, []time.Time{before(time.Minute)}, "pid 4 (iptables)"}), Warn, "last 1m0s ago", "find what runs pid 4 (iptables)"},
		{"repairs today", checkRepairs, repaired(Repair{"rules-IPv4", "table-flushed", 3, 3, []time.Time{before(20 * time.Hour), before(10 * time.Hour), before(5 * time.Hour)}, "pid 9 (firewalld)"}), Warn, "3 changes put right, 3 times", "FirewallBackend=nftables"},
		{"a repair on legacy", checkRepairs, repaired(Repair{"rules-IPv4", "table-flushed", 1, 1, []time.Time{before(time.Minute)}, ""}), Warn, "table-flushed", "iptables-legacy does not tell"},
		{"a repair on legacy, beside firewalld", checkRepairs, with(func(f *Facts) {
			f.Firewalld = true
			f.Agent.Repairs = []Repair{{"rules-IPv4", "table-flushed", 1, 1, []time.Time{before(time.Minute)}, ""}}
		}), Warn, "table-flushed", "FlushAllOnReload=no is no remedy"},
		{"routes deleted", checkRepairs, repaired(Repair{"routes", KindRoutes, 2, 1, []time.Time{before(time.Minute)}, ""}), Warn, "routes, routes: 2 changes put right, once", "ip monitor route"},
		{"routes lost", checkRepairs, repaired(Repair{"routes", KindLost, 2, 1, []time.Time{before(time.Minute)}, ""}), Warn, "2 routes were lost when this machine's links or addresses changed, once", "why the link went down"},
		{"routes lost beside networkd", checkRepairs, networkd(Networkd{Seen: true, Runs: true, ManageForeignRoutes: true}, time.Minute), Warn, "were lost", "route-owner"},

		{"no foreign rule", checkAbove, well(), OK, "no rule of others", ""},
		{"a foreign rule that rejects", checkAbove, own(func(r *Rules) { r.Above = []Rule{{"filter", "FORWARD", foreignRule, true, 3}} }), Fail, `IPv4 filter FORWARD: "` + foreignRule + `" drops or rejects packets before the rules of Services see them (3 packets so far)`, "iptables-nft -t filter -D FORWARD -p udp -m udp --sport 5995 -j REJECT"},
		{"a foreign rule that accepts", checkAbove, own(func(r *Rules) { r.Above = []Rule{{"filter", "FORWARD", "-A FORWARD -i br0 -j ACCEPT", false, 1}} }), Warn, "decides about packets before the rules of Services see them (1 packet so far)", "-D FORWARD -i br0"},
		{"a foreign rule in the other backend", checkAbove, with(func(f *Facts) {
			f.Kernel.Rules[0].Above = []Rule{{"filter", "FORWARD", foreignRule, true, 3}}
		}), OK, "no rule of others", ""},
		{"rules that can't be read", checkAbove, with(func(f *Facts) {
			f.Kernel.Rules, f.Kernel.Unread = nil, []string{"IPv4 of iptables-nft: not permitted"}
		}), Unknown, "IPv4 of iptables-nft: not permitted", "root"},

		{"the agent's rules can't be read", checkAbove, with(func(f *Facts) {
			f.Kernel.Rules, f.Kernel.Unread = f.Kernel.Rules[:1], []string{"IPv4 of iptables-nft: not permitted"}
		}), Unknown, "IPv4 of iptables-nft: not permitted", "root"},
		{"other rules can't be read", checkOtherProxies, with(func(f *Facts) {
			f.Kernel.Rules, f.Kernel.Unread = f.Kernel.Rules[1:], []string{"IPv4 of iptables-legacy: not permitted"}
		}), Warn, "not all could be read: IPv4 of iptables-legacy: not permitted", "root"},

		{"forwarding", checkForward, well(), OK, "no policy of FORWARD is DROP, and connections between pods of this node and others are accepted", ""},
		{"policy DROP that accepts pods", checkForward, own(func(r *Rules) { r.Policy = "DROP" }), OK, "IPv4 filter FORWARD of iptables-nft has the policy DROP, and connections", ""},
		{"policy DROP", checkForward, own(func(r *Rules) { r.Policy, r.PolicyPackets, r.Ways = "DROP", 7, way("drop", "", "") }), Fail, "drops new connections 10.244.1.2 → 10.244.2.2: its policy is DROP (7 packets so far)", "iptables-nft -A FORWARD -s 10.244.0.0/16 -j ACCEPT"},
		{"policy DROP, and no pod is known", checkForward, own(func(r *Rules) { r.Policy, r.Ways = "DROP", way("drop", "", ""); r.Ways[0].MadeUp = true }), Warn, "no rule accepts 10.244.1.2 → 10.244.2.2; on this node that is no pod of a Service's", "try it"},
		{"a rule that drops pods", checkForward, own(func(r *Rules) {
			r.Ways, r.Refusing = way("drop", "-A FORWARD -i eth9 -j DROP", ""), []Rule{{"filter", "FORWARD", "-A FORWARD -i eth9 -j DROP", true, 12}}
		}), Fail, `"-A FORWARD -i eth9 -j DROP" drops or rejects new connections 10.244.1.2 → 10.244.2.2 (12 packets so far)`, "iptables-nft -t filter -D FORWARD -i eth9 -j DROP"},
		{"the other backend drops pods", checkForward, with(func(f *Facts) {
			f.Kernel.Rules[0].Policy, f.Kernel.Rules[0].Ways = "DROP", way("drop", "", "")
		}), Fail, "IPv4 filter FORWARD of iptables-legacy drops new connections", "iptables-legacy -A FORWARD"},
		{"policy DROP and strange rules", checkForward, own(func(r *Rules) { r.Policy, r.Ways = "DROP", way("", "", "-m limit is not known") }), Warn, "can't be told: -m limit is not known", "try it"},
		{"strange rules", checkForward, own(func(r *Rules) { r.Ways = way("", "", "-m limit is not known") }), OK, "no policy of FORWARD is DROP", ""},

		{"no other proxy", checkOtherProxies, well(), OK, "no rules of another proxy", ""},
		{"the other backend", checkOtherProxies, with(func(f *Facts) { f.Kernel.Rules[0].Chains = []string{"nat A", "nat B", "nat C", "nat D"} }), Warn, "4 IPv4 chains of Services in iptables-legacy, beside the agent's in iptables-nft: nat A, nat B, nat C and 1 more", "fairway takeover --plan"},
		{"kube-proxy's table", checkOtherProxies, with(func(f *Facts) { f.Kernel.KubeProxyTables = []string{"ip"} }), Warn, "the nftables table ip kube-proxy", "fairway takeover --plan"},

		{"no networkd", checkRouteOwner, well(), OK, "does not run", ""},
		{"networkd", checkRouteOwner, networkd(Networkd{Seen: true, Runs: true, File: "/etc/systemd/networkd.conf"}, -1), OK, "ManageForeignRoutes=no (/etc/systemd/networkd.conf)", ""},
		{"networkd by default", checkRouteOwner, networkd(Networkd{Seen: true, Runs: true, ManageForeignRoutes: true}, -1), Warn, "ManageForeignRoutes=yes (its default)", "/etc/systemd/networkd.conf.d/50-fairway.conf"},
		{"networkd that took routes", checkRouteOwner, networkd(Networkd{Seen: true, Runs: true, ManageForeignRoutes: true, File: "/run/systemd/networkd.conf.d/x.conf"}, time.Minute), Fail, "ManageForeignRoutes=yes (/run/systemd/networkd.conf.d/x.conf), and routes of the agent's were taken away, or lost with a link's addresses, 2 times, last 1m0s ago", "ManageForeignRoutes=no"},
		{"networkd that took routes long ago", checkRouteOwner, networkd(Networkd{Seen: true, Runs: true, ManageForeignRoutes: true}, 30*time.Hour), Warn, "ManageForeignRoutes=yes", "ManageForeignRoutes=no"},
		{"networkd that has not read it", checkRouteOwner, networkd(Networkd{Seen: true, Runs: true, File: "/etc/systemd/networkd.conf", Newer: true}, -1), Warn, "which it has not read", "systemctl restart systemd-networkd"},
		{"networkd that is not seen", checkRouteOwner, networkd(Networkd{Unseen: "a container"}, -1), OK, "can't be seen from here: a container", ""},
		{"networkd that is not seen, and routes went", checkRouteOwner, networkd(Networkd{Unseen: "a container"}, time.Hour), Warn, "can't be seen from here: a container", "systemd-analyze cat-config systemd/networkd.conf"},

		{"sysctls", checkSysctls, well(), OK, "forwarding is on", ""},
		{"no forwarding", checkSysctls, with(func(f *Facts) { f.Kernel.Sysctls[SysctlIPForward] = "0" }), Fail, "/proc/sys/net/ipv4/ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"},
		{"no forwarding of a family without pods", checkSysctls, with(func(f *Facts) { f.Kernel.Sysctls[SysctlForwarding6] = "0" }), OK, "forwarding is on", ""},
		{"no forwarding of IPv6", checkSysctls, with(func(f *Facts) {
			f.Kernel.Sysctls[SysctlForwarding6], f.Kernel.Sysctls[SysctlBridgeNF6] = "0", "1"
			f.Agent.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00::/64")}
		}), Fail, "net/ipv6/conf/all/forwarding is 0", "net.ipv6.conf.all.forwarding=1"},
		{"bridge-nf off", checkSysctls, with(func(f *Facts) { f.Kernel.Sysctls[SysctlBridgeNF] = "0" }), Fail, "bridge-nf-call-iptables is 0, and pods hang on the bridge cni0", "net.bridge.bridge-nf-call-iptables=1"},
		{"no br_netfilter", checkSysctls, with(func(f *Facts) { delete(f.Kernel.Sysctls, SysctlBridgeNF) }), Fail, "bridge-nf-call-iptables is not there", "modprobe br_netfilter"},
		{"no bridge", checkSysctls, with(func(f *Facts) { f.Kernel.Sysctls[SysctlBridgeNF], f.Kernel.Bridges = "0", nil }), OK, "forwarding is on", ""},
		{"reverse path filter", checkSysctls, with(func(f *Facts) { f.Kernel.ReversePathDrops = 4 }), Warn, "has dropped 4 packets since boot, and is strict (rp_filter 1) on eth0", "2 (loose)"},
		{"loose reverse path filter", checkSysctls, with(func(f *Facts) { f.Kernel.ReversePathDrops, f.Kernel.Strict = 4, nil }), OK, "forwarding is on", ""},

		{"conntrack", checkConntrack, well(), OK, "1000 of 262144 entries (0 %); forwarded packets that are INVALID are dropped (tcp_be_liberal 0)", ""},
		{"insert_failed alone", checkConntrack, with(func(f *Facts) { f.Kernel.Conntrack.InsertFailed = 3 }), OK, "insert_failed 3 since boot", ""},
		{"conntrack filling", checkConntrack, with(func(f *Facts) { f.Kernel.Conntrack.Count = 215000 }), Warn, "(82 %)", "conntrack.maxPerCore"},
		{"conntrack full", checkConntrack, with(func(f *Facts) { f.Kernel.Conntrack.Count = 262144 }), Fail, "(100 %)", "conntrack.maxPerCore"},
		{"conntrack was full", checkConntrack, with(func(f *Facts) { f.Kernel.Conntrack.Drop = 5 }), Warn, "drop 5 since boot", "conntrack.maxPerCore"},
		{"no conntrack", checkConntrack, with(func(f *Facts) { f.Kernel.Conntrack.Max = 0 }), Unknown, "nf_conntrack_max", "modprobe nf_conntrack"},
		{"liberal", checkConntrack, with(func(f *Facts) { f.Kernel.Sysctls[SysctlTCPBeLiberal], f.Agent.DropsInvalid = "1", false }), OK, "nothing is dropped for that", ""},
		{"liberal since", checkConntrack, with(func(f *Facts) { f.Kernel.Sysctls[SysctlTCPBeLiberal] = "1" }), OK, "until it is restarted", ""},

		{"no overlap", checkOverlap, well(), OK, "no podCIDR is refused", ""},
		{"service range on a link", checkOverlap, noted(Note{"Node node1", "ServiceCIDROnLink", "eth1 has 10.96.0.0/24"}), Warn, "ServiceCIDROnLink: Node node1: eth1 has 10.96.0.0/24", "serviceCIDRs"},
		{"podCIDR refused", checkOverlap, noted(Note{"Node node2", "PodCIDRRefused", "0.0.0.0/0 is everything"}), Fail, "PodCIDRRefused: Node node2", "podCIDR"},

		{"bgp", checkBGP, well(), OK, "1 of 1 sessions are up", ""},
		{"no bgp", checkBGP, with(func(f *Facts) { f.Agent.BGP = BGP{} }), OK, "not configured", ""},
		{"bgp waits", checkBGP, with(func(f *Facts) { f.Agent.BGP = BGP{Configured: true, Waiting: "it waits for rules"} }), Warn, "it waits for rules", "wait"},
		{"a session is down", checkBGP, down(1, true, true), Warn, "1 of 2 sessions are up; that with 192.0.2.2 is active, since 1m0s: connection refused", "neighbour"},
		{"all sessions are down", checkBGP, with(func(f *Facts) { f.Agent.BGP.Peers[0].Up = false }), Fail, "0 of 1 sessions are up", "neighbour"},
		{"a gateway that forgets", checkBGP, down(0, true, false), Warn, "will not keep this node's routes while the agent is restarted: 192.0.2.1", "graceful restart"},
		{"a gateway that need not remember", checkBGP, down(0, false, false), OK, "1 of 1 sessions are up", ""},

		{"no notes", checkNotes, well(), OK, "declines nothing", ""},
		{"a quarantined Service", checkNotes, noted(Note{"Service a/b", "Quarantined", "line 3"}, Note{"Service a/c", "Quarantined", "line 4"}), Fail, "Quarantined: Service a/b: line 3 — and 1 other Note: Service a/c", "kernel module"},
		{"an endpoint", checkNotes, noted(Note{"Service a/b", "EndpointRefused", "169.254.169.254"}), Warn, "EndpointRefused: Service a/b", "EndpointSlice"},
		{"a node of another network", checkNotes, noted(Note{"Node node9", "NextHopUnreachable", "x"}), Warn, "NextHopUnreachable: Node node9", "routers"},
		{"a node of another network, without BGP", checkNotes, with(func(f *Facts) {
			f.Agent.BGP, f.Agent.Notes = BGP{}, []Note{{"Node node9", "NextHopUnreachable", "x"}}
		}), Fail, "NextHopUnreachable: Node node9", "InternalIP"},
		{"said elsewhere", checkNotes, noted(Note{"Node node1", "ServiceCIDROnLink", "x"}, Note{"Node node1", "ForeignRuleBeforeServices", "x"}), OK, "declines nothing", ""},
		{"said nowhere else", checkNotes, with(func(f *Facts) {
			f.Kernel.Rules = nil
			f.Agent.Notes = []Note{{"Node node1", "ForeignRuleBeforeServices", "-j REJECT"}}
		}), Warn, "ForeignRuleBeforeServices: Node node1: -j REJECT", "foreign-rules"},
		{"a reason of another version", checkNotes, noted(Note{"Node node1", "NeverHeardOf", "x"}), Warn, "NeverHeardOf", "docs/inside.md"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := c.check(c.facts)
			if len(list) != 1 {
				t.Fatalf("%d findings: %+v", len(list), list)
			}
			got := list[0]
			if got.Level != c.level || !strings.Contains(got.Saw, c.saw) || !strings.Contains(got.Do, c.do) {
				t.Errorf("%+v\nwant %s, %q, do: %q", got, c.level, c.saw, c.do)
			}
			if (got.Do == "") != (got.Level == OK) {
				t.Errorf("a finding %s with the action %q", got.Level, got.Do)
			}
			if got.Name == "" || got.Source == "" || strings.Contains(got.Saw, "\n") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestExitCode: warnings are allowed; what is wrong counts more than what can't be told.
func TestExitCode(t *testing.T) {
	for levels, want := range map[string]int{"": 0, "ok": 0, "ok warn": 0, "ok unknown": 2, "unknown warn": 2, "unknown FAIL": 1, "FAIL": 1} {
		var r Report
		for _, l := range strings.Fields(levels) {
			r.Findings = append(r.Findings, Finding{Level: Level(l)})
		}
		if got := r.ExitCode(); got != want {
			t.Errorf("%s: %d, want %d", levels, got, want)
		}
	}
	if r := Examine(well()); r.ExitCode() != 0 || r.Counts() != "" {
		t.Errorf("a node that is well: %+v", r)
	}
	if r := Examine(&Facts{Now: now, NoAgent: "none", Kernel: well().Kernel, Networkd: Networkd{Seen: true}}); r.ExitCode() != 2 {
		t.Errorf("a node without an agent: %+v", r)
	}
}

// sick are the Facts of a node with several troubles.
func sick() *Facts {
	return with(func(f *Facts) {
		f.Agent.Repairs = []Repair{{"rules-IPv4", "table-flushed", 2, 2, []time.Time{before(3 * time.Hour), before(2 * time.Minute)}, "pid 812 (firewalld)"}}
		f.Kernel.Rules[1].Above = []Rule{{"filter", "FORWARD", foreignRule, true, 3}}
		f.Networkd = Networkd{Seen: true, Runs: true, ManageForeignRoutes: true}
		f.Kernel.Conntrack = Conntrack{Count: 218000, Max: 262144, InsertFailed: 12}
		f.Agent.Notes = []Note{{"Service dev/bad", "EndpointRefused", "endpoint 169.254.169.254 is link-local"}}
	})
}

// TestText: what an operator reads.
func TestText(t *testing.T) {
	var b bytes.Buffer
	for _, f := range []*Facts{well(), sick()} {
		if err := Examine(f).Write(&b); err != nil {
			t.Fatal(err)
		}
		b.WriteByte('\n')
	}
	const golden = "testdata/text.golden"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got (-update accepts it):\n%s", b.String())
	}
}

// TestJSON: a program reads what a person does; and what the agent answers arrives as it was.
func TestJSON(t *testing.T) {
	for _, v := range []any{Examine(sick()), *sick().Agent} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		back := reflect.New(reflect.TypeOf(v))
		if err := json.Unmarshal(text, back.Interface()); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(back.Elem().Interface(), v) {
			t.Errorf("%+v\nbecame %+v", v, back.Elem())
		}
	}
}

// TestReasons: every reason of package cluster is judged, and none that is gone.
func TestReasons(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../cluster/reasons.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			reason, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons[reason] = true
		}
		return true
	})
	names := map[string]bool{"agent": true, "bgp": true, "cidr-overlap": true, "foreign-rules": true, "": true}
	for reason := range reasons {
		switch j, ok := judgements[reason]; {
		case !ok:
			t.Errorf("%s is not judged", reason)
		case j.level != Warn && j.level != Fail, j.do == "", !names[j.told]:
			t.Errorf("%s: %+v", reason, j)
		}
	}
	for reason := range judgements {
		if !reasons[reason] {
			t.Errorf("%s is judged, and no reason of a Note", reason)
		}
	}
	if len(reasons) < 30 {
		t.Errorf("only %d reasons were found", len(reasons))
	}
}

// TestManageForeignRoutes: the last line of all files counts, in its section, when it is a boolean.
func TestManageForeignRoutes(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		yes   bool
		from  string
	}{
		{"no file", nil, true, ""},
		{"nothing of it", []string{"[Network]\nSpeedMeter=no\n"}, true, ""},
		{"a comment", []string{"[Network]\n#ManageForeignRoutes=no\n; ManageForeignRoutes=no\n"}, true, ""},
		{"no", []string{"[Network]\nManageForeignRoutes=no\n"}, false, "0"},
		{"spaces", []string{"[Network]\n  ManageForeignRoutes = FALSE \n"}, false, "0"},
		{"another section", []string{"[DHCPv4]\nManageForeignRoutes=no\n"}, true, ""},
		{"the last file", []string{"[Network]\nManageForeignRoutes=no\n", "", "[Network]\nManageForeignRoutes=on\n"}, true, "2"},
		{"the last line", []string{"[Network]\nManageForeignRoutes=yes\nManageForeignRoutes=0\n"}, false, "0"},
		{"no boolean", []string{"[Network]\nManageForeignRoutes=no\n", "[Network]\nManageForeignRoutes=maybe\n"}, false, "0"},
		{"another setting", []string{"[Network]\nManageForeignRoutingPolicyRules=no\n"}, true, ""},
		{"a long line", []string{"[Network]\nManageForeignRoutes=\\\nno\n"}, false, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var files []ConfigFile
			for i, text := range c.files {
				files = append(files, ConfigFile{strconv.Itoa(i), text})
			}
			if yes, from := ManageForeignRoutes(files); yes != c.yes || from != c.from {
				t.Errorf("%v from %q, want %v from %q", yes, from, c.yes, c.from)
			}
		})
	}
}

// TestManySessionsDown: of a route reflector's many sessions, the first that are down are told one by one, and the others counted.
func TestManySessionsDown(t *testing.T) {
	f := well()
	f.Agent.BGP.Peers = nil
	for i := range 10 {
		f.Agent.BGP.Peers = append(f.Agent.BGP.Peers, BGPPeer{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), State: "active", Up: i == 0})
	}
	list := checkBGP(f)
	if len(list) != mostDown+1 || !strings.Contains(list[0].Saw, "192.0.2.1 ") || !strings.Contains(list[mostDown].Saw, "6 further sessions") {
		t.Errorf("%d findings: %+v", len(list), list)
	}
}
