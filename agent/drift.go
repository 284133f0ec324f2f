package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// suspicions are what the watch on a family's rules has told and its Part has not looked into yet.
type suspicions struct {
	mu sync.Mutex
	// watching is true while there is a watch. Without, every Sync reads everything back.
	watching bool
	// quiet is the moment until which all that others did has been told.
	quiet   time.Time
	changes []netfilter.Change
	// open is true from a change until a Sync that looked into it has succeeded.
	open bool
}

// maxSuspicions bounds the changes that are kept; with more, anything may have changed.
const maxSuspicions = 64

func (s *suspicions) changed(c netfilter.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.changes) >= maxSuspicions {
		s.changes = nil
		c.Chains = nil
	}
	s.changes, s.open, s.watching = append(s.changes, c), true, true
}

func (s *suspicions) quietAt(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching, s.quiet = true, t
}

// lost tells that there is no watch any more.
func (s *suspicions) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching = false
}

// take returns the changes that have come since, and whether there is a watch.
func (s *suspicions) take() (changes []netfilter.Change, watching bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes, s.changes = s.changes, nil
	return changes, s.watching
}

// settle tells that what was taken has been looked into.
func (s *suspicions) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = len(s.changes) > 0
}

// standing returns until when the rules are known to be untouched, zero without a watch, and whether they are in doubt now.
func (s *suspicions) standing() (quiet time.Time, doubt bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.watching {
		return time.Time{}, s.open
	}
	return s.quiet, s.open
}

// watchRules follows what others do to the rules, and has the Parts look into it, until the context ends.
func watchRules(ctx context.Context, b *netfilter.Backend, l *loop, parts map[cluster.Family]*rulesPart) error {
	if len(parts) == 0 {
		<-ctx.Done() // no rules here
		return nil
	}
	observer := netfilter.Observer{
		Changed: func(c netfilter.Change) {
			if p := parts[c.Family]; p != nil {
				p.suspects.changed(c)
				l.kick(p.Name())
			}
		},
		Quiet: func(f cluster.Family, t time.Time) {
			if p := parts[f]; p != nil {
				p.suspects.quietAt(t)
			}
		},
	}
	for ctx.Err() == nil {
		w, err := b.OpenWatch()
		if err == nil {
			err = w.Run(ctx, observer)
		}
		for _, p := range parts {
			p.suspects.lost()
		}
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "The rules can't be watched, so every sync reads them back", "retryIn", retryWatch)
			sleep(ctx, retryWatch)
		}
	}
	return nil
}

// A finding is what others were found to have done to rules, from the first sign of it until it is repaired.
type finding struct {
	// Since is when it was noticed.
	Since time.Time
	// By is who did it, as far as that is known.
	By string
	// Audit is true when nothing but reading everything back told of it.
	Audit bool
	// Drifts are what it was.
	Drifts []iptables.Drift
}

// add joins what a watch has told; without changes it is an audit.
func (f *finding) add(changes []netfilter.Change, now time.Time) {
	if f.Since.IsZero() {
		f.Since, f.Audit = now, true
	}
	f.Audit = f.Audit && len(changes) == 0
	for _, c := range changes {
		if c.By != "" && !strings.Contains(f.By, c.By) && strings.Count(f.By, ",") < 3 {
			f.By = strings.TrimPrefix(f.By+", "+c.By, ", ")
		}
	}
}

// repaired returns what was put right, without what is left as it is.
func (f *finding) repaired() []iptables.Drift {
	return slices.DeleteFunc(slices.Clone(f.Drifts), func(d iptables.Drift) bool { return d.Left })
}

// message words what was repaired.
func (f *finding) message(family string, end time.Time) string {
	by := ""
	if f.By != "" {
		by = ", changed by " + f.By
	}
	how := ""
	if f.Audit {
		how = ", found by reading everything back"
	}
	return fmt.Sprintf("%s rules that somebody else had changed were repaired within %s%s%s: %s",
		family, end.Sub(f.Since).Round(time.Millisecond), by, how, iptables.Summarize(f.repaired()))
}

// maxAbove bounds the Notes about one built-in chain.
const maxAbove = 5

// notesAbove returns a Note for each rule of somebody else before ours.
func notesAbove(f cluster.Family, node cluster.Ref, above []netfilter.Above) (notes []cluster.Note) {
	count := map[iptables.ChainName]int{}
	for _, a := range above {
		chain := iptables.ChainName{Table: a.Table, Chain: a.Chain}
		if count[chain]++; count[chain] > maxAbove {
			continue
		}
		detail := fmt.Sprintf("%s %s %s: %q of somebody else stands before the rules of Services, and decides about packets first", f, a.Table, a.Chain, a.Rule)
		if a.Contested {
			detail += "; it came back after ours were put first again, so it is left there"
		}
		notes = append(notes, cluster.Note{Object: node, Reason: cluster.ReasonForeignRuleBefore, Detail: detail})
	}
	return notes
}
