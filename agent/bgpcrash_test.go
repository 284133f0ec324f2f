package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp/process"
)

// TestCrashes: the first crash of the BGP process holds nothing back, further ones longer and longer, until there was none for a while.
// Each is told.
func TestCrashes(t *testing.T) {
	p := newBGPPart("n1", nil, process.New(process.Options{}))
	node := cluster.Ref{Kind: "Node", Name: "n1"}
	now := time.Now()
	for i, c := range []struct{ after, want time.Duration }{
		{0, 0}, {time.Minute, 20 * time.Second}, {time.Minute, 200 * time.Second}, {time.Hour, crashMost}, {crashMemory, crashMost},
		{crashMemory + time.Second, 0}, {time.Second, 20 * time.Second},
	} {
		now = now.Add(c.after)
		told := ""
		p.crashed(process.End{PID: 4711, Why: "panic: so"}, func(about cluster.Ref, eventType, reason, message string) {
			told = strings.Join([]string{about.Name, eventType, reason, message}, " ")
		}, node, now)
		if want := "n1 Warning BGPCrashed the BGP process has ended (panic: so) and is begun again in " + c.want.String(); !strings.HasPrefix(told, want) {
			t.Errorf("crash %d is told by %q, expected %q", i, told, want)
		}
		crashes, wait := p.held(now)
		if wait != c.want {
			t.Errorf("crash %d holds back for %s, expected %s", i, wait, c.want)
		}
		if _, wait := p.held(now.Add(c.want)); wait > 0 {
			t.Errorf("crash %d holds back for %s longer", i, wait)
		}
		if detail := crashes.note(node).Detail; !strings.Contains(detail, "(panic: so)") || !strings.Contains(detail, c.want.String()) {
			t.Errorf("crash %d has the Note %q", i, detail)
		}
	}
}

// TestForgetReports: what an earlier version left is removed, and nothing else; nothing to remove is no fault.
func TestForgetReports(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"crash.txt", "bgp-crashes.json", "snapshot"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		forgetReports(dir)
	}
	forgetReports("")
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "snapshot" {
		t.Errorf("left are %v, %v", left, err)
	}
}
