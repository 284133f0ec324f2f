package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// T is the part of *testing.T that this package uses, so that the demo does not link package testing.
type T interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// M is *testing.M.
type M interface{ Run() int }

// RequireEnv is the environment variable that, set to "require", turns skipping for want of root into failing.
const RequireEnv = "FAIRWAY_LAB"

// Check tells why no Lab can be built here; nil when one can.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root, for network namespaces")
	}
	for _, b := range Backends {
		for _, tool := range []string{"iptables-" + string(b), "ip6tables-" + string(b)} {
			if _, err := exec.LookPath(tool); err != nil {
				return fmt.Errorf("the lab needs %s, of Debian's package iptables: %w", tool, err)
			}
		}
	}
	return nil
}

// Require skips the test with the reason when no Lab can be built here, or fails it when FAIRWAY_LAB=require.
func Require(t T) {
	t.Helper()
	err := Check()
	switch {
	case err == nil:
	case os.Getenv(RequireEnv) == "require":
		t.Fatalf("%s=require: %v", RequireEnv, err)
	default:
		t.Skipf("%v", err)
	}
}

// ForTest builds a Lab for a test and closes it when the test ends, however it ends. When the test has failed, what the
// agents wrote becomes part of its log.
func ForTest(t T, topology Topology) *Lab {
	t.Helper()
	Require(t)
	l, err := New(topology, Options{CloseOnSignal: true})
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		err := l.Close()
		if t.Failed() {
			for _, a := range l.Agents() {
				t.Logf("agent on %s (%s):\n%s", a.Node.Name, a.State(), a.Output())
			}
		}
		if err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// Main runs a package's tests and removes the agent's binary afterwards. Use it in TestMain: os.Exit(lab.Main(m)).
func Main(m M) int {
	defer os.RemoveAll(binDir())
	return m.Run()
}

// binDir is this process's folder for the agent's binary.
func binDir() string { return filepath.Join(os.TempDir(), fmt.Sprintf("fw%d-bin", os.Getpid())) }
