package faults

import (
	"fmt"
	"strings"
	"time"

	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/measured"
)

// A monitor collects what the kernel tells of changes to links, addresses and routes of a node, with the time of each.
type monitor struct {
	*rig
	node    *lab.Node
	process *lab.Process
	// skip is how many lines are not about what happened since the monitor was made.
	skip int
}

// An event is one change.
type event struct {
	at time.Time
	// text is the change as ip prints it, "[ROUTE]Deleted 10.200.2.0/24 via …".
	text string
}

// deleted reports that a route went, ours that the route, whether it came, changed or went, is one of ours.
func (e event) deleted() bool { return strings.HasPrefix(e.text, "[ROUTE]Deleted ") }
func (e event) ours() bool {
	return strings.HasPrefix(e.text, "[ROUTE]") && strings.Contains(e.text, " proto 102 ")
}

// marker is a route that nobody wants. Its comings and goings tell that all that happened before has been collected.
const marker = "198.18.255.255"

// monitor starts to collect.
func (r *rig) monitor(n *lab.Node) *monitor {
	r.Helper()
	p, err := n.Start(lab.Command{Path: "ip", Args: strings.Fields("-Numeric -oneline -timestamp -tshort monitor label link address route")})
	r.ok(err)
	m := &monitor{rig: r, node: n, process: p}
	r.eventually(startBound, func() error { // until it is subscribed
		m.mark()
		if !strings.Contains(p.Output(), marker) {
			return fmt.Errorf("ip monitor tells nothing: %s", p.Output())
		}
		return nil
	})
	m.skip = m.drain()
	return m
}

func (m *monitor) mark() {
	m.Helper()
	m.ip(m.node, "route add blackhole "+marker+" proto 77", "route del blackhole "+marker+" proto 77")
}

// drain waits until everything that has happened is collected, and returns the number of lines.
func (m *monitor) drain() int {
	m.Helper()
	before := strings.Count(m.process.Output(), marker)
	m.mark()
	lines := 0
	m.eventually(startBound, func() error {
		out := m.process.Output()
		lines = strings.Count(out, "\n")
		if strings.Count(out, marker) < before+2 || !strings.HasSuffix(out, "\n") {
			return fmt.Errorf("ip monitor has not told of the marker: it is %s", m.process.State())
		}
		return nil
	})
	return lines
}

// events returns what happened on the node since it was made.
func (m *monitor) events() []event {
	m.Helper()
	m.drain()
	var all []event
	for i, line := range strings.Split(m.process.Output(), "\n") {
		// Without a stamp it is a complaint of ip itself, about links whose other end has just gone elsewhere.
		if i < m.skip || !strings.HasPrefix(line, "[") || strings.Contains(line, marker) {
			continue
		}
		stamp, text, _ := strings.Cut(strings.TrimPrefix(line, "["), "] ")
		at, err := time.ParseInLocation("2006-01-02T15:04:05.999999", stamp, time.Local)
		m.ok(err)
		all = append(all, event{at, text})
	}
	return all
}

// unchanged fails the test when a route of ours was written or any deleted.
func (m *monitor) unchanged() {
	m.Helper()
	for _, e := range m.events() {
		if e.ours() || e.deleted() {
			m.Errorf("at %s: %s", e.at.Format(time.StampMicro), e.text)
		}
	}
}

// repair waits until the node's routes are as expected and returns the time from the fault until the kernel told of
// the last change to a route of ours.
func (m *monitor) repair(fault time.Time) time.Duration {
	m.Helper()
	m.eventually(eventBound, func() error { return m.exact(m.node) })
	last := fault
	for _, e := range m.events() {
		if e.ours() && e.at.After(last) {
			last = e.at
		}
	}
	return last.Sub(fault)
}

// first returns the time of the first event since then that contains a text.
func (m *monitor) first(since time.Time, text string) time.Time {
	m.Helper()
	for _, e := range m.events() {
		if !e.at.Before(since) && strings.Contains(e.text, text) {
			return e.at
		}
	}
	m.Fatalf("the kernel told of no %q", text)
	return time.Time{}
}

// measured prints how long a repair took, and fails the test when it cannot have come from an event.
func (r *rig) measured(what string, took, target time.Duration) {
	r.Helper()
	r.Logf("%s: repaired after %.1f ms (target %s)", what, float64(took.Microseconds())/1000, target)
	measured.Repair(r.T, took)
	if took > eventBound {
		r.Errorf("%s: repaired after %s: that was no event", what, took)
	}
}
