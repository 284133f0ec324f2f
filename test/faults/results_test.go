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
)

// document has the table of all faults.
const document = "../../docs/faults.md"

func TestMain(m *testing.M) {
	// Most tests mostly wait.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	flag.Parse()
	code := lab.Main(m)
	if *show {
		if err := results.print(); err != nil {
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
	worst    lab.Report
	repair   time.Duration
	repairs  int
	attempts int
}

func (m *measurements) change(t *testing.T, f func(*measurement)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, _, _ := strings.Cut(t.Name(), "/")
	if m.of[name] == nil {
		m.of[name] = &measurement{}
	}
	f(m.of[name])
}

// saw takes note of what a flow saw.
func (m *measurements) saw(t *testing.T, r lab.Report) {
	m.change(t, func(one *measurement) {
		one.attempts += r.Attempts
		gap := max(one.worst.LongestOutage, r.LongestOutage)
		if r.Failed() > one.worst.Failed() {
			one.worst = r
		}
		one.worst.LongestOutage = gap
	})
}

// repaired takes note of how long a repair took.
func (m *measurements) repaired(t *testing.T, took time.Duration) {
	m.change(t, func(one *measurement) {
		one.repair = max(one.repair, took)
		one.repairs++
	})
}

// cells are the last three columns of the table.
func (m *measurement) cells() string {
	failed, gap, repair := "0", "0", "–"
	if n := m.worst.Failed(); n > 0 {
		failed = fmt.Sprintf("%d of %d", n, m.worst.Attempts)
		gap = milliseconds(m.worst.LongestOutage)
	}
	if m.attempts == 0 {
		failed, gap = "–", "–"
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
	// text is the first two columns.
	text string
	// pkg is the package of the tests, "" for this one, and run the beginning of their names without Test.
	pkg, run string
}

// target is the end of a row's first column: (`Fault01`) here, or (`test/takeover`, `Takeover`) elsewhere.
var target = regexp.MustCompile("\\((?:`([a-z0-9/]+)`, )?`([A-Za-z0-9_]+)`\\)$")

// rows reads the table.
func rows() (list []row, err error) {
	text, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 7 { // five columns between six bars
			continue
		}
		m := target.FindStringSubmatch(strings.TrimSpace(cells[1]))
		if m == nil {
			continue // the heading, and the line under it
		}
		list = append(list, row{text: strings.Join(cells[:3], "|") + "|", pkg: m[1], run: m[2]})
	}
	return list, nil
}

// print prints the table's rows whose tests ran.
func (m *measurements) print() error {
	list, err := rows()
	if err != nil {
		return err
	}
	fmt.Print("\n| Fault (`-run`) | What the agent does | Failed attempts, per flow | Longest gap | Time to repair |\n|---|---|---|---|---|\n")
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range list {
		for name, one := range m.of {
			if r.pkg == "" && strings.HasPrefix(name, "Test"+r.run) {
				fmt.Println(r.text + one.cells())
			}
		}
	}
	return nil
}
