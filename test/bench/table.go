package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// results is everything that was measured, one element for each size.
type results struct {
	load       string // the load average at the start
	planning   []planning
	kernel     []kernel
	routing    []routing   // with one family, and with both
	announcing *announcing // nil when it was not measured
	beside     []beside
}

// print writes the tables, in Markdown.
func (r *results) print(w io.Writer, o options) error {
	out := &table{w: tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)}
	fmt.Fprintln(w, machine())
	fmt.Fprintf(w, "Load average %s at the start, %s at the end.\n", r.load, loadAverage())
	fmt.Fprintf(w, "%d endpoints per Service, %d nodes, IPv4. Medians; [lowest, highest]; n is how often.\n\n", o.endpoints, nodes)
	if len(r.planning) > 0 {
		r.printPlanning(out)
		out.flush(w)
	}
	if len(r.kernel) > 0 {
		for _, b := range lab.Backends {
			r.printKernel(out, b)
			out.flush(w)
		}
	}
	if len(r.routing) > 0 {
		r.printRouting(out, o)
		out.flush(w)
	}
	if r.announcing != nil {
		r.announcing.print(out, o)
		out.flush(w)
	}
	for _, b := range r.beside {
		if o.does(partContenders) {
			b.print(out, o)
			out.flush(w)
		}
		if len(b.loads) > 0 {
			b.printRates(out, o)
			out.flush(w)
			b.printTimes(out)
			out.flush(w)
		}
	}
	return out.err
}

func (r *results) printPlanning(t *table) {
	head := []string{"Deciding and rendering"}
	rows := [][]string{{"from nothing"}, {"after one change"}, {"the difference to the rules before"}, {"allocated, from nothing"}, {"allocated, one change"}, {"lines of the rule set"}}
	for _, p := range r.planning {
		head = append(head, count(p.services))
		for i, cell := range []string{p.nothing.String(), p.change.String(), p.diff.String(), mebibytes(p.allocated), mebibytes(p.perChange), fmt.Sprint(p.lines)} {
			rows[i] = append(rows[i], cell)
		}
	}
	t.write(head, rows...)
}

func (r *results) printKernel(t *table, b lab.Backend) {
	head := []string{"Kernel, iptables-" + string(b)}
	rows := [][]string{{"full restore, empty kernel"}, {"its processor time"}, {"one change"}, {"its processor time"}, {"reading back and comparing"}, {"its processor time, of iptables-save"}}
	for _, k := range r.kernel {
		head = append(head, count(k.services))
		by := k.by[b]
		for i, s := range []sample{by.full.wall, by.full.cpu, by.change.wall, by.change.cpu, by.read.wall, by.read.cpu} {
			rows[i] = append(rows[i], s.String())
		}
	}
	t.write(head, rows...)
}

func (r *results) printRouting(t *table, o options) {
	head := []string{fmt.Sprintf("Routes to %d nodes", o.nodes)}
	rows := [][]string{{"`ip -batch`, from nothing"}, {"its processor time"}, {"fairway, from nothing"}, {"its processor time"}, {"as a part of that of `ip -batch`"}, {"allocated"},
		{"one node more"}, {"its processor time"}, {"allocated"}, {"nothing to do"}, {"all gone"}}
	for _, by := range r.routing {
		head = append(head, [...]string{"", "IPv4", "IPv4 and IPv6"}[by.families]+fmt.Sprintf(", %d routes", by.routes))
		for i, cell := range []string{by.batch.wall.String(), by.batch.cpu.String(), by.full.wall.String(), by.full.cpu.String(), fmt.Sprintf("%.2f", middle(by.ratio)), mebibytes(by.allocated),
			by.more.wall.String(), by.more.cpu.String(), mebibytes(by.moreAllocated), by.nothing.wall.String(), by.remove.wall.String()} {
			rows[i] = append(rows[i], cell)
		}
	}
	t.write(head, rows...)
}

func (a *announcing) print(t *table, o options) {
	t.write([]string{"BGP", fmt.Sprintf("%d addresses of Services", o.vips)}, [][]string{
		{"announced, until the router has all", a.announce.wall.String()}, {"its processor time", a.announce.cpu.String()},
		{"withdrawn, until the router has none", a.withdraw.wall.String()}, {"its processor time", a.withdraw.cpu.String()},
		{fmt.Sprintf("%d changes in %s: from the last until the router has the last state", a.changes, o.storm), a.storm.wall.String()},
		{"its processor time, of one core", a.storm.cpu.share(o.storm)},
		{"Plans made and told meanwhile", fmt.Sprint(a.plans)}, {"prefixes that the router was told of", fmt.Sprint(a.updates)},
		{"resident memory of the process that plans and of that which speaks, nothing announced", a.memory(func(r resident) int { return r.before })},
		{"the same, all announced", a.memory(func(r resident) int { return r.after })}, {"most resident memory ever", a.memory(func(r resident) int { return r.peak })},
		{"of each, the program's own code (mapped file), which they share", a.memory(func(r resident) int { return r.file })}}...)
}

