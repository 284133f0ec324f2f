package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// meshNames are the names of the nodes that are peers, by address.
func meshNames(peers []bgp.Peer) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	for _, p := range peers {
		if p.Node != "" {
			names[p.Address] = p.Node
		}
	}
	return names
}

// meshNotes tells of the sessions with other nodes that are not as they should be, all of one kind in one Note: a reflector has thousands.
func meshNotes(sessions []speaker.Session, node cluster.Ref, now time.Time) (notes []cluster.Note, retry time.Duration) {
	type kind struct{ reason, format string }
	var (
		unread     = kind{cluster.ReasonBGPPasswordMissing, "The password of bgp.mesh can't be read any more, and the sessions with %s go on with the one that they have: %s."}
		locked     = kind{cluster.ReasonBGPPasswordMissing, "There is no session with %s (bgp.mesh): %s."}
		tooMany    = kind{cluster.ReasonBGPTooManyPrefixes, "More prefixes of a family than maxPrefixes of bgp.mesh came from %s; the session is ended, and tried again after %s."}
		down       = kind{cluster.ReasonBGPSessionDown, "The session with %s (bgp.mesh) is down: %s."}
		noGraceful = kind{cluster.ReasonBGPNoGracefulRestart, "Reflectors do not keep this node's routes while the agent is restarted: %s; right would be one gracefulRestart in bgp.mesh for all nodes%s."}
	)
	names, detail := map[kind][]string{}, map[kind]string{}
	add := func(k kind, s speaker.Session, text string) {
		if names[k] == nil {
			detail[k] = text
		}
		names[k] = append(names[k], s.Peer.Node)
	}
	again := func(in time.Duration) { retry = soonest(retry, in) }
	for _, s := range sessions {
		if s.PasswordError != "" {
			add(unread, s, s.PasswordError)
		}
		wait := sessionPatience - now.Sub(s.Since)
		switch {
		case s.Locked():
			add(locked, s, s.LastError)
			again(sessionPatience)
		case s.TooMany:
			add(tooMany, s, speaker.Pardon.String())
			again(max(speaker.Pardon-now.Sub(s.Since), 0) + time.Second)
		case !s.Up() && !s.BeenUp && wait > 0:
			again(wait)
		case !s.Up():
			add(down, s, defaultTo(s.LastError, "no answer"))
		case s.Peer.RestartTime > 0 && !s.GracefulRestart:
			add(noGraceful, s, "")
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(names), func(a, b kind) int { return strings.Compare(a.format, b.format) }) {
		notes = append(notes, cluster.Note{Object: node, Reason: k.reason, Detail: fmt.Sprintf(k.format, bgp.FewNodes(names[k]), detail[k])})
	}
	return notes, retry
}

// meshCount is what is counted of the sessions with nodes.
type meshCount struct {
	byState  map[string]int
	received [2]int
}

// countMesh counts the sessions with nodes, and returns the others: a reflector has thousands, of which each would have metrics of its own.
func countMesh(sessions []speaker.Session) (mesh meshCount, others []speaker.Session) {
	mesh.byState = map[string]int{}
	for _, s := range sessions {
		if s.Peer.Node == "" {
			others = append(others, s)
			continue
		}
		mesh.byState[s.State]++
		for i := range mesh.received {
			mesh.received[i] += s.Received[i]
		}
	}
	return mesh, others
}
