// Package measured takes what tests of faults measured to the table of docs/faults.md, also from tests of other packages and so of other
// processes: they write it into one file, a line of JSON each, and test/faults reads that when all are done. Without the file it does nothing.
//
// It refuses to judge: what must not be lost, and what a repair may take, the tests say.
package measured

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// FileEnv is the environment variable that names the file.
const FileEnv = "FAIRWAY_MEASURED"

// A Measurement is the worst of some flows and repairs.
type Measurement struct {
	// Failed is of the flow that lost the most, out of its Attempts.
	Failed, Attempts int
	// Gap is the longest time without an answer, Repair that until all was as it should be.
	Gap, Repair time.Duration
	// Flows and Repairs count what it is of.
	Flows, Repairs int
}

// Add makes it the worst of it and another.
func (m *Measurement) Add(o Measurement) {
	if o.Failed > m.Failed {
		m.Failed, m.Attempts = o.Failed, o.Attempts
	}
	m.Gap, m.Repair = max(m.Gap, o.Gap), max(m.Repair, o.Repair)
	m.Flows += o.Flows
	m.Repairs += o.Repairs
}

// A Test names a test.
type Test struct {
	// Package is its folder below the module's, "test/faults".
	Package string
	Name    string
}

// A line is what the file has of one measurement.
type line struct {
	Test
	Measurement
}

// Flow takes note of what one flow of a test saw.
func Flow(t testing.TB, failed, attempts int, gap time.Duration) {
	t.Helper()
	add(t, Measurement{Failed: failed, Attempts: attempts, Gap: gap, Flows: 1})
}

// Repair takes note of how long a repair took in a test.
func Repair(t testing.TB, took time.Duration) {
	t.Helper()
	add(t, Measurement{Repair: took, Repairs: 1})
}

// writing keeps the lines of a process apart; O_APPEND does so for those of several.
var writing sync.Mutex

func add(t testing.TB, m Measurement) {
	t.Helper()
	file := os.Getenv(FileEnv)
	if file == "" {
		return
	}
	if err := write(file, t.Name(), m); err != nil {
		t.Errorf("write what was measured: %v", err)
	}
}

func write(file, test string, m Measurement) (err error) {
	pkg, err := folder()
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(test, "/")
	text, err := json.Marshal(line{Test{pkg, name}, m})
	if err != nil {
		return err
	}
	writing.Lock()
	defer writing.Unlock()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Close())
}

// folder is that of the package whose test this process is, below the module's: the go command runs a test in it.
func folder() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	below := ""
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return below, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		below = path.Join(filepath.Base(dir), below)
		dir = parent
	}
}

// Read returns what is in the file, the worst of each test. A file that does not exist has nothing.
func Read(file string) (map[Test]Measurement, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[Test]Measurement{}
	for d := json.NewDecoder(f); ; {
		var l line
		err := d.Decode(&l)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		worst := all[l.Test]
		worst.Add(l.Measurement)
		all[l.Test] = worst
	}
}
