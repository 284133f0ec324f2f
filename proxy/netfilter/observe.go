package netfilter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// An Observation is what an operator should know of the rules of one backend and family.
type Observation struct {
	Backend string
	Family  cluster.Family
	// Command is the program that changes these rules.
	Command string
	// Chains are those of Services, "table chain", whoever's they are.
	Chains []string
	// Above are the rules of others that stand before the jumps to Services and decide, see iptables.Table.Above; Refusing are those
	// of filter's FORWARD that drop or reject, wherever they stand.
	Above, Refusing []CountedRule
	// Policy is that of FORWARD in filter, empty without such a chain; PolicyPackets is what it has been applied to.
	Policy        string
	PolicyPackets uint64
	// Save is what iptables-save printed, without counters.
	Save string
}

// A CountedRule is a rule with the packets that it has applied to.
type CountedRule struct {
	Table, Chain, Rule string
	// Refuses: it drops or rejects.
	Refuses bool
	Packets uint64
}

// Observe reads the rules of both backends, with their counters, and changes nothing. What could not be read is in unread.
func Observe(ctx context.Context) (list []Observation, unread []error) {
	d := newDetector()
	for _, name := range []string{Legacy, NFT} {
		b := d.find(ctx, name)
		for _, f := range b.Families() {
			if f == cluster.IPv6 && !d.hasIPv6() {
				continue
			}
			// No table is asked for by name, which would create it.
			text, err := b.run(ctx, command{path: b.Binaries[f].Save, args: []string{"-c"}})
			var o Observation
			if err == nil {
				o, err = observe(f, text)
			}
			if err != nil {
				unread = append(unread, fmt.Errorf("%s of iptables-%s: %w", f, name, err))
				continue
			}
			o.Backend, o.Command = name, commandName(b.Binaries[f].Command)
			list = append(list, o)
		}
	}
	return list, unread
}

func commandName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// ObserveOtherModes returns what nft calls the tables of a kube-proxy in nftables mode.
func ObserveOtherModes() (tables []string, err error) {
	families, err := kubeProxyTables()
	for _, f := range families {
		tables = append(tables, nftFamily(f))
	}
	return tables, err
}

// observe reads what iptables-save -c printed.
func observe(f cluster.Family, text string) (Observation, error) {
	o := Observation{Family: f}
	counts := map[string]uint64{} // by table and rule; of rules that are the same, the sum
	var plain strings.Builder
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		packets, rule := uncounted(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(rule, "-A "):
			counts[table+rule] += packets
			if table == iptables.Filter && strings.HasPrefix(rule, "-A FORWARD ") && iptables.Refuses(rule) {
				o.Refusing = append(o.Refusing, CountedRule{Table: table, Chain: "FORWARD", Rule: rule, Refuses: true})
			}
		case table == iptables.Filter && strings.HasPrefix(line, ":FORWARD "):
			o.Policy, o.PolicyPackets = policyOf(line)
		}
		plain.WriteString(rule)
		plain.WriteByte('\n')
	}
	o.Save = plain.String()
	have, err := iptables.Parse(f, o.Save)
	if err != nil {
		return o, err
	}
	for _, name := range iptables.Tables {
		t := have.Table(name)
		for _, c := range t.Chains {
			o.Chains = append(o.Chains, name+" "+c.Name)
		}
		for _, chain := range slices.Sorted(maps.Keys(t.Builtins)) {
			for _, rule := range t.Above(chain) {
				rule = strings.TrimSuffix(rule, "\n")
				o.Above = append(o.Above, CountedRule{Table: name, Chain: chain, Rule: rule, Refuses: iptables.Refuses(rule)})
			}
		}
	}
	for _, rules := range [][]CountedRule{o.Above, o.Refusing} {
		for i := range rules {
			rules[i].Packets = counts[rules[i].Table+rules[i].Rule]
		}
	}
	return o, nil
}

// uncounted takes the counters from the beginning of a rule: "[12:720] -A FORWARD …".
func uncounted(line string) (packets uint64, rule string) {
	rest, found := strings.CutPrefix(line, "[")
	counters, rule, ok := strings.Cut(rest, "] ")
	if !found || !ok {
		return 0, line
	}
	return packetsOf(counters), rule
}

// policyOf reads the declaration of a built-in chain: ":FORWARD DROP [12:720]".
func policyOf(line string) (policy string, packets uint64) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return "", 0
	}
	return words[1], packetsOf(strings.Trim(words[2], "[]"))
}

// packetsOf reads the first of two counters, packets:bytes.
func packetsOf(counters string) uint64 {
	packets, _, _ := strings.Cut(counters, ":")
	n, err := strconv.ParseUint(packets, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
