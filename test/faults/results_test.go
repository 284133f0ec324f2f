package faults

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

var (
	full = flag.Bool("full", false, "faults last as long as in earnest, up to ten minutes each, instead of seconds")
	show = flag.Bool("table", false, "print the table of "+document+" with what was measured")
	// The command of the document is make faults.
	update = flag.Bool("update", false, "write what was measured into "+document)
)

// document has the table of all faults.
const document = "../../docs/faults.md"

func TestMain(m *testing.M) {
	// Most tests mostly wait.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	flag.Parse()
	code := lab.Main(m)
	if *show || *update {
		if err := results.write(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// lasts is how long a fault lasts: in earnest, or in the short form of make test.
func lasts(earnest, short time.Duration) time.Duration {
	if *full {
		return earnest
	}
	return short
}

// results is what the tests of this process measured, for the table.
var results = measurements{of: map[string]*measurement{}}

type measurements struct {
	mu sync.Mutex // guards of
	of map[string]*measurement
}

// A measurement is the worst of all runs and flows of a test.
type measurement struct {
	// failed is of the flow that lost the most, out of attempts.
	failed, attempts int
	gap, repair      time.Duration
	// flows and repairs count what it is of.
	flows, repairs int
}

// add makes it the worst of it and another.
func (m *measurement) add(o measurement) {
	if o.failed > m.failed {
		m.failed, m.attempts = o.failed, o.attempts
	}
	m.gap, m.repair = max(m.gap, o.gap), max(m.repair, o.repair)
	m.flows += o.flows
	m.repairs += o.repairs
}

func (m *measurements) add(t *testing.T, o measurement) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, _, _ := strings.Cut(t.Name(), "/")
	if m.of[name] == nil {
		m.of[name] = &measurement{}
	}
	m.of[name].add(o)
}

// saw takes note of what a flow saw.
func (m *measurements) saw(t *testing.T, r lab.Report) {
	m.add(t, measurement{failed: r.Failed(), attempts: r.Attempts, gap: r.LongestOutage, flows: 1})
}

// repaired takes note of how long a repair took.
func (m *measurements) repaired(t *testing.T, took time.Duration) {
	m.add(t, measurement{repair: took, repairs: 1})
}

// cells are the last three columns of the table.
func (m measurement) cells() string {
	failed, gap, repair := "–", "–", "–"
	if m.flows > 0 {
		failed, gap = "0", "0"
	}
	if m.failed > 0 {
		failed, gap = fmt.Sprintf("%d of %d", m.failed, m.attempts), milliseconds(m.gap)
	}
	if m.repairs > 0 {
		repair = milliseconds(m.repair)
	}
	return fmt.Sprintf(" %s | %s | %s |", failed, gap, repair)
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// A row is a line of the table: what happens and what the agent does, and the tests of it.
type row struct {
	// text is the first two columns, cells the others.
	text, cells string
	// pkg is the package of the tests, "" for this one, and run the beginning of their names without Test.
	pkg, run string
}

// target is the end of a row's first column: (`Fault01`) here, or (`test/takeover`, `Takeover`) elsewhere.
var target = regexp.MustCompile("\\((?:`([a-z0-9/]+)`, )?`([A-Za-z0-9_]+)`\\)$")

// parseRow tells whether a line of the document is a row of the table.
func parseRow(line string) (r row, ok bool) {
	cells := strings.Split(line, "|")
	if len(cells) != 7 { // five columns between six bars
		return r, false
	}
	m := target.FindStringSubmatch(strings.TrimSpace(cells[1]))
	if m == nil {
		return r, false // the heading, and the line under it
	}
	return row{text: strings.Join(cells[:3], "|") + "|", cells: strings.Join(cells[3:], "|"), pkg: m[1], run: m[2]}, true
}

// write prints the table, with what was measured by the tests that ran, and writes it into the document if asked to.
func (m *measurements) write() error {
	old, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	var text, table strings.Builder
	for line := range strings.Lines(string(old)) {
		if r, ok := parseRow(strings.TrimSuffix(line, "\n")); ok {
			if one, ran := m.ofRow(r); ran {
				r.cells = one.cells()
				fmt.Fprintln(&table, r.text+r.cells)
			}
			line = r.text + r.cells + "\n"
		}
		text.WriteString(line)
	}
	fmt.Printf("\n| Fault (`-run`) | What the agent does | Failed attempts, per flow | Longest gap | Time to repair |\n|---|---|---|---|---|\n%s", &table)
	if !*update {
		return nil
	}
	return os.WriteFile(document, []byte(text.String()), 0o644)
}

// ofRow is the worst of a row's tests; ok is false when none of them ran.
func (m *measurements) ofRow(r row) (worst measurement, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, one := range m.of {
		if r.pkg == "" && strings.HasPrefix(name, "Test"+r.run) {
			worst.add(*one)
			ok = true
		}
	}
	return worst, ok
}
