package iptables

import (
	"slices"
	"strings"
)

// chainKubelet is the chain that kubelet and kube-proxy share for rules that protect the node. It is nobody's: whoever needs
// a rule there sees that it is there, and leaves it to the others when it goes.
const chainKubelet = "KUBE-FIREWALL"

// guardBegin and guardComment are by what the rule is known that keeps neighbours away from 127.0.0.0/8. kubelet and
// kube-proxy have the same; another version of iptables may print the rest differently.
const (
	guardBegin   = "! -s 127.0.0.0/8 -d 127.0.0.0/8 "
	guardComment = `--comment "block incoming localnet connections"`
)

// guards are the rules without which net.ipv4.conf.all.route_localnet, which makes node ports at 127.0.0.1 possible, would
// open the host's loopback services to its neighbours (CVE-2020-8558).
var guards = jumps(
	"INPUT", "-j "+chainKubelet,
	"OUTPUT", "-j "+chainKubelet,
	chainKubelet, guardBegin+"-m comment "+guardComment+" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP")

// Shared are rules of ours in a chain that we share with others. They are added when they are missing, and stay when they are no
// longer needed.
type Shared struct {
	// Chain tells that the chain is there.
	Chain bool
	// Rules are those of our rules that are there.
	Rules []Jump
}

// Guarded tells that the Ruleset has the rules that keep neighbours away from the loopback network. What this machine sends is
// not from neighbours, so the jump from OUTPUT does not count.
func (r *Ruleset) Guarded() bool {
	return !slices.ContainsFunc(r.Filter.Shared.lacks(guards), func(j Jump) bool { return j.From != "OUTPUT" })
}

// see takes a rule that was read, if it is one of ours.
func (s *Shared) see(from, line string) {
	for _, g := range guards {
		if g.From != from || !strings.HasSuffix(line+"\n", lastWords(g.Rule)) {
			continue
		}
		// A rule with other matches is none of ours: INPUT may lead there for one interface only.
		isGuard := strings.HasPrefix(line, "-A "+chainKubelet+" "+guardBegin) && strings.Contains(line, guardComment)
		if isGuard || line+"\n" == g.Rule {
			s.Rules = append(s.Rules, g)
			return
		}
	}
}

// lastWords returns what begins with the rule's target.
func lastWords(rule string) string { return rule[strings.LastIndex(rule, "-j "):] }

// lacks returns the rules that are not there.
func (s *Shared) lacks(rules []Jump) (list []Jump) {
	for _, r := range rules {
		if !slices.Contains(s.Rules, r) {
			list = append(list, r)
		}
	}
	return list
}
