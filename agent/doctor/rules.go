package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// checkAbove judges rules of others that come before those of Services.
func checkAbove(f *Facts) []Finding {
	const name = "foreign-rules"
	var list []Finding
	for _, r := range f.Kernel.Rules {
		if !f.uses(r.Backend) {
			continue
		}
		for _, rule := range r.Above {
			level, does := Warn, "decides about packets"
			if rule.Refuses {
				level, does = Fail, "drops or rejects packets"
			}
			list = append(list, Finding{level, name, fmt.Sprintf("%s %s %s: %q %s before the rules of Services see them (%s so far)", r.Family, rule.Table, rule.Chain, rule.Text, does, packets(rule.Packets)), FromKernel,
				"if it is not meant to: " + r.deletion(rule) + "; and have who made it append (-A) instead of insert (-I)"})
		}
	}
	switch {
	case len(list) > 0:
		return list
	case slices.ContainsFunc(f.Kernel.Rules, func(r Rules) bool { return f.uses(r.Backend) }):
		return []Finding{{OK, name, "no rule of others decides before the rules of Services", FromKernel, ""}}
	}
	saw := "the rules could not be read"
	if len(f.Kernel.Unread) > 0 {
		saw += ": " + few(f.Kernel.Unread)
	}
	return []Finding{{Unknown, name, saw, FromKernel, "run this as root on the node, or in the agent's pod, where the programs of iptables are"}}
}

func packets(n uint64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

// uses tells whether a backend is the agent's; each may be while that is not known.
func (f *Facts) uses(backend string) bool { return f.Agent == nil || f.Agent.IPTables == backend }

// checkForward judges what becomes of packets that the node forwards between pods, in either backend: both see every packet.
func checkForward(f *Facts) []Finding {
	const name = "forward"
	var list []Finding
	var dropping []string
	told := 0
	for _, r := range f.Kernel.Rules {
		where := fmt.Sprintf("%s filter FORWARD of iptables-%s", r.Family, r.Backend)
		for _, w := range r.Ways {
			switch {
			case w.Verdict == "accept":
				told++
			case w.Verdict == "" && r.Policy == "DROP":
				list = append(list, Finding{Warn, name, fmt.Sprintf("%s has the policy DROP (%s so far), and whether it accepts %s → %s can't be told: %s", where, packets(r.PolicyPackets), w.From, w.To, w.Why), FromKernel,
					"try it: a connection between pods of two nodes; when it fails, " + f.accept(r, w)})
			case w.Verdict == "":
			case w.Rule == "" && w.MadeUp:
				list = append(list, Finding{Warn, name, fmt.Sprintf("%s has the policy DROP (%s so far), and no rule accepts %s → %s; on this node that is no pod of a Service's, so it may be that each pod has a rule of its own", where, packets(r.PolicyPackets), w.From, w.To), FromKernel,
					"try it: a connection between pods of two nodes; when it fails, " + f.accept(r, w)})
			case w.Rule == "":
				list = append(list, Finding{Fail, name, fmt.Sprintf("%s drops new connections %s → %s: its policy is DROP (%s so far), and no rule accepts the pods' network", where, w.From, w.To, packets(r.PolicyPackets)), FromKernel, f.accept(r, w)})
			default:
				rule, _ := r.find(w.Rule)
				list = append(list, Finding{Fail, name, fmt.Sprintf("%s: %q drops or rejects new connections %s → %s (%s so far)", where, w.Rule, w.From, w.To, packets(rule.Packets)), FromKernel,
					"accept the pods' network before it, or delete it: " + r.deletion(Rule{Table: "filter", Text: w.Rule})})
			}
		}
		if r.Policy == "DROP" {
			dropping = append(dropping, where)
		}
	}
	if len(list) > 0 || len(f.Kernel.Rules) == 0 {
		return merge(list)
	}
	saw := "no policy of FORWARD is DROP"
	if len(dropping) > 0 {
		saw = strings.Join(dropping, " and ") + " has the policy DROP"
	}
	if told > 0 {
		saw += ", and connections between pods of this node and others are accepted"
	}
	return []Finding{{OK, name, saw, FromKernel, ""}}
}

// merge leaves out a Finding whose action was named before: both directions are dropped by one cause.
func merge(list []Finding) (kept []Finding) {
	seen := map[string]bool{}
	for _, f := range list {
		if !seen[f.Do] {
			kept = append(kept, f)
		}
		seen[f.Do] = true
	}
	return kept
}

// find looks for a rule by its text.
func (r Rules) find(text string) (Rule, bool) {
	for _, list := range [][]Rule{r.Refusing, r.Above} {
		for _, rule := range list {
			if rule.Text == text {
				return rule, true
			}
		}
	}
	return Rule{}, false
}

// accept is what makes the pods' network pass.
func (f *Facts) accept(r Rules, w Way) string {
	network := "the pods' network"
	if f.Agent != nil {
		for _, c := range f.Agent.ClusterCIDRs {
			if c.Contains(w.From) {
				network = c.String()
			}
		}
	}
	return fmt.Sprintf("%s -A FORWARD -s %s -j ACCEPT; %s -A FORWARD -d %s -j ACCEPT (or have the CNI plugin do so)", r.Command, network, r.Command, network)
}

// checkOtherProxies judges what of another proxy acts beside the agent.
func checkOtherProxies(f *Facts) []Finding {
	const name, do = "other-backend", "fairway takeover --plan shows what would be removed; fairway takeover removes it, when no kube-proxy runs"
	var list []Finding
	for _, r := range f.Kernel.Rules {
		if f.Agent != nil && !f.uses(r.Backend) && len(r.Chains) > 0 {
			list = append(list, Finding{Warn, name, fmt.Sprintf("%d %s chains of Services in iptables-%s, beside the agent's in iptables-%s: %s", len(r.Chains), r.Family, r.Backend, f.Agent.IPTables, few(r.Chains)), FromKernel, do})
		}
	}
	for _, family := range f.Kernel.KubeProxyTables {
		list = append(list, Finding{Warn, name, fmt.Sprintf("the nftables table %s kube-proxy, of a kube-proxy in nftables mode", family), FromKernel, do})
	}
	if len(f.Kernel.Unread) > 0 && len(f.Kernel.Rules) > 0 {
		list = append(list, Finding{Warn, name, "not all could be read: " + few(f.Kernel.Unread), FromKernel, "run this as root on the node, where all programs of iptables are"})
	}
	if list == nil && len(f.Kernel.Rules) > 0 {
		list = []Finding{{OK, name, "no rules of another proxy for Services", FromKernel, ""}}
	}
	return list
}
