package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// observed tells after every restore, refused or not, what nat holds of each service port.
type observed struct {
	*fakeTables
	after func(nat map[string]string)
}

func (o observed) Apply(ctx context.Context, f cluster.Family, r *iptables.Restore) error {
	err := o.fakeTables.Apply(ctx, f, r)
	nat := map[string]string{}
	for chain, rules := range o.tables[iptables.NAT] {
		for _, rule := range rules {
			if _, port, ok := strings.Cut(rule, `--comment "default/`); ok && strings.HasPrefix(chain, "KUBE-SVC-") && strings.Contains(rule, "DNAT") {
				port, _, _ = strings.Cut(port, " ")
				nat[port] += rule + "\n"
			}
		}
	}
	o.after(nat)
	return err
}

// While culprits are looked for, every Service is served by old or new endpoints in nat, the suspects too; the others have
// their new rules after one retry; and in the end the culprits keep what is left of their old ones.
func TestSearchKeepsWhatWorked(t *testing.T) {
	k := newFake(cluster.IPv4)
	w := newWorld(cluster.IPv4, 200)
	w.services = slices.DeleteFunc(w.services, func(s *cluster.Service) bool { return len(s.Slices[0].Endpoints) < 3 })
	restores := 0
	var history []map[string]string
	rules := NewRules(observed{k, func(nat map[string]string) {
		restores++
		history = append(history, nat)
	}})
	now := time.Unix(1e9, 0)
	rules.now = func() time.Time { return now }
	mustSync(t, rules, w.desired())
	old := history[len(history)-1]

	// Forty Services lose their first endpoint, some of them all, and get another one; two of those are refused. A Service is new,
	// another goes.
	var bad []*cluster.Service
	changed := map[string]bool{}
	for i := 0; i < 40; i++ {
		s := *w.services[i]
		slice := *s.Slices[0]
		lost := 1
		if i%4 == 0 {
			lost = len(slice.Endpoints)
		}
		slice.Endpoints = append(slices.Clone(slice.Endpoints[lost:]), cluster.Endpoint{Addr: w.pod(50000 + i), NodeName: "n2", Ready: true, Serving: true})
		s.Slices = []*cluster.EndpointSlice{&slice}
		if i == 7 || i == 31 {
			bad = append(bad, &s)
		}
		w.services[i] = &s
		changed[s.Name] = true
	}
	k.refuse = refusing(fmt.Sprintf("%s:80", w.pod(50007)), fmt.Sprintf("%s:80", w.pod(50031)))
	gone := w.services[len(w.services)-1].Name
	w.services[len(w.services)-1] = w.service(999, 3)
	want := w.desired()
	history, restores = nil, 0
	report := mustSync(t, rules, want)[0]
	if got := names(report.Quarantined); !slices.Equal(got, []string{bad[0].Name, bad[1].Name}) {
		t.Fatalf("in quarantine: %v", got)
	}
	final := history[len(history)-1]
	of := func(port string) string { name, _, _ := strings.Cut(port, ":"); return strings.Trim(name, `"`) }
	for i, nat := range history {
		for port, was := range old {
			if of(port) != gone && (nat[port] == "" || !within(targets(nat[port]), targets(was+final[port]))) {
				t.Errorf("restore %d of %d: %s has neither old rules nor its last ones:\n%s", i+1, len(history), port, nat[port])
			}
			if i == 1 && !changed[of(port)] && of(port) != gone && nat[port] != was {
				t.Errorf("%s, which did not change, did", port)
			}
		}
	}
	for _, nat := range history[1:] {
		for port := range nat {
			if of(port) == gone {
				t.Errorf("%s is still there after one retry", port)
			}
		}
	}
	for _, q := range report.Quarantined {
		if !q.Served || !strings.Contains(q.Note.Detail, "keeps the IPv4 rules") {
			t.Errorf("not told that it is served: %+v", q.Note)
		}
	}
	kept := map[cluster.Ref]proxy.Earlier{}
	before := newWorld(cluster.IPv4, 200)
	table := before.table(proxy.Config{ClusterCIDRs: podCIDRs})
	for _, s := range bad {
		for _, p := range table.Ports {
			if p.Service.Ref() == s.Ref() {
				kept[s.Ref()] = proxy.Earlier{Ports: append(kept[s.Ref()].Ports, p)}
			}
		}
	}
	mustHold(t, k, iptables.Render(want.Table.Keeping(kept), want.Options, nil))

	// It lasts: over a Sync with nothing to do, over one that reads all back, over a retry in vain, over the endpoints that come
	// back; and ends when the Service is accepted.
	for _, step := range []func(){func() {}, rules.Invalidate, func() { now = now.Add(retryFirst) }} {
		step()
		mustSync(t, rules, want)
		mustHold(t, k, iptables.Render(want.Table.Keeping(kept), want.Options, nil))
	}
	k.refuse = nil
	now = now.Add(retryMost)
	if report = mustSync(t, rules, want)[0]; len(report.Quarantined) > 0 {
		t.Errorf("still in quarantine: %v", names(report.Quarantined))
	}
	mustHold(t, k, want.Ruleset)
}

// targets are the endpoints that rules lead to.
func targets(rules string) (list []string) {
	for rule := range strings.Lines(rules) {
		_, target, _ := strings.Cut(rule, "--to-destination ")
		list = append(list, target)
	}
	return list
}

func within(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// When the older rules are refused as well, the Service has none, and the others are served.
func TestOlderRulesRefusedToo(t *testing.T) {
	k := newFake(cluster.IPv4)
	rules := NewRules(k)
	w := newWorld(cluster.IPv4, 20)
	mustSync(t, rules, w.desired())
	k.refuse = refusing("default/svc-0004")
	k.tables[iptables.NAT]["KUBE-SERVICES"] = nil // by somebody else
	rules.Invalidate()
	w.services[4] = w.service(4, 2)
	w.services[8] = w.service(8, 1)
	want := w.desired()
	report := mustSync(t, rules, want)[0]
	if got := names(report.Quarantined); !slices.Equal(got, []string{"svc-0004"}) || report.Quarantined[0].Served {
		t.Fatalf("in quarantine: %+v", report.Quarantined)
	}
	mustHold(t, k, iptables.Render(want.Table.Keeping(map[cluster.Ref]proxy.Earlier{w.services[4].Ref(): {}}), want.Options, nil))
}
