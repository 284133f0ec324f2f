package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// A stage is how far a node is that takes leave of its BGP peers.
type stage uint8

// The stages, in their order.
const (
	// stageHere: the node announces what is planned.
	stageHere stage = iota
	// stageLeaving: what is announced will go soon, and says so.
	stageLeaving
	// stageSilent: all is withdrawn. What is under way to the node still gets through.
	stageSilent
	// stageGone: there are no sessions.
	stageGone
)

// paths returns those that are announced of the planned ones.
func (s stage) paths(planned []bgp.Path) []bgp.Path {
	switch s {
	case stageHere:
		return planned
	case stageLeaving:
		return bgp.Leaving(planned)
	}
	return nil
}

// drain adds to a Table what a draining node has announced until now, for as long as the peers are to have notice, and returns
// how long that still is; 0 when there is nothing to wait for. It is called with syncing held.
func (p *bgpPart) drain(t *bgp.Table, notice time.Duration, now time.Time) time.Duration {
	if len(t.Draining) == 0 {
		p.draining = time.Time{}
		return 0
	}
	if p.draining.IsZero() {
		p.draining = now
	}
	left := notice - now.Sub(p.draining)
	if left <= 0 {
		return 0
	}
	before := len(t.Paths)
	for _, path := range t.Draining {
		if slices.ContainsFunc(p.announced, func(a bgp.Path) bool { return a.Prefix == path.Prefix }) {
			t.Paths = append(t.Paths, path)
		}
	}
	if len(t.Paths) == before {
		return 0 // no peer knows of them: the agent has just started
	}
	bgp.SortPaths(t.Paths)
	return left
}

// turn sets the stage and has the peers told.
func (p *bgpPart) turn(s stage) error {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	p.stage = s
	if p.plan == nil {
		return nil // there is no session yet; the first Sync knows
	}
	_, err := p.sync()
	return err
}

// at is the stage, and how long its steps take.
func (p *bgpPart) at() (s stage, notice, quiet time.Duration) {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	if p.plan != nil {
		notice, quiet = p.plan.config.BGP.NoticeTime, p.plan.config.BGP.QuietTime
	}
	return p.stage, notice, quiet
}

// leave takes leave of the peers: it announces everything with GRACEFUL_SHUTDOWN (RFC 8326), waits, withdraws everything, waits,
// and ends the sessions. say is told each step. Whoever comes later waits for who came first. After it the node announces
// nothing, until stay is called or the agent starts anew. A failure does not keep it from going on: the node is about to be gone.
func (p *bgpPart) leave(ctx context.Context, say func(string)) (err error) {
	p.departing.Lock()
	defer p.departing.Unlock()
	s, notice, quiet := p.at()
	if s == stageGone {
		say("the node has left its peers already")
		return nil
	}
	up := 0
	for _, session := range p.speaker.Sessions() {
		if session.Up() {
			up++
		}
	}
	if up > 0 {
		err = p.turn(stageLeaving)
		say(fmt.Sprintf("everything is announced with GRACEFUL_SHUTDOWN in %d sessions; the routers have %s to turn to others", up, notice))
		sleep(ctx, notice)
		err = errors.Join(err, p.turn(stageSilent))
		say(fmt.Sprintf("everything is withdrawn; what is under way has %s", quiet))
		sleep(ctx, quiet)
	}
	err = errors.Join(err, p.turn(stageGone))
	ended, leaveErr := p.speaker.Leave(goodbye)
	say(fmt.Sprintf("%d sessions are ended; the node announces nothing until the agent is restarted, or fairway leave --undo", ended))
	return errors.Join(err, leaveErr)
}

const (
	// shutdownNews is how long an agent that is told to end waits to hear that the whole node is. The kubelet says so when it
	// begins, but that has to come by way of the API.
	shutdownNews  = 500 * time.Millisecond
	shutdownCheck = 50 * time.Millisecond
)

// depart is called when the agent is told to end. Where the node is shutting down, or is leaving its peers anyway, it takes leave of
// them; else there will be another agent soon.
func (p *bgpPart) depart() {
	if len(p.speaker.Sessions()) == 0 {
		return
	}
	for end := time.Now().Add(shutdownNews); !p.departs(); time.Sleep(shutdownCheck) {
		if time.Now().After(end) {
			return
		}
	}
	if err := p.leave(context.Background(), func(step string) { klog.InfoS("Leaving the BGP peers", "step", step) }); err != nil {
		klog.ErrorS(err, "The BGP peers may not know that the node is gone")
	}
}

// departs tells whether the end of the agent is the node's, too.
func (p *bgpPart) departs() bool {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	if p.stage != stageHere || p.plan == nil {
		return p.stage != stageHere
	}
	n := p.plan.Snapshot.Node(p.nodeName)
	return n != nil && n.ShuttingDown && !p.plan.Stale()
}

// stay takes a leave back: the sessions begin anew, with what is planned.
func (p *bgpPart) stay(say func(string)) error {
	p.departing.Lock()
	defer p.departing.Unlock()
	if s, _, _ := p.at(); s == stageHere {
		say("the node has not left its peers")
		return nil
	}
	err := p.turn(stageHere)
	say("the sessions begin anew")
	return err
}

// leftNote tells of a node that has left.
func leftNote(node cluster.Ref) cluster.Note {
	return cluster.Note{Object: node, Reason: cluster.ReasonBGPLeft,
		Detail: "The node has left its BGP peers (fairway leave), and announces nothing; fairway leave --undo, or a restart of the agent, brings it back."}
}
