package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fairway-net/fairway/test/lab"
)

// checkup is what fairway doctor took.
type checkup struct {
	wall, cpu sample // the processor time is its own and its children's, and the agent's meanwhile
	peak      int    // its most resident memory, in KiB
}

// examine runs fairway doctor beside a running agent, three times.
func (tr *trial) examine() error {
	if tr.contender.mode != "" {
		return nil
	}
	for range 3 {
		if err := tr.examineOnce(); err != nil {
			return fmt.Errorf("fairway doctor: %w", err)
		}
	}
	return nil
}

func (tr *trial) examineOnce() (err error) {
	m, err := newMeter()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	bin, err := lab.AgentBinary()
	if err != nil {
		return err
	}
	before, err := tr.watch.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	p, err := tr.node.Start(lab.Command{Path: bin, Args: []string{"doctor", "--control-socket=" + tr.node.ControlSocket()}, Cgroup: m.file})
	if err != nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond) // it may end soon
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-p.Exited():
			running = false
		case <-tick.C:
			if status, err := readStatus(p.PID()); err == nil {
				tr.tally.doctor.peak = max(tr.tally.doctor.peak, status["VmHWM"])
			}
		}
	}
	took := time.Since(began)
	own, err := m.cpu()
	if err != nil {
		return err
	}
	after, err := tr.watch.cpu()
	if err != nil {
		return err
	}
	// A finding is none of its failures: a lab's node is not all that it looks for.
	if state := p.State(); state != "exit status 0" && state != "exit status 1" || !strings.Contains(p.Output(), "verified") {
		return fmt.Errorf("%s: %s", state, p.Output())
	}
	tr.tally.doctor.wall.add(took)
	tr.tally.doctor.cpu.add(own + after - before)
	return nil
}
