package iptables

import (
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// A Restore is the input of one iptables-restore --noflush that turns one Ruleset into another.
//
// The tables commit one after the other, so a change takes up to three steps: what filter gains, then nat, then what
// filter loses. A service that loses its last endpoint is rejected before it is no longer translated, and one that
// gains its first is translated before it is no longer rejected; at no moment does a packet to a VIP pass as it is.
type Restore struct {
	text     strings.Builder
	lines    int
	sections []section
	set      []chainChange
	chains   int
	touched  map[ChainName]int
}

// A section is a run of lines that belong to one chain.
type section struct {
	first int // 1-based line of the first rule
	chain *Chain
}

// Nothing returns a Restore that changes nothing. That it is refused tells that the tables can't be written at all.
func Nothing() *Restore {
	r := &Restore{}
	for _, table := range Tables {
		r.line("*", table)
		r.line("COMMIT")
	}
	return r
}

// Empty tells that there is nothing to do.
func (r *Restore) Empty() bool { return r.lines == 0 }

// String returns the input for iptables-restore.
func (r *Restore) String() string { return r.text.String() }

// Lines returns the number of lines of the input.
func (r *Restore) Lines() int { return r.lines }

// A ChainName names a chain of a table.
type ChainName struct{ Table, Chain string }

// The counts of Touched that are none.
const (
	// Gone is the count of a chain that is deleted.
	Gone = -1
	// Uncounted is that of a chain which has rules of others, too.
	Uncounted = -2
)

// Touched returns the chains that are written or deleted, with the number of their rules afterwards, Gone or Uncounted.
func (r *Restore) Touched() map[ChainName]int { return r.touched }

// Chains returns how many chains are written or deleted.
func (r *Restore) Chains() int { return r.chains }

// Blame returns the Service that a line (counted from 1) of the input is for; ok is false when it is for none.
func (r *Restore) Blame(line int) (svc cluster.Ref, ok bool) {
	i, found := slices.BinarySearchFunc(r.sections, line, func(s section, line int) int { return s.first - line })
	if !found {
		i--
	}
	if i < 0 {
		return svc, false
	}
	s := r.sections[i]
	rule := line - s.first
	if rule >= strings.Count(s.chain.Rules, "\n") {
		return svc, false
	}
	if p := s.chain.portOf(rule); p != nil {
		return p.Service.Ref(), true
	}
	return svc, false
}

// Services returns the Services whose rules the Restore adds or changes: the suspects when it is refused.
func (r *Restore) Services() []cluster.Ref {
	changed := map[cluster.Ref]bool{}
	for _, s := range r.set {
		for _, p := range s.gained() {
			changed[p.Service.Ref()] = true
		}
	}
	list := make([]cluster.Ref, 0, len(changed))
	for ref := range changed {
		list = append(list, ref)
	}
	slices.SortFunc(list, func(a, b cluster.Ref) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// Diff returns what turns have into want. Chains whose text is equal are not touched.
func Diff(have, want *Ruleset) *Restore {
	filter, nat := compare(&have.Filter, &want.Filter), compare(&have.NAT, &want.NAT)
	r := &Restore{}
	gains, losses := filter.around(nat)
	r.write(Filter, gains)
	r.write(NAT, nat)
	r.write(Filter, losses)
	return r
}

// around splits the change of filter into what comes before a change of nat and what comes after it, so that there is no gap.
func (c *change) around(nat *change) (gains, losses *change) {
	if nat.empty() {
		return c, &change{}
	}
	return c.split()
}

// A change is what happens to one table.
type change struct {
	set    []chainChange
	remove []string
	drop   []Jump         // jumps to delete
	insert []Jump         // jumps to insert, in this order
	after  map[string]int // after how many rules of a built-in chain, once drop is done; 0 is first
	shared []Jump         // rules to insert into chains that we share
	create bool           // the shared chain is missing
}

// A chainChange replaces the rules of a chain.
type chainChange struct {
	*Chain
	old   string
	isNew bool // there is no chain of the name yet
}

func (c *change) empty() bool {
	return len(c.set)+len(c.remove)+len(c.drop)+len(c.insert)+len(c.shared) == 0
}

func compare(have, want *Table) *change {
	c := &change{}
	old := have.Chains
	removed := func(o *Chain) {
		switch {
		case !have.referenced[o.Name]:
			c.remove = append(c.remove, o.Name)
		case o.Rules != "":
			c.set = append(c.set, chainChange{Chain: &Chain{Name: o.Name}, old: o.Rules})
		}
	}
	for _, w := range want.Chains {
		for len(old) > 0 && old[0] != w && old[0].Name < w.Name {
			removed(old[0])
			old = old[1:]
		}
		if len(old) == 0 || old[0] != w && old[0].Name != w.Name {
			c.set = append(c.set, chainChange{Chain: w, isNew: true})
			continue
		}
		if old[0] != w && old[0].Rules != w.Rules {
			c.set = append(c.set, chainChange{Chain: w, old: old[0].Rules})
		}
		old = old[1:]
	}
	for _, o := range old {
		removed(o)
	}
	c.compareJumps(have, want)
	return c
}

// compareJumps finds what happens to the jumps, and to the rules in chains that we share.
func (c *change) compareJumps(have, want *Table) {
	c.shared = have.Shared.lacks(want.Shared.Rules)
	c.create = len(c.shared) > 0 && !have.Shared.Chain
	c.after = map[string]int{}
	for _, from := range builtins(have, want) {
		h, w := have.jumpsFrom(from), want.jumpsFrom(from)
		if slices.Equal(h, w) && !have.move[from] {
			continue
		}
		c.drop = append(c.drop, h...)
		c.insert = append(c.insert, w...)
		c.keepFirst(from, want)
		if !have.move[from] {
			c.after[from] = have.placeOf(from, c.drop)
		}
	}
}

// keepFirst moves the jump to a shared chain back to the front of a built-in chain into which jumps are inserted: what the
// shared chain drops, nothing of ours may accept before.
func (c *change) keepFirst(from string, want *Table) {
	for _, j := range want.Shared.Rules {
		if j.From == from && !slices.Contains(c.shared, j) {
			c.drop = append(c.drop, j)
			c.shared = append(c.shared, j)
		}
	}
}

func builtins(tables ...*Table) (names []string) {
	for _, t := range tables {
		for _, j := range t.Jumps {
			if !slices.Contains(names, j.From) {
				names = append(names, j.From)
			}
		}
	}
	return names
}

func (t *Table) jumpsFrom(builtin string) (list []Jump) {
	for _, j := range t.Jumps {
		if j.From == builtin {
			list = append(list, j)
		}
	}
	return list
}

// split divides a change of the filter table into one that only adds rules and one that takes the rest away.
func (c *change) split() (gains, losses *change) {
	gains = &change{drop: c.drop, insert: c.insert, after: c.after, shared: c.shared, create: c.create}
	losses = &change{remove: c.remove}
	for _, s := range c.set {
		lost := missing(s.old, s.Rules)
		gained := missing(s.Rules, s.old)
		switch {
		case lost == "":
			gains.set = append(gains.set, s)
		case gained == "":
			losses.set = append(losses.set, s)
		default:
			both := &Chain{Name: s.Name, Rules: s.Rules + lost, ports: s.ports}
			gains.set = append(gains.set, chainChange{Chain: both, old: s.old})
			losses.set = append(losses.set, s)
		}
	}
	return gains, losses
}

// missing returns the lines of a that b does not have.
func missing(a, b string) string {
	if a == "" || b == "" {
		return a
	}
	has := map[string]bool{}
	for line := range strings.Lines(b) {
		has[line] = true
	}
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !has[line] {
			out.WriteString(line)
		}
	}
	return out.String()
}

func (r *Restore) line(parts ...string) {
	for _, p := range parts {
		r.text.WriteString(p)
	}
	r.text.WriteByte('\n')
	r.lines++
}

// write adds a table's change. All chains are declared first: a declaration creates the chain or empties it.
func (r *Restore) write(table string, c *change) {
	if c.empty() {
		return
	}
	r.grow(c)
	names := slices.Clone(c.remove)
	for _, s := range c.set {
		names = append(names, s.Name)
	}
	if c.create {
		names = append(names, chainKubelet)
	}
	slices.Sort(names)
	r.line("*", table)
	for _, n := range names {
		r.line(":", n, " - [0:0]")
	}
	r.chains += len(names)
	if len(names) == 0 && len(c.shared) > 0 { // a rule in somebody else's chain
		r.chains++
	}
	for _, j := range c.drop {
		r.line("-D ", strings.TrimSuffix(j.Rule[len("-A "):], "\n"))
	}
	for _, j := range reversed(c.insert) {
		r.insert(j, c.after[j.From]+1)
	}
	// They come last, and so first: they must be met before anything that accepts.
	for _, j := range c.shared {
		r.insert(j, 1)
	}
	for _, s := range c.set {
		r.sections = append(r.sections, section{r.lines + 1, s.Chain})
		r.text.WriteString(s.Rules)
		r.lines += strings.Count(s.Rules, "\n")
	}
	r.set = append(r.set, c.set...)
	r.touch(table, c)
	for _, n := range c.remove {
		r.line("-X ", n)
	}
	r.line("COMMIT")
}

// grow makes room for a table's change. A first load is megabytes, which should not be copied from one buffer to the next
// larger one.
func (r *Restore) grow(c *change) {
	size := 2 * (len(c.set) + len(c.remove) + 4) * maxChainName
	for _, s := range c.set {
		size += len(s.Rules)
	}
	r.text.Grow(size)
}

func (r *Restore) insert(j Jump, at int) {
	r.line("-I ", j.From, " ", strconv.Itoa(at), " ", strings.TrimSuffix(j.Rule[len("-A "+j.From+" "):], "\n"))
}

// touch records what a table's change writes.
func (r *Restore) touch(table string, c *change) {
	if r.touched == nil {
		r.touched = map[ChainName]int{}
	}
	for _, s := range c.set {
		r.touched[ChainName{table, s.Name}] = strings.Count(s.Rules, "\n")
	}
	for _, n := range c.remove {
		r.touched[ChainName{table, n}] = Gone
	}
	for _, j := range slices.Concat(c.drop, c.insert, c.shared) {
		r.touched[ChainName{table, j.From}] = Uncounted
	}
}

func reversed(list []Jump) []Jump {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

// gained returns the service ports that a changed chain has new rules of.
func (c chainChange) gained() (list []*proxy.Port) {
	if len(c.ports) == 1 && c.ports[0] != nil {
		return c.ports
	}
	had := map[string]bool{}
	for line := range strings.Lines(c.old) {
		had[line] = true
	}
	i := 0
	for line := range strings.Lines(c.Rules) {
		if i < len(c.ports) && c.ports[i] != nil && !had[line] {
			list = append(list, c.ports[i])
		}
		i++
	}
	return list
}
