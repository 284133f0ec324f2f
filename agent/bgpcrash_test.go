package agent

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"
)

// The reports are as Go 1.26 writes them.
const (
	gobgpReport = `panic: runtime error: index out of range [3] with length 3

goroutine 53 [running]:
github.com/osrg/gobgp/v3/internal/pkg/table.UpdatePathAttrs4ByteAs({0x1, 0x2}, 0x3)
	/src/internal/pkg/table/message.go:202 +0x9d1
created by github.com/osrg/gobgp/v3/pkg/server.(*fsmHandler).established in goroutine 50
	/src/pkg/server/fsm.go:1835 +0x245
`
	signalReport = `panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x18 pc=0xd06020]

goroutine 20 [running]:
github.com/osrg/gobgp/v3/pkg/server.(*BgpServer).ListPeer.func1()
	/src/pkg/server/server.go:3160 +0x11
`
	otherReport = `panic: something of ours

goroutine 1 [running]:
main.main()
	/src/cmd/fairway/main.go:20 +0x1d

goroutine 21 [select]:
github.com/osrg/gobgp/v3/pkg/server.(*BgpServer).Serve(0x1)
	/src/pkg/server/server.go:519 +0x11
`
)

func TestReadCrash(t *testing.T) {
	for _, c := range []struct {
		name, report, why string
		ofBGP             bool
	}{
		{"gobgp's", gobgpReport, "panic: runtime error: index out of range [3] with length 3", true},
		{"gobgp's, by a signal", signalReport, "panic: runtime error: invalid memory address or nil pointer dereference", true},
		{"another's", otherReport, "panic: something of ours", false},
		{"none", "", "", false},
		{"cut off", "panic: so", "panic: so", false},
	} {
		if why, ofBGP := readCrash(c.report); why != c.why || ofBGP != c.ofBGP {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, why, ofBGP, c.why, c.ofBGP)
		}
	}
}

// TestLearnOfCrash: the first crash holds nothing back, further ones longer and longer, until there was none for a while. That the
// runtime writes a report, test/faults shows.
func TestLearnOfCrash(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := debug.SetCrashOutput(nil, debug.CrashOptions{}); err != nil {
			t.Error(err)
		}
	})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	start := func(report string) time.Duration {
		t.Helper()
		if report != "" {
			if err := os.WriteFile(filepath.Join(dir, crashReport), []byte(report), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := learnOfCrash(dir, now)
		if err != nil {
			t.Fatal(err)
		}
		if (c.Count > 0) != (report == gobgpReport) {
			t.Errorf("after %.20q it knows of %d crashes", report, c.Count)
		}
		return c.pause()
	}
	for i, c := range []struct {
		report string
		want   time.Duration
	}{
		{"", 0}, {gobgpReport, 0}, {"", 0}, {gobgpReport, 20 * time.Second}, {otherReport, 0}, {gobgpReport, 200 * time.Second},
		{gobgpReport, crashMost}, {gobgpReport, crashMost},
	} {
		now = now.Add(time.Minute)
		if got := start(c.report); got != c.want {
			t.Errorf("start %d: held back for %s, want %s", i, got, c.want)
		}
	}
	now = now.Add(crashMemory + time.Minute)
	if got := start(gobgpReport); got != 0 {
		t.Errorf("a crash after a long time holds back for %s", got)
	}
	now = now.Add(-time.Hour)
	if got := start(gobgpReport); got != 0 {
		t.Errorf("a crash after the clock was set back holds back for %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, crashCount), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := start(gobgpReport); got != 0 {
		t.Errorf("a damaged count holds back for %s", got)
	}
}
