package netfilter

import (
	"maps"
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// ownWrites are the chains that were written since they were last found to be as they should, and when rules were read, for a watch that
// only sees that something changed. Its zero value is ready, and remembers nothing until keep.
type ownWrites struct {
	mu     sync.Mutex
	on     bool
	chains map[cluster.Family]map[iptables.ChainName]*ownWrite
	// running counts the writes that have not ended, of all families; ended is when the last one did, by family.
	running int
	ended   map[cluster.Family]time.Time
	// read is when the rules of a family were last read, successfully or not.
	read map[cluster.Family]time.Time
}

// An ownWrite is what becomes of a chain.
type ownWrite struct {
	// rules counts the chain's rules after it, see iptables.Restore.Touched.
	rules int
	// running counts the writes that have not ended; ended is when the last one did.
	running int
	ended   time.Time
}

// keep begins to remember.
func (w *ownWrites) keep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.chains = true, map[cluster.Family]map[iptables.ChainName]*ownWrite{}
	w.ended, w.read = map[cluster.Family]time.Time{}, map[cluster.Family]time.Time{}
}

// reading records that the rules of a family have been read.
func (w *ownWrites) reading(f cluster.Family) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.on {
		w.read[f] = time.Now()
	}
}

// readSince tells whether the rules of a family were read after a moment.
func (w *ownWrites) readSince(f cluster.Family, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read[f].After(at)
}

// echo is for how long after a write of ours its traces may still come.
const echo = 50 * time.Millisecond

// heard tells whether what is heard at a moment may be a write of ours.
func (w *ownWrites) heard(at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ended := range w.ended {
		if at.Sub(ended) < echo {
			return true
		}
	}
	return w.running > 0
}

// since tells whether a family was written after a moment, or is being written.
func (w *ownWrites) since(f cluster.Family, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running > 0 || w.ended[f].After(at)
}

// begin records a write that is about to start. What it returns, nil when nothing is remembered, is for end.
func (w *ownWrites) begin(f cluster.Family, touched map[iptables.ChainName]int) (begun []*ownWrite) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return nil
	}
	w.running++
	of := w.chains[f]
	if of == nil {
		of = map[iptables.ChainName]*ownWrite{}
		w.chains[f] = of
	}
	begun = make([]*ownWrite, 0, len(touched))
	for name, rules := range touched {
		c := of[name]
		if c == nil {
			c = &ownWrite{}
			of[name] = c
		}
		c.rules = rules
		c.running++
		begun = append(begun, c)
	}
	return begun
}

// end records how the write ended.
func (w *ownWrites) end(f cluster.Family, begun []*ownWrite, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if begun == nil {
		return
	}
	w.running--
	w.ended[f] = time.Now()
	for _, c := range begun {
		c.running--
		c.ended = time.Now()
		if err != nil {
			c.rules = iptables.Uncounted
		}
	}
}

// take returns what was written of a family, and forgets what was so before a moment: its result is what is there at that moment.
func (w *ownWrites) take(f cluster.Family, before time.Time) map[iptables.ChainName]ownWrite {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make(map[iptables.ChainName]ownWrite, len(w.chains[f]))
	for name, c := range w.chains[f] {
		list[name] = *c
	}
	maps.DeleteFunc(w.chains[f], func(_ iptables.ChainName, c *ownWrite) bool { return c.settled(before) })
	return list
}

// settled tells whether what was written is what was there at a moment, if nobody else wrote.
func (c *ownWrite) settled(at time.Time) bool { return c.running == 0 && c.ended.Before(at) }
