package netfilter

import (
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// A refusal for what somebody else did to the kernel puts no Service into quarantine.
func TestRefusedForOthersChanges(t *testing.T) {
	k := newFake(cluster.IPv4)
	nat := k.tables[iptables.NAT]
	const masq = "KUBE-MARK-MASQ"
	k.refuse = func(section string) bool { // as the kernel does when a rule leads to a chain that does not exist
		_, exists := nat[masq]
		return strings.HasPrefix(section, "*nat\n") && strings.Contains(section, "-j "+masq) && !exists && !strings.Contains(section, ":"+masq+" ")
	}
	rules := NewRules(k)
	w := newWorld(cluster.IPv4, 3)
	mustSync(t, rules, w.desired())
	delete(nat, masq)
	w.services = append(w.services, w.service(3, 2))
	want := w.desired()
	report := mustSync(t, rules, want)[0]
	if report.Refused != 1 || len(report.Quarantined) > 0 {
		t.Errorf("%d restores were refused, want 1; in quarantine %v, want none", report.Refused, report.Quarantined)
	}
	mustHold(t, k, want.Ruleset)
}
