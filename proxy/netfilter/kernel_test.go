package netfilter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// What is rendered is what the kernel prints, whatever the options; and a second keeper adopts it without a write.
func TestCanonical(t *testing.T) {
	cases := []struct {
		name     string
		services int
		config   proxy.Config
		options  iptables.Options
	}{
		{"empty", 0, proxy.Config{ClusterCIDRs: podCIDRs}, iptables.Options{MasqueradeBit: 14}},
		{"flat, cluster CIDR", 15, proxy.Config{ClusterCIDRs: podCIDRs}, iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true}},
		{"flat, masquerade all", 15, proxy.Config{MasqueradeAll: true}, iptables.Options{MasqueradeBit: 0}},
		{"flat, bridge", 15, proxy.Config{Detect: proxy.DetectBridgeInterface, Interface: "br0"}, iptables.Options{MasqueradeBit: 31}},
		{"flat, prefix", 15, proxy.Config{Detect: proxy.DetectInterfaceNamePrefix, Interface: "veth"}, iptables.Options{MasqueradeBit: 14}},
		{"flat, no detection", 15, proxy.Config{}, iptables.Options{MasqueradeBit: 14}},
		{"trees", 300, proxy.Config{ClusterCIDRs: podCIDRs}, iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true}},
		{"trees, large", 300, proxy.Config{ClusterCIDRs: podCIDRs}, iptables.Options{MasqueradeBit: 14, RandomFully: true, Large: true}},
		{"service ranges", 15, proxy.Config{Addresses: &proxy.AddressPolicy{ServiceCIDRs: serviceCIDRs}}, iptables.Options{MasqueradeBit: 14}},
		{"unknown ports let through", 15, proxy.Config{ForwardUnknown: true}, iptables.Options{MasqueradeBit: 14}},
		{"node ports at two addresses", 15, proxy.Config{NodeName: "n1", NodePorts: &proxy.NodePortPolicy{CIDRs: nodeCIDRs}}, iptables.Options{MasqueradeBit: 14}},
		// The last: what it adds to a chain of others stays.
		{"node ports at localhost", 15, proxy.Config{NodePorts: &proxy.NodePortPolicy{Localhost: true}}, iptables.Options{MasqueradeBit: 14}},
		{"counted", 15, proxy.Config{NodePorts: &proxy.NodePortPolicy{Localhost: true}}, iptables.Options{MasqueradeBit: 14, DropInvalid: true, Counters: true}},
	}
	onBackends(t, func(t *testing.T, b *Backend) {
		if err := EnsureCounters(); err != nil {
			t.Fatal(err)
		}
		rules := NewRules(b)
		for _, c := range cases {
			t.Log(c.name)
			var want []Desired
			for _, f := range cluster.Families {
				w := newWorld(f, c.services)
				if c.services > 0 {
					w.services[1] = w.service(1, 64)  // every probability down from 1/64
					w.services[2] = w.service(2, 180) // in groups
				}
				want = append(want, desired(w.table(c.config), c.options))
			}
			for i, report := range mustSync(t, rules, want...) {
				if !report.Written || len(report.Quarantined) != 0 {
					t.Fatalf("%+v", report)
				}
				mustHold(t, b, want[i].Ruleset)
			}
			for _, report := range mustSync(t, NewRules(b), want...) {
				if report.Written {
					t.Fatalf("a second keeper wrote: %+v", report)
				}
			}
		}
	})
}

// From any state to any other.
func TestRandomWalk(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		rules := NewRules(inStages{b})
		worlds := []*world{newWorld(cluster.IPv4, 0), newWorld(cluster.IPv6, 0)}
		for range 25 {
			most := []int{3, 20, 120}[r.IntN(3)]
			var want []Desired
			for _, w := range worlds {
				w.wander(r, most)
				want = append(want, w.desired())
			}
			if r.IntN(4) == 0 {
				rules.Invalidate()
			}
			mustSync(t, rules, want...)
			for _, d := range want {
				mustHold(t, b, d.Ruleset)
			}
		}
	})
}

