package e2e

import (
	"strings"
	"sync"
	"testing"

	"github.com/fairway-net/fairway/test/lab"
)

// logs is the output of all processes of a test. When the test has failed, the end of each becomes part of its log.
type logs struct {
	mu        sync.Mutex // guards processes
	processes []named
}

type named struct {
	name string
	*lab.Process
}

func newLogs(t *testing.T) *logs {
	l := &logs{}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range l.processes {
				out := p.Output()
				t.Logf("%s (%s):\n%s", p.name, p.State(), out[max(0, len(out)-10000):])
			}
		}
	})
	return l
}

// start starts a command in a namespace, to be ended with the lab.
func (l *logs) start(name string, ns *lab.Namespace, c lab.Command) (*lab.Process, error) {
	p, err := ns.Start(c)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.processes = append(l.processes, named{name, p})
	return p, nil
}

// mustStart is start whose failure is the test's.
func (l *logs) mustStart(tb testing.TB, name string, ns *lab.Namespace, env []string, path string, args ...string) *lab.Process {
	tb.Helper()
	p, err := l.start(name, ns, lab.Command{Path: path, Args: args, Env: env})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// of returns the output of all processes with a name.
func (l *logs) of(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out strings.Builder
	for _, p := range l.processes {
		if p.name == name {
			out.WriteString(p.Output())
		}
	}
	return out.String()
}
