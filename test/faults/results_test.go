package faults

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
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
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	if !*show && !*update {
		return lab.Main(m)
	}
	file := os.Getenv(measured.FileEnv)
	if file == "" { // else tests of other packages may have written it
		dir, err := os.MkdirTemp("", "fairway-faults")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if file = filepath.Join(dir, "measured"); os.Setenv(measured.FileEnv, file) != nil {
			panic("the environment can't be set")
		}
	}
	code = lab.Main(m)
	if err := write(file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// lasts is how long a fault lasts: in earnest, or in the short form of make test.
func lasts(earnest, short time.Duration) time.Duration {
	if *full {
		return earnest
	}
	return short
}

// cells are the last three columns of the table.
func cells(m measured.Measurement) string {
	failed, gap, repair := "–", "–", "–"
	if m.Flows > 0 {
		failed, gap = "0", "0"
	}
	if m.Failed > 0 {
		failed, gap = fmt.Sprintf("%d of %d", m.Failed, m.Attempts), milliseconds(m.Gap)
	}
	if m.Repairs > 0 {
		repair = milliseconds(m.Repair)
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
func write(file string) error {
	all, err := measured.Read(file)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	var text, table strings.Builder
	for line := range strings.Lines(string(old)) {
		if r, ok := parseRow(strings.TrimSuffix(line, "\n")); ok {
			if one, ran := r.worst(all); ran {
				r.cells = cells(one)
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

// worst is the worst of a row's tests; ok is false when none of them measured anything.
func (r row) worst(all map[measured.Test]measured.Measurement) (worst measured.Measurement, ok bool) {
	pkg := r.pkg
	if pkg == "" {
		pkg = "test/faults"
	}
	for test, one := range all {
		if test.Package == pkg && strings.HasPrefix(test.Name, "Test"+r.run) {
			worst.Add(one)
			ok = true
		}
	}
	return worst, ok
}