// Whatever others do to our rules is found by the first Sync that looks, and repaired; nothing else is written.
func TestTampering(t *testing.T) {
	tampering := map[string]string{
		"nat flushed":     "*nat\n-F\nCOMMIT\n",
		"jump deleted":    "*nat\n-D PREROUTING 1\nCOMMIT\n",
		"filter jump":     "*filter\n-D FORWARD 2\nCOMMIT\n",
		"rule added":      "*nat\n-I KUBE-MARK-MASQ 1 -j RETURN\nCOMMIT\n",
		"rule replaced":   "*nat\n-R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n",
		"chain of ours":   "*nat\n:KUBE-SVC-OLD - [0:0]\n-A KUBE-SVC-OLD -j KUBE-MARK-MASQ\nCOMMIT\n",
		"dispatch gone":   "*nat\n-D KUBE-SERVICES 1\nCOMMIT\n",
		"jump duplicated": "*nat\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n",
	}
	onBackends(t, func(t *testing.T, b *Backend) {
		rules := NewRules(b)
		for _, f := range cluster.Families {
			want := newWorld(f, 40).desired()
			mustSync(t, rules, want)
			for name, input := range tampering {
				rules.Invalidate()
				if report := mustSync(t, rules, want)[0]; report.Written {
					t.Fatalf("before %s: Sync wrote although all was well", name)
				}
				shell(t, input, b.Binaries[f].Restore, "--noflush")
				if report := mustSync(t, rules, want)[0]; report.Written {
					t.Errorf("%s: Sync wrote without having been told", name)
				}
				rules.Invalidate()
				if report := mustSync(t, rules, want)[0]; !report.Written {
					t.Errorf("%s: Sync repaired nothing", name)
				}
				mustHold(t, b, want.Ruleset)
			}
		}
	})
}

