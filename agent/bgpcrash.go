package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A panic of gobgp ends the agent: it comes in goroutines of gobgp's own, where nobody can recover it. Rules and routes stay, and the
// next agent goes on with them; but a router that sends what caused it again would have Kubernetes start the agent less and less
// often, and no Service would follow its endpoints meanwhile. So the agent knows from the report of the crash whether gobgp was to
// blame, and if that happens again and again it begins with BGP later and later, and with everything else at once.

const (
	// crashReport is where the runtime writes what it says of a crash, besides standard error; crashCount has a bgpCrashes.
	crashReport = "crash.txt"
	crashCount  = "bgp-crashes.json"
	// A crash that comes crashMemory after the one before is the first one again.
	crashMemory = 2 * time.Hour
	// The second crash holds BGP back for crashPause, and each further one crashGrowth times as long as the one before, up to crashMost.
	// That is more than the ten minutes after which Kubernetes forgets that a container has crashed; the fewer crashes it takes to
	// get there, the less time the agent spends in CrashLoopBackOff.
	crashPause  = 20 * time.Second
	crashGrowth = 10
	crashMost   = 15 * time.Minute
)

// bgpCrashes are the crashes of gobgp that came soon one after the other.
type bgpCrashes struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
	// Why is the first line of the last one's report.
	Why string `json:"why"`
}

// after is what is known after another crash.
func (c bgpCrashes) after(why string, now time.Time) bgpCrashes {
	if since := now.Sub(c.Last); since > crashMemory || since < 0 { // or the clock was set back
		c.Count = 0
	}
	return bgpCrashes{Count: c.Count + 1, Last: now, Why: why}
}

// pause is how long BGP is held back when the agent starts after a crash: not at all after the first.
func (c bgpCrashes) pause() time.Duration {
	if c.Count < 2 {
		return 0
	}
	pause := crashPause
	for range c.Count - 2 {
		pause = min(crashGrowth*pause, crashMost)
	}
	return pause
}

// readCrash looks for gobgp in the report of a crash: in the goroutine that panicked, which comes first. why is the report's
// first line.
func readCrash(report string) (why string, ofBGP bool) {
	why, _, _ = strings.Cut(report, "\n")
	_, rest, _ := strings.Cut(report, "\ngoroutine ")
	culprit, _, _ := strings.Cut(rest, "\n\n")
	return why, strings.Contains(culprit, "github.com/osrg/gobgp")
}

// learnOfCrash reads why the agent before this one ended, if it crashed, and has the report of this one's crash written to the
// same place. It returns what there is to know when gobgp crashed, else the zero bgpCrashes.
func learnOfCrash(dir string, now time.Time) (bgpCrashes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return bgpCrashes{}, err
	}
	path := filepath.Join(dir, crashReport)
	report, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return bgpCrashes{}, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return bgpCrashes{}, err
	}
	defer f.Close() // the runtime has a duplicate
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return bgpCrashes{}, err
	}
	why, ofBGP := readCrash(string(report))
	if !ofBGP {
		return bgpCrashes{}, nil
	}
	crashes := readCrashes(dir).after(why, now)
	text, err := json.Marshal(crashes)
	if err != nil {
		return crashes, err
	}
	return crashes, os.WriteFile(filepath.Join(dir, crashCount), text, 0o600)
}

// readCrashes reads what earlier agents counted. What can't be read is nothing: the worst that comes of it is a shorter pause.
func readCrashes(dir string) (c bgpCrashes) {
	text, err := os.ReadFile(filepath.Join(dir, crashCount))
	if err == nil && json.Unmarshal(text, &c) != nil {
		return bgpCrashes{}
	}
	return c
}

// holdBack has the Part wait after crashes of gobgp. Without a directory of its own the agent knows of none.
func (p *bgpPart) holdBack(stateDir string) {
	if stateDir == "" {
		return
	}
	crashes, err := learnOfCrash(stateDir, time.Now())
	if err != nil {
		klog.ErrorS(err, "Crashes of BGP can't be counted", "dir", stateDir)
	}
	if crashes.Count == 0 {
		return
	}
	p.crashes, p.heldUntil = crashes, time.Now().Add(crashes.pause())
	klog.InfoS("The agent before this one was ended by BGP", "crashes", crashes.Count, "panic", crashes.Why, "heldBackFor", crashes.pause())
}

// note tells why there are no sessions yet.
func (c bgpCrashes) note(node cluster.Ref) cluster.Note {
	return cluster.Note{Object: node, Reason: cluster.ReasonBGPHeldBack,
		Detail: fmt.Sprintf("BGP has ended the agent %d times (%s), so it begins %s after the agent's start; right would be a BGP peer that does not send what caused it.",
			c.Count, c.Why, c.pause())}
}