func (a *announcing) memory(which func(resident) int) string {
	return kibibytes(which(a.planner)) + ", " + kibibytes(which(a.speaker))
}

// rows are the lines of a table of contenders: what is told, what fairway should reach with 10,000 Services × 5 endpoints on legacy
// and nft, and what a contender did.
func rows(o options) []row {
	return []row{
		{"start to all programmed", "", func(t *tally) string { return t.start.String() }},
		{"CPU until then", "≤ 1.2 s; 6 s", func(t *tally) string { return t.startCPU.String() }},
		{"CPU until it is quiet again", "", func(t *tally) string { return t.quietCPU.String() }},
		{"CPU of one change, mean", "≤ 0.15 s; 30 ms", func(t *tally) string { return t.changeCPU.mean() }},
		{"CPU of one change at 20 a second, mean", "", func(t *tally) string { return t.busyCPU.mean() }},
		{"CPU at rest, of one core", "", func(t *tally) string { return t.restCPU.share(o.rest) }},
		{"change to connection, p50", "≤ 200 ms; 60 ms", func(t *tally) string { return t.idle.at(0.5) }},
		{"change to connection, p99", "≤ 500 ms; 250 ms", func(t *tally) string { return t.idle.at(0.99) }},
		{"the same at 20 changes a second, p50", "", func(t *tally) string { return t.busy.at(0.5) }},
		{"the same at 20 changes a second, p99", "≤ 0.5 s", func(t *tally) string { return t.busy.at(0.99) }},
		{"the last of these changes", "", func(t *tally) string { return t.last.String() }},
		{"resident memory, programmed", "≤ 90 MiB", func(t *tally) string { return kibibytes(t.memory.ready) }},
		{"resident memory, after churn", "≤ 110 MiB", func(t *tally) string { return kibibytes(t.memory.churned) }},
		{"resident memory, at rest", "", func(t *tally) string { return kibibytes(t.memory.rested) }},
		{"of that, the program's own code (mapped file)", "", func(t *tally) string { return kibibytes(t.memory.file) }},
		{"most resident memory ever", "", func(t *tally) string { return kibibytes(t.memory.peak) }},
		{"most resident memory of a child", "", func(t *tally) string { return kibibytes(t.memory.child) }},
		{"repaired: " + jumpDeleted.String(), "≤ 2 s", func(t *tally) string { return t.repair[jumpDeleted].tried() }},
		{"repaired: " + chainEmptied.String(), "≤ 2 s", func(t *tally) string { return t.repair[chainEmptied].tried() }},
		{"repaired: " + tableFlushed.String(), "≤ 2 s", func(t *tally) string { return t.repair[tableFlushed].tried() }},
		{"fairway doctor", "", func(t *tally) string { return t.doctor.wall.tried() }},
		{"its processor time, and the agent's meanwhile", "", func(t *tally) string { return t.doctor.cpu.tried() }},
		{"its most resident memory ever", "", (*tally).doctorPeak},
		{"connections without an answer", "0", func(t *tally) string { return fmt.Sprint(t.lost) }},
	}
}

type row struct {
	name, goal string
	cell       func(*tally) string
}

// goals tells whether fairway should reach something with a cluster of this size.
func (b *beside) goals(o options) bool { return b.services == 10000 && o.endpoints == 5 }

// print writes what the contenders did, one column for each.
func (b *beside) print(t *table, o options) {
	head := []string{count(b.services)}
	if b.goals(o) {
		head = append(head, "to reach: legacy; nft")
	}
	for _, c := range o.contenders {
		head = append(head, c.name)
	}
	var cells [][]string
	for i, row := range rows(o) {
		line := []string{row.name}
		if b.goals(o) {
			line = append(line, row.goal)
		}
		for _, c := range o.contenders {
			done := b.by[c]
			switch {
			case !done.unfinished:
				line = append(line, row.cell(done))
			case i == 0:
				line = append(line, "unfinished after "+seconds(done.start[0]))
			case i == 1:
				line = append(line, row.cell(done))
			default:
				line = append(line, "–")
			}
		}
		cells = append(cells, line)
	}
	t.write(head, cells...)
}

