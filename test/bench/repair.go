package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A harm is something that somebody does to the rules of nat.
type harm int

const (
	jumpDeleted  harm = iota // the jump from PREROUTING
	chainEmptied             // the chain of the moving Service
	tableFlushed             // all of nat
	harms        int  = iota
)

func (h harm) String() string {
	return [...]string{"a jump", "a Service's chain", "all of nat"}[h]
}

// repairs does all harm in turn, and waits each time until connections get to the moving Service again. kube-proxy is spared: it
// looks for some of this every half minute, and for the rest once an hour.
func (tr *trial) repairs() error {
	if tr.contender.mode != "" {
		return nil
	}
	for h := range harms {
		took, err := tr.repair(harm(h))
		if err != nil {
			return fmt.Errorf("take away %s: %w", harm(h), err)
		}
		tr.tally.repair[h].add(took)
		if err := tr.quiet(); err != nil {
			return err
		}
	}
	return tr.complete()
}

// repair does one harm, and returns the time from the end of the command that did it until connections work.
func (tr *trial) repair(h harm) (time.Duration, error) {
	tool := lab.Tool(tr.contender.backend, cluster.IPv4, "")
	var args []string
	switch h {
	case jumpDeleted:
		args = []string{"-D", "PREROUTING", "-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"}
	case chainEmptied:
		chain, err := tr.movingChain()
		if err != nil {
			return 0, err
		}
		args = []string{"-F", chain}
	case tableFlushed:
		args = []string{"-F"}
	}
	if _, err := tr.node.Run(tool, append([]string{"-w", "-t", "nat"}, args...)...); err != nil {
		return 0, err
	}
	began := time.Now()
	err := tr.ends.client.Do(func() error {
		return preferred(func() error { return tr.await(tr.front(), began.Add(followBound)) })
	})
	return time.Since(began), err
}

// movingChain is the chain of the moving Service.
func (tr *trial) movingChain() (string, error) {
	text, err := tr.node.Save(tr.contender.backend, cluster.IPv4, "nat")
	if err != nil {
		return "", err
	}
	for rule := range strings.Lines(text) {
		_, target, _ := strings.Cut(strings.TrimSpace(rule), " -j ")
		if strings.Contains(rule, " -d "+tr.front().Addr().String()+"/32 ") && strings.HasPrefix(target, "KUBE-SVC-") {
			return target, nil
		}
	}
	return "", fmt.Errorf("no rule leads to the chain of %s", tr.front())
}
