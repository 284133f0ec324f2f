package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/test/lab"
)

// results is everything that was measured, one element for each size.
type results struct {
	planning []planning
	kernel   []kernel
	agents   []agents
}

// print writes the tables, in Markdown.
func (r *results) print(w io.Writer, o options) error {
	out := &table{w: tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)}
	fmt.Fprintln(w, machine(r.kernel[0].by[lab.Backends[0]].version))
	fmt.Fprintf(w, "%d endpoints per Service, %d nodes, IPv4. Medians; [lowest, highest]; n is how often.\n\n", o.endpoints, nodes)
	r.printPlanning(out)
	out.flush(w)
	for _, b := range lab.Backends {
		r.printKernel(out, b)
		out.flush(w)
	}
	if len(r.agents) > 0 {
		r.printAgents(out)
		out.flush(w)
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

func (r *results) printAgents(t *table) {
	head := []string{"Agent"}
	rows := [][]string{{"start to all programmed"}, {"processor time until then, agent + children"}, {"one change, from the API's answer until programmed"},
		{"resident memory, ready"}, {"resident memory, after churn"}, {"resident memory, at rest"}, {"of that, the program's own code (mapped file)"},
		{"most resident memory ever"}, {"most resident memory of a child"}, {"processor time of churn, agent + children"}, {"processor time of rest, agent + children"}}
	for _, a := range r.agents {
		for _, b := range lab.Backends {
			head = append(head, count(a.services)+", "+string(b))
			run := a.by[b]
			for i, cell := range []string{seconds(run.ready), run.start.times(usage{}), run.change.String(),
				kibibytes(run.start.rss), kibibytes(run.churn.rss), kibibytes(run.rest.rss), kibibytes(run.rest.file),
				kibibytes(run.rest.peak), kibibytes(run.rest.children), run.churn.times(run.start), run.rest.times(run.churn)} {
				rows[i] = append(rows[i], cell)
			}
		}
	}
	t.write(head, rows...)
}

// times are the processor times since an earlier usage.
func (u usage) times(since usage) string {
	return seconds(u.cpu-since.cpu) + " + " + seconds(u.childrens-since.childrens)
}

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
	sorted := slices.Sorted(slices.Values(s))
	return fmt.Sprintf("%s [%s, %s] n=%d", seconds(sorted[len(sorted)/2]), seconds(sorted[0]), seconds(sorted[len(sorted)-1]), len(sorted))
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

func kibibytes(kib int) string { return fmt.Sprintf("%.0f MiB", float64(kib)/(1<<10)) }

func count(services int) string { return fmt.Sprintf("%d services", services) }

// machine describes where the figures are from.
func machine(iptables string) string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("Machine: %d cores (%s), Linux %s, iptables %s, %s.", runtime.NumCPU(), model, kernel, iptables, runtime.Version())
}