// printRates writes how many connections there were, and that as a part of those to a pod without rules.
func (b *beside) printRates(t *table, o options) {
	var goal []string
	if b.goals(o) {
		goal = []string{"to reach", "75 %", "", "", "70 %"}
	}
	b.printLoads(t, "new connections a second", goal, func(l *load, to target) string {
		cell := fmt.Sprintf("%.0f", middle(l.rates[to]))
		if l.who != withoutRules {
			cell += fmt.Sprintf(" (%.0f %%)", 100*middle(l.parts[to]))
		}
		return cell
	})
}

// printTimes writes how long connect took.
func (b *beside) printTimes(t *table) {
	b.printLoads(t, "connect, p10 / p50 / p99", nil, func(l *load, to target) string {
		at := l.times[to]
		return seconds(at.quantile(0.1)) + " / " + seconds(at.quantile(0.5)) + " / " + seconds(at.quantile(0.99))
	})
}

func (b *beside) printLoads(t *table, what string, goal []string, cell func(*load, target) string) {
	var rows [][]string
	if goal != nil {
		rows = append(rows, goal)
	}
	for _, l := range b.loads {
		row := []string{l.who}
		for to := range targets {
			if len(l.to[to]) == 0 {
				row = append(row, "–")
			} else {
				row = append(row, cell(l, to))
			}
		}
		rows = append(rows, row)
	}
	t.write(append([]string{count(b.services) + ": " + what}, targetNames[:]...), rows...)
}

// middle is the median.
func middle(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }

// A table writes Markdown tables with aligned columns; err is the first error.
type table struct {
	w   *tabwriter.Writer
	err error
}

func (t *table) write(head []string, rows ...[]string) {
	rule := make([]string, len(head))
	for i := range rule {
		rule[i] = "---"
	}
	for _, row := range append([][]string{head, rule}, rows...) {
		if _, err := fmt.Fprintln(t.w, "| "+strings.Join(row, "\t| ")+"\t|"); t.err == nil {
			t.err = err
		}
	}
}

func (t *table) flush(w io.Writer) {
	if err := t.w.Flush(); t.err == nil {
		t.err = err
	}
	fmt.Fprintln(w)
}

// String returns the median, the extremes and the number.
func (s sample) String() string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s [%s, %s] n=%d", seconds(s.quantile(0.5)), seconds(slices.Min(s)), seconds(slices.Max(s)), len(s))
}

// at returns a quantile and the number.
func (s sample) at(part float64) string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s n=%d", seconds(s.quantile(part)), len(s))
}

// tried returns the sample; those who were spared have none.
func (s sample) tried() string {
	if len(s) == 0 {
		return "not tried"
	}
	return s.String()
}

// doctorPeak is a line's cell, of which those who were spared have none.
func (t *tally) doctorPeak() string {
	if t.doctor.peak == 0 {
		return "not tried"
	}
	return kibibytes(t.doctor.peak)
}

// mean returns the mean, the extremes and the number.
func (s sample) mean() string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s [%s, %s] n=%d", seconds(s.sum()/time.Duration(len(s))), seconds(slices.Min(s)), seconds(slices.Max(s)), len(s))
}

// share returns the mean as a part of a time.
func (s sample) share(of time.Duration) string {
	if len(s) == 0 || of == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f %%", 100*s.sum().Seconds()/float64(len(s))/of.Seconds())
}

// seconds writes a duration with three digits.
func seconds(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.3g ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func mebibytes(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// kibibytes writes an amount of memory; zero was not measured.
func kibibytes(kib int) string {
	if kib == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f MiB", float64(kib)/(1<<10))
}

func count(services int) string { return fmt.Sprintf("%d services", services) }

// machine describes where the figures are from.
func machine() string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("Machine: %d cores (%s), Linux %s, %s, %s, %s.", runtime.NumCPU(), processor(), kernel,
		version(lab.Tool(lab.NFT, cluster.IPv4, "")), version("nft"), runtime.Version())
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// version is what a program says of itself: "iptables v1.8.9 (nf_tables)".
func version(program string) string {
	text, err := exec.Command(program, "--version").Output()
	if err != nil {
		return program + " of unknown version"
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(text)), " (")
	return name
}

// loadAverage is that of the last minute: how many threads wanted a processor.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
