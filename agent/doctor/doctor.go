package doctor

import (
	"fmt"
	"strings"
	"time"
)

// A Level is how bad a Finding is.
type Level string

// The levels. Unknown is what could not be told.
const (
	OK      Level = "ok"
	Warn    Level = "warn"
	Fail    Level = "FAIL"
	Unknown Level = "unknown"
)

// A Source is where what was seen comes from.
type Source string

// The sources.
const (
	FromAgent  Source = "agent"
	FromKernel Source = "kernel"
	FromFile   Source = "file"
)

// A Finding is what a check has found.
type Finding struct {
	Level Level `json:"level"`
	// Name is that of the check. It is stable; of several Findings it may be the same.
	Name string `json:"name"`
	// Saw is one line.
	Saw    string `json:"saw"`
	Source Source `json:"source"`
	// Do is the next action; empty when all is well.
	Do string `json:"do,omitempty"`
}

// A Report is what was found on a node.
type Report struct {
	// Node is the agent's name for it, empty when no agent answers.
	Node     string    `json:"node,omitempty"`
	Time     time.Time `json:"time"`
	Findings []Finding `json:"findings"`
}

// checks are in the order in which they are shown.
var checks = []func(*Facts) []Finding{
	checkAgent, checkAPI, checkRepairs, checkAbove, checkForward, checkOtherProxies, checkRouteOwner, checkSysctls, checkConntrack, checkOverlap, checkBGP, checkNotes,
}

// Examine judges the Facts.
func Examine(f *Facts) Report {
	r := Report{Time: f.Now, Findings: []Finding{}}
	if f.Agent != nil {
		r.Node = f.Agent.Node
	}
	for _, check := range checks {
		r.Findings = append(r.Findings, check(f)...)
	}
	return r
}

// count counts the Findings of a Level.
func (r Report) count(l Level) (n int) {
	for _, f := range r.Findings {
		if f.Level == l {
			n++
		}
	}
	return n
}

// ExitCode is 0 when all is well, warnings allowed; 1 when something is wrong; 2 when nothing was found wrong, but something could not be
// told.
func (r Report) ExitCode() int {
	switch {
	case r.count(Fail) > 0:
		return 1
	case r.count(Unknown) > 0:
		return 2
	}
	return 0
}

// Counts says how many Findings are not ok.
func (r Report) Counts() string {
	var parts []string
	for _, l := range []Level{Fail, Unknown, Warn} {
		if n := r.count(l); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, l))
		}
	}
	return strings.Join(parts, ", ")
}

// ago is how long before now something was.
func ago(now, then time.Time) string { return span(now, then) + " ago" }

// span is the time between then and now, as precise as people want it.
func span(now, then time.Time) string {
	switch d := max(0, now.Sub(then)); {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%d days", d/day)
	}
}

// few is a list with its first elements only.
func few(list []string) string {
	const most = 3
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// plural is a number with its noun.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// deletion is the command that deletes a rule.
func (r Rules) deletion(rule Rule) string {
	return fmt.Sprintf("%s -t %s -D %s", r.Command, rule.Table, strings.TrimPrefix(rule.Text, "-A "))
}
