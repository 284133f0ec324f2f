package conformance_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// dispatched is the rule of nat's KUBE-SERVICES that leads to a chain of a Service.
var dispatched = regexp.MustCompile(`-A KUBE-SERVICES .* -j (KUBE-SVC-[A-Z0-9]{16})\n`)

// What others do to the rules is noticed without a comparison of everything, which is an hour away, repaired exactly, and counted by
// its kind; others' own rules stay.
func TestDrift(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.restoreForeign(t)
		s.put(web(10), lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{Flags: append(forwarding, "--iptables-sync-period=1h")})
		rules := s.saveBoth(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			nat, err := s.n1.Save(s.backend, f, "nat")
			ok(t, err)
			match := dispatched.FindStringSubmatch(nat)
			if match == nil {
				t.Fatalf("no chain of a Service:\n%s", nat)
			}
			for _, m := range []struct{ table, kind, restore string }{
				{"nat", "chain-flushed", "-F KUBE-SERVICES"},
				{"nat", "jump-missing", "-D PREROUTING 1"},
				{"nat", "rule-missing", "-D " + match[1] + " 2"},
				{"nat", "rule-changed", "-R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8000/0x8000"},
				{"nat", "rule-inserted", "-I " + match[1] + " 1 -j RETURN"},
				{"nat", "table-flushed", "-F"},
				{"filter", "jump-missing", "-D OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"},
			} {
				labels := fmt.Sprintf(`{found_by="watch",ip_family="%s",kind="%s",table="%s"}`, f, m.kind, m.table)
				before, err := s.metrics("fairway_drift_total")
				ok(t, err)
				ok(t, s.n1.Restore(s.backend, f, "*"+m.table+"\n"+m.restore+"\nCOMMIT\n", true))
				ok(t, lab.Eventually(soon, func() error {
					now, err := s.metrics("fairway_drift_total")
					if err == nil && now[labels] <= before[labels] {
						err = fmt.Errorf("%s: %v is not counted:\n%s", m.restore, labels, s.agent.Output())
					}
					return err
				}))
				ok(t, lab.Eventually(soon, func() error { _, err := s.healthServer("/readyz", http.StatusOK); return err }))
				if m.restore == "-F" {
					// Others' went, too, and it is they who have to put them back.
					s.restoreForeignNAT(t, f)
				}
				if have := s.saveBoth(t); have != rules {
					t.Errorf("after %q:\n%s\nexpected\n%s", m.restore, have, rules)
				}
			}
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1", "p3"))
		})
	})
}

// A rule of somebody else before the jumps is told for as long as it stands there; in nat it does not stay before them.
func TestForeignRuleBefore(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(web(10), lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{Flags: append(forwarding, "--iptables-sync-period=1h")}, s.n1)
		run := func(f cluster.Family, args string) {
			t.Helper()
			_, err := s.n1.Run(lab.Tool(s.backend, f, ""), strings.Fields("-w 5 "+args)...)
			ok(t, err)
		}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			run(f, "-t nat -I PREROUTING -p tcp -j ACCEPT")
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			run(f, "-t nat -D PREROUTING -p tcp -j ACCEPT")
			run(f, "-I FORWARD -p tcp --dport 7 -j REJECT")
			s.comesToNotes(t, cluster.ReasonForeignRuleBefore, 1)
			first, err := s.n1.Run(lab.Tool(s.backend, f, ""), "-w", "5", "-S", "FORWARD", "1")
			ok(t, err)
			if !strings.Contains(first, "--dport 7 ") {
				t.Errorf("the first rule of FORWARD is %s", first)
			}
			s.says(t, cluster.ReasonForeignRuleBefore, "filter FORWARD", "--dport 7 ")
			run(f, "-D FORWARD -p tcp --dport 7 -j REJECT")
			s.comesToNotes(t, cluster.ReasonForeignRuleBefore, 0)
		})
	})
}
