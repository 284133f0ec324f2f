package faults

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/test/lab"
)

// rulesOf are all rules of n1 in a family, as iptables-save prints them.
func (r *rig) rulesOf(f cluster.Family) string {
	r.Helper()
	text, err := r.n1.Save(r.backend, f, "")
	r.ok(err)
	return text
}

// iptables runs a command of n1's iptables, with what follows its name.
func (r *rig) iptables(f cluster.Family, args ...string) {
	r.Helper()
	_, err := r.n1.Run(lab.Tool(r.backend, f, ""), append([]string{"-w", "5"}, args...)...)
	r.ok(err)
}

// tampered lets somebody harm the rules of a family, and waits until they are as they were, to the letter. Before the next family is
// harmed, everything works.
func (r *rig) tampered(what string, flows *traffic, harm func(f cluster.Family)) {
	r.Helper()
	for _, f := range cluster.Families {
		before := r.rulesOf(f)
		began := time.Now()
		harm(f)
		r.eventually(lookBound, func() error {
			if r.rulesOf(f) != before {
				return errors.New("the rules are not as they were")
			}
			return nil
		})
		r.measured(what+", "+f.String(), time.Since(began), 2*time.Second)
		flows.works(inFamily(flows.flows, f)...)
	}
}

// firstRule returns the first rule of a table that begins with a text, as iptables -D takes it.
func (r *rig) firstRule(f cluster.Family, table, beginning string) []string {
	r.Helper()
	text, err := r.n1.Save(r.backend, f, table)
	r.ok(err)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "-A "+beginning) {
			return words(strings.TrimSpace(line))[1:]
		}
	}
	r.Fatalf("no rule %s in %s:\n%s", beginning, table, text)
	return nil
}

// words splits a rule as a shell does, as far as iptables-save quotes.
func words(rule string) (list []string) {
	quoted, begun := false, false
	for _, c := range rule {
		switch {
		case c == '"':
			quoted = !quoted
		case c == ' ' && !quoted:
			begun = false
		default:
			if !begun {
				list, begun = append(list, ""), true
			}
			list[len(list)-1] += string(c)
		}
	}
	return list
}

// Fault 8: somebody flushes filter and nat and deletes all chains.
func TestFault08Flushed(t *testing.T) {
	onBackends(t, func(r *rig) {
		flows := r.flow(r.serviceFlows())
		r.tampered("iptables -F; -t nat -F; -X", flows, func(f cluster.Family) {
			r.iptables(f, "-F")
			r.iptables(f, "-t", "nat", "-F")
			for _, table := range []string{"filter", "nat"} {
				// The agent may have begun to repair, and then the chains are in use again.
				_, _ = r.n1.Run(lab.Tool(r.backend, f, ""), "-w", "5", "-t", table, "-X")
			}
		})
		flows.stop(nobody)
		r.exactly()
	})
}

// Fault 9: somebody deletes nothing but the jump from PREROUTING.
func TestFault09JumpDeleted(t *testing.T) {
	onBackends(t, func(r *rig) {
		flows := r.flow(r.serviceFlows())
		r.tampered("the jump from nat PREROUTING", flows, func(f cluster.Family) {
			r.iptables(f, append([]string{"-t", "nat", "-D"}, r.firstRule(f, "nat", "PREROUTING ")...)...)
		})
		flows.stop(nobody)
		r.exactly()
	})
}

// Fault 10: somebody deletes one rule of one service's chain, and then inserts one.
func TestFault10RuleDeleted(t *testing.T) {
	onBackends(t, func(r *rig) {
		flows := r.flow(r.serviceFlows())
		r.tampered("one rule deleted", flows, func(f cluster.Family) {
			r.iptables(f, append([]string{"-t", "nat", "-D"}, r.firstRule(f, "nat", "KUBE-SVC-")...)...)
		})
		r.tampered("one rule inserted", flows, func(f cluster.Family) {
			chain := r.firstRule(f, "nat", "KUBE-SVC-")[0]
			r.iptables(f, "-t", "nat", "-I", chain, "-p", "tcp", "-j", "RETURN")
		})
		flows.stop(nobody)
		r.exactly()
	})
}

// Fault 11: somebody inserts a rule that rejects above our jump. It stays, and it is told that it is in the way; when it is gone, that
// is taken back.
func TestFault11ForeignRule(t *testing.T) {
	const reason = cluster.ReasonForeignRuleBefore
	onBackends(t, func(r *rig) {
		r.put(service("blocked", 20, 0), lab.Ready(r.p2))
		r.write()
		r.eventually(eventBound, func() error { return r.serves(20, r.p2) })
		flows := r.flow(r.serviceFlows())
		for _, f := range cluster.Families {
			// No flow but the one below has this source port.
			rule := []string{"FORWARD", "-p", "udp", "-m", "udp", "--sport", "5995", "-j", "REJECT"}
			before := r.logged(r.n1)
			began := time.Now()
			r.iptables(f, append([]string{"-I"}, rule...)...)
			r.eventually(eventBound, func() error { return r.said(r.n1, before, note{"Node n1", reason, "--sport 5995"}) })
			r.measured("told, "+f.String(), time.Since(began), 2*time.Second)
			e := r.doctor(r.n1)
			r.ok(e.found(doctor.Fail, "foreign-rules", f.String()+" filter FORWARD", "--sport 5995", "-D FORWARD -p udp"))
			if e.code != 1 {
				r.Errorf("fairway doctor ends with %d, want 1", e.code)
			}
			if have := r.firstRule(f, "filter", "FORWARD "); !strings.Contains(strings.Join(have, " "), "--sport 5995") {
				r.Errorf("%s: the first rule of FORWARD is now %q", f, have)
			}
			d := to(lab.UDP, vip(f, 20), webPort)
			d.From = netip.AddrPortFrom(netip.Addr{}, 5995)
			if err := r.p1.Ask(d).Expect(lab.Refused); err != nil {
				r.Errorf("%s: the rule that was inserted should hold: %v", f, err)
			}
			r.iptables(f, append([]string{"-D"}, rule...)...)
			r.eventually(lookBound, func() error { return r.quiet(r.n1, reason) })
			r.ok(r.p1.Ask(d).Expect(lab.OK))
			r.getsWell(r.n1)
		}
		flows.stop()
		r.exactly()
	})
}