const foreign = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:cali-INPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -j cali-INPUT
COMMIT
*nat
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE
COMMIT
`

// Cleanup leaves what is foreign byte for byte, and is safe to run twice.
func TestCleanup(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		ctx := context.Background()
		before := map[cluster.Family]string{}
		rules := NewRules(b)
		for _, f := range cluster.Families {
			input := foreign
			if f == cluster.IPv6 {
				input = strings.ReplaceAll(input, "203.0.113.0/24", "2001:db8::/64")
			}
			shell(t, input, b.Binaries[f].Restore, "--noflush")
			before[f] = save(t, b, f)
			mustSync(t, rules, newWorld(f, 60).desired())
			if save(t, b, f) == before[f] {
				t.Fatal("Sync wrote nothing")
			}
		}
		done, err := Cleanup(ctx, Auto)
		if err != nil || len(done) != 2 || done[0].Backend != b.Name || done[0].Chains < 60 {
			t.Fatalf("cleaned %+v, %v", done, err)
		}
		for _, f := range cluster.Families {
			if after := save(t, b, f); after != before[f] {
				t.Errorf("foreign rules changed: %s", firstDifference(after, before[f]))
			}
		}
		if done, err := Cleanup(ctx, Auto); err != nil || len(done) != 0 {
			t.Errorf("the second time: %+v, %v", done, err)
		}
	})
}

// A chain of ours that a foreign rule leads to stays, empty.
func TestCleanupReferenced(t *testing.T) {
	onBackends(t, func(t *testing.T, b *Backend) {
		mustSync(t, NewRules(b), newWorld(cluster.IPv4, 5).desired())
		shell(t, "*nat\n:mine - [0:0]\n-A mine -j KUBE-SERVICES\nCOMMIT\n", b.Binaries[cluster.IPv4].Restore, "--noflush")
		for range 2 {
			if _, err := Cleanup(context.Background(), b.Name); err != nil {
				t.Fatal(err)
			}
			out := save(t, b, cluster.IPv4)
			if !strings.Contains(out, "-A mine -j KUBE-SERVICES\n") || !strings.Contains(out, ":KUBE-SERVICES -\n") || strings.Contains(out, "KUBE-SVC-") {
				t.Fatalf("left:\n%s", out)
			}
		}
	})
}

var natTarget = regexp.MustCompile(`(?m)^(-A KUBE-.* -p sctp .*|-A KUBE-.* -p sctp) -j .*$`)

// inStages is a backend that writes in stages of a few chains.
type inStages struct{ *Backend }

func (inStages) Diff(have, want *iptables.Ruleset) *iptables.Restore {
	return iptables.DiffInStages(have, want, 10)
}

// without makes a backend on a kernel that lacks SCTP, by changing the rules for it into ones that are refused in nat.
func without(b *Backend, instead string, lacking *bool) inStages {
	less := *b
	less.run = func(ctx context.Context, c command) (string, error) {
		if *lacking {
			tables := strings.SplitAfter(c.stdin, "COMMIT\n")
			for i, table := range tables {
				if strings.HasPrefix(table, "*nat\n") {
					tables[i] = natTarget.ReplaceAllString(table, "$1 "+instead)
				}
			}
			c.stdin = strings.Join(tables, "")
		}
		return run(ctx, c)
	}
	return inStages{&less}
}

// A Service whose rules are refused is left out and named, all others are applied, and it is healed later. REJECT is
// refused in nat by the kernel, an unknown option by the parser; both stand for an extension that is missing.
func TestQuarantine(t *testing.T) {
	for _, instead := range []string{"-j REJECT", "--nonsense"} {
		t.Run(instead, func(t *testing.T) {
			onBackends(t, func(t *testing.T, b *Backend) {
				lacking := true
				rules := NewRules(without(b, instead, &lacking))
				now := time.Unix(1e9, 0)
				rules.now = func() time.Time { return now }
				for _, f := range cluster.Families {
					quarantine(t, b, rules, newWorld(f, 60), &lacking, &now)
				}
			})
		})
	}
}

func quarantine(t *testing.T, b *Backend, rules *Rules, w *world, lacking *bool, now *time.Time) {
	*lacking = true
	refused := map[cluster.Ref]proxy.Earlier{}
	for i, s := range w.services {
		switch {
		case s.Ports[0].Protocol != cluster.SCTP:
		case i%4 == 2:
			if len(s.Slices[0].Endpoints) > 0 { // without endpoints there are no rules in nat
				refused[s.Ref()] = proxy.Earlier{}
			}
		default:
			w.services[i] = w.service(i, 0)
		}
	}
	want := w.desired()
	report := mustSync(t, rules, want)[0]
	t.Logf("%s: %d refusals for %d culprits; %s", w.family, report.Refused, len(refused), report.Quarantined[0].Note)
	for _, q := range report.Quarantined {
		n := q.Note
		if _, expected := refused[n.Object]; !expected || q.Served || q.Input == "" || q.Stderr == "" || n.Reason != cluster.ReasonQuarantined {
			t.Errorf("unexpected: %s", n)
		}
	}
	if len(report.Quarantined) != len(refused) || len(refused) < 3 {
		t.Fatalf("%d Services in quarantine, expected %d", len(report.Quarantined), len(refused))
	}
	rest := iptables.Render(want.Table.Keeping(refused), want.Options, nil)
	mustHold(t, b, rest)
	if again := mustSync(t, rules, want)[0]; again.Written || again.Refused > 0 || len(again.Quarantined) != len(refused) {
		t.Errorf("the second Sync was not idle: %+v", again)
	}
	if report.Retry <= 0 || report.Retry > retryFirst {
		t.Errorf("retry after %s", report.Retry)
	}
	*now = now.Add(report.Retry)
	if again := mustSync(t, rules, want)[0]; again.Refused == 0 || len(again.Quarantined) != len(refused) {
		t.Errorf("it was not tried again: %+v", again)
	}
	mustHold(t, b, rest)
	*lacking = false
	*now = now.Add(2 * retryFirst)
	if healed := mustSync(t, rules, want)[0]; len(healed.Quarantined) > 0 || !healed.Written {
		t.Errorf("not healed: %+v", healed)
	}
	mustHold(t, b, want.Ruleset)
}

// The xtables lock: the holder is named, and nothing is lost.
func TestLocked(t *testing.T) {
	inNamespace(t)
	b, err := Detect(context.Background(), Legacy)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(lockFile())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if again, err := Detect(context.Background(), Legacy); err != nil || len(again.Families()) != len(b.Families()) {
		t.Errorf("a held lock is taken for a family that does not work: %+v, %v", again, err)
	}
	rules := NewRules(b)
	want := newWorld(cluster.IPv4, 5).desired()
	reports, err := rules.Sync(context.Background(), []Desired{want})
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("with the lock held: %v", err)
	}
	if holder := fmt.Sprintf("pid %d (", os.Getpid()); !strings.Contains(err.Error(), holder) {
		t.Errorf("%v does not name %s", err, holder)
	}
	if reports[0].Refused != 0 || len(reports[0].Quarantined) != 0 || reports[0].Written {
		t.Errorf("a lock is no refusal: %+v", reports[0])
	}
	lock.Close()
	mustSync(t, rules, want)
	mustHold(t, b, want.Ruleset)
}

// A command that hangs is killed with its children, and that is no refusal.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := run(ctx, command{path: "/bin/sh", args: []string{"-c", "sleep 600 & wait"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	if _, ok := refusal(err); ok {
		t.Errorf("%v is taken for a refusal", err)
	}
}

func TestTCPLiberal(t *testing.T) {
	inNamespace(t)
	shell(t, "*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n", "iptables-legacy-restore", "--noflush") // has conntrack loaded
	for _, value := range []string{"1", "0"} {
		if err := os.WriteFile(tcpLiberal, []byte(value), 0o644); err != nil {
			t.Skip("conntrack's sysctls cannot be set here: " + err.Error())
		}
		if got, err := TCPLiberal(); err != nil || got != (value == "1") {
			t.Errorf("%s: %v, %v", value, got, err)
		}
	}
}
