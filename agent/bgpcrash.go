package agent

import (
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp/process"
)

// The BGP process may end without being asked: gobgp panics at some messages, or the kernel wants its memory. The next one has its
// sessions back in a second or two. But where a router sends again what caused it, sessions would come and go all the time, and with
// them what the routers do with the node's routes; so if that happens again and again, BGP begins later and later.

const (
	// A crash that comes crashMemory after the one before is the first one again.
	crashMemory = 2 * time.Hour
	// The second crash holds BGP back for crashPause, and each further one crashGrowth times as long as the one before, up to crashMost.
	crashPause  = 20 * time.Second
	crashGrowth = 10
	crashMost   = 15 * time.Minute
)

// eventCrashed is the reason of the Event that says that the BGP process has ended.
const eventCrashed = "BGPCrashed"

// bgpCrashes are the crashes of the BGP process that came soon one after the other.
type bgpCrashes struct {
	count int
	last  time.Time
	why   string // of the last one
}

// after is what is known after another crash.
func (c bgpCrashes) after(why string, now time.Time) bgpCrashes {
	if now.Sub(c.last) > crashMemory {
		c.count = 0
	}
	return bgpCrashes{count: c.count + 1, last: now, why: why}
}

// pause is how long BGP is held back: not at all after the first.
func (c bgpCrashes) pause() time.Duration {
	if c.count < 2 {
		return 0
	}
	pause := crashPause
	for range c.count - 2 {
		pause = min(crashGrowth*pause, crashMost)
	}
	return pause
}

// note tells why there are no sessions yet.
func (c bgpCrashes) note(node cluster.Ref) cluster.Note {
	return cluster.Note{Object: node, Reason: cluster.ReasonBGPHeldBack,
		Detail: fmt.Sprintf("The BGP process has crashed %d times (%s), so it is begun again %s after the last time; right would be a BGP peer that does not send what caused it.",
			c.count, c.why, c.pause())}
}

// crashed takes note of a crash of the BGP process, and tells the log and the Node.
func (p *bgpPart) crashed(e process.End, event func(about cluster.Ref, eventType, reason, message string), node cluster.Ref, now time.Time) {
	p.mu.Lock()
	p.crashes = p.crashes.after(e.Why, now)
	pause := p.crashes.pause()
	p.heldUntil = now.Add(pause)
	p.mu.Unlock()
	klog.InfoS("The BGP process has ended", "pid", e.PID, "why", e.Why, "heldBackFor", pause)
	event(node, "Warning", eventCrashed, fmt.Sprintf("the BGP process has ended (%s) and is begun again in %s; services and routes go on", e.Why, pause))
}

// held returns for how long BGP is held back, and for what.
func (p *bgpPart) held(now time.Time) (bgpCrashes, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crashes, p.heldUntil.Sub(now)
}
