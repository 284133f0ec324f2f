package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
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
	known := map[netip.Prefix]bool{}
	for _, path := range p.announced {
		known[path.Prefix] = true
	}
	told := slices.DeleteFunc(slices.Clone(t.Draining), func(path bgp.Path) bool { return !known[path.Prefix] })
	if len(told) == 0 {
		return 0 // the agent has just started
	}
	t.Paths = slices.Concat(t.Paths, told)
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
	if p.plan != nil && p.plan.config.BGP != nil {
		notice, quiet = p.plan.config.BGP.NoticeTime, p.plan.config.BGP.QuietTime
	}
	return p.stage, notice, quiet
}

// leave takes leave of the peers: it announces everything with GRACEFUL_SHUTDOWN (RFC 8326), waits, withdraws everything, waits,
// and ends the sessions. say is told each step. Whoever comes later waits for who came first. After it the node announces
// nothing, until stay is called or the agent starts anew. A failure does not keep it from going on: the node is about to be gone.
func (p *bgpPart) leave(say func(string)) (err error) {
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
		time.Sleep(notice)
		err = errors.Join(err, p.turn(stageSilent))
		say(fmt.Sprintf("everything is withdrawn; what is under way has %s", quiet))
		time.Sleep(quiet)
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
	if len(p.speaker.Glance()) == 0 {
		return
	}
	for end := time.Now().Add(shutdownNews); !p.departs(); time.Sleep(shutdownCheck) {
		if time.Now().After(end) {
			return
		}
	}
	if err := p.leave(func(step string) { klog.InfoS("Leaving the BGP peers", "step", step) }); err != nil {
		klog.ErrorS(err, "The BGP peers may not know that the node is gone")
	}
}

// departWhen waits until the agent is told to end, and then departs; or until everything else has ended.
func (p *bgpPart) departWhen(told, ended context.Context) error {
	select {
	case <-ended.Done():
	case <-told.Done():
		p.depart()
	}
	return nil
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

// The paths of the control socket at which a node leaves its peers and comes back.
const (
	leavePath = "/bgp/leave"
	undoPath  = "/bgp/leave/undo"
)

// A leaveStep is a line of the answer to both: what was done, or what failed.
type leaveStep struct {
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
}

// hasPeers tells whether the configuration has BGP peers; also before the first Plan is made.
func (p *bgpPart) hasPeers() bool {
	p.syncing.Lock()
	defer p.syncing.Unlock()
	return p.plan == nil || p.plan.BGP != nil
}

// leaveHandler has the agent leave, or stay, and answers a line of JSON for each step when it is done. A client that does not
// wait for the end does not stop it.
func leaveHandler(p *bgpPart, kick func(part string), do func(p *bgpPart, say func(string)) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !p.hasPeers() {
			answer(w, http.StatusConflict, refusal{errNoBGP.Error()})
			return
		}
		tell := func(s leaveStep) {
			if json.NewEncoder(w).Encode(s) == nil {
				_ = http.NewResponseController(w).Flush() // it may be gone
			}
		}
		err := do(p, func(step string) {
			klog.InfoS("Leaving the BGP peers", "step", step)
			tell(leaveStep{Step: step})
		})
		if err != nil {
			klog.ErrorS(err, "The BGP peers were not left as they should be")
			tell(leaveStep{Error: err.Error()})
		}
		kick(bgpName) // for the Note
	})
}

// Leave has the agent at a control socket take leave of its BGP peers, and returns when it has; with undo it has it come back to
// them. It writes what is done. Without an agent the error is ErrNoAgent.
func Leave(ctx context.Context, socket string, undo bool, out io.Writer) error {
	path := leavePath
	if undo {
		path = undoPath
	}
	answer, err := send(ctx, socket, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer answer.Close()
	for d := json.NewDecoder(answer); ; {
		var s leaveStep
		switch err := d.Decode(&s); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("the answer of the agent at %s ends too soon, it may have ended: %w", socket, err)
		case s.Error != "":
			return errors.New(s.Error)
		}
		if _, err := fmt.Fprintln(out, s.Step); err != nil {
			return err
		}
	}
}
