package netfilter

import (
	"maps"
	"sync"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// ownWrites are the chains that were written since they were last found to be as they should, for a watch that only sees that
// something changed. Its zero value is ready, and remembers nothing until keep.
type ownWrites struct {
	mu     sync.Mutex
	on     bool
	chains map[cluster.Family]map[iptables.ChainName]*ownWrite
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
}

// begin records a write that is about to start.
func (w *ownWrites) begin(f cluster.Family, touched map[iptables.ChainName]int) (begun []*ownWrite) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return nil
	}
	of := w.chains[f]
	if of == nil {
		of = map[iptables.ChainName]*ownWrite{}
		w.chains[f] = of
	}
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
func (w *ownWrites) end(begun []*ownWrite, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
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
