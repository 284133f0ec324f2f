package bgp

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A TaintMatch takes the taints with its Key, and with its Value and Effect where they are given.
type TaintMatch struct {
	Key, Value, Effect string
}

// idle are taints that Kubernetes puts on nodes itself, and why none of them makes a node drain.
var idle = map[string]string{
	"node.kubernetes.io/unschedulable": "is what a cordon sets, and a cordoned node goes on serving",
	"node.kubernetes.io/not-ready":     "tells of the kubelet, not of what the node forwards",
	"node.kubernetes.io/unreachable":   "is on every node when the API server has lost its network, and all would withdraw their addresses at once",
}

// effects are those that a taint can have.
var effects = []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}

// qualified is the form of the key of a label or taint: a name, with a DNS subdomain before it or without.
var qualified = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)

// ParseTaint reads key[=value][:effect]. The error says what would be right.
func ParseTaint(text string) (m TaintMatch, err error) {
	rest, effect, hasEffect := strings.Cut(text, ":")
	m.Effect = effect
	m.Key, m.Value, _ = strings.Cut(rest, "=")
	why := idle[m.Key]
	switch {
	case !qualified.MatchString(m.Key):
		return m, fmt.Errorf("%q is no taint, expected key, key=value, key:effect or key=value:effect", text)
	case hasEffect && !slices.Contains(effects, effect):
		return m, fmt.Errorf("%q has the effect %q, expected one of %s, or none for all of them", text, effect, strings.Join(effects, ", "))
	case why != "":
		return m, fmt.Errorf("%s %s; expected a taint that somebody puts on a node to be left alone, or the annotation fairway.dev/drain", m.Key, why)
	}
	return m, nil
}

func (m TaintMatch) takes(t cluster.Taint) bool {
	return m.Key == t.Key && (m.Value == "" || m.Value == t.Value) && (m.Effect == "" || m.Effect == t.Effect)
}

// draining tells why the node draws no traffic to Services; empty when it does. That a machine is shutting down is true of it
// until it is off: a saved Snapshot is of the time before.
func (p *planner) draining(saved bool) string {
	if p.node.ShuttingDown && !saved {
		return "its kubelet says that the node is shutting down"
	}
	if p.node.Drain {
		return "it has the annotation fairway.dev/drain"
	}
	for _, t := range p.node.Taints {
		if slices.ContainsFunc(p.config.DrainTaints, func(m TaintMatch) bool { return m.takes(t) }) {
			return "it has the taint " + t.String() + " (bgp.drainOnTaints)"
		}
	}
	return ""
}

// gracefulShutdown is the community by which a router learns that a path is about to go (RFC 8326).
var gracefulShutdown = wellKnown["graceful-shutdown"]

// Leaving returns paths as they are announced before they are withdrawn: with GRACEFUL_SHUTDOWN, and for iBGP peers with the
// least LOCAL_PREF, so that routers turn to others while these are still good.
func Leaving(paths []Path) []Path {
	leaving := slices.Clone(paths)
	made := map[*Attributes]*Attributes{} // paths share theirs
	for i, p := range paths {
		a := made[p.Attributes]
		if a == nil {
			copied := *p.Attributes
			a = &copied
			a.LocalPref = 0
			if !slices.Contains(a.Communities, gracefulShutdown) {
				a.Communities = append(slices.Clip(a.Communities), gracefulShutdown)
			}
			made[p.Attributes] = a
		}
		leaving[i].Attributes = a
	}
	return leaving
}
