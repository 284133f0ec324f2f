package netfilter

import (
	"context"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// evidence is what the tables of a backend, all families together, say about who uses it.
type evidence struct {
	// hint is the chain that kubelet left in mangle, or "".
	hint string
	// rules counts all rules, chains the chains that are ours (or kube-proxy's).
	rules, chains int
	// unread is why the tables could not be read, although there are some; nil when they were.
	unread error
}

// look gathers a backend's evidence. It asks for no table by name: iptables-legacy would create it, while a save of
// all lists what /proc/net/ip_tables_names has, which may be nothing. What can't be read counts as nothing.
func (d *detector) look(ctx context.Context, b *Backend) (e evidence) {
	for _, f := range b.Families() {
		seen, err := d.saved(ctx, b, f)
		if err != nil {
			e.unread = err
			continue
		}
		e.add(seen)
	}
	return e
}

func (d *detector) saved(ctx context.Context, b *Backend, f cluster.Family) (e evidence, err error) {
	text, err := d.run(ctx, command{path: b.Binaries[f].Save})
	if err != nil {
		return e, err
	}
	table := ""
	for line := range strings.Lines(text) {
		switch line[0] {
		case '#':
			if t := iptables.Unshown(line); t == iptables.Filter || t == iptables.NAT {
				return e, iptables.UnshownError(t)
			}
		case '*':
			table = strings.TrimSpace(line[1:])
		case '-':
			e.rules++
		case ':':
			name, _, _ := strings.Cut(line[1:], " ")
			if table == "mangle" && (name == "KUBE-IPTABLES-HINT" || name == "KUBE-KUBELET-CANARY") {
				e.hint = name
			}
			if (table == iptables.Filter || table == iptables.NAT) && iptables.Owned(table, name) {
				e.chains++
			}
		}
	}
	return e, nil
}

func (e *evidence) add(o evidence) {
	if e.hint == "" {
		e.hint = o.hint
	}
	e.rules += o.rules
	e.chains += o.chains
}
