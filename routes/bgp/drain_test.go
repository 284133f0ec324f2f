package bgp

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// TestDraining: what makes a node drain, and what does not. A draining node announces its pods as ever; what it would announce of
// Services is there, to be announced with notice.
func TestDraining(t *testing.T) {
	maintained := cluster.Taint{Key: "maintenance", Value: "disk", Effect: "NoExecute"}
	cordoned := cluster.Taint{Key: "node.kubernetes.io/unschedulable", Effect: "NoSchedule"}
	for _, c := range []struct {
		name   string
		node   func(*cluster.Node)
		taints []string
		saved  bool
		why    string
	}{
		{name: "nothing", node: func(*cluster.Node) {}, taints: []string{"maintenance"}},
		{name: "the annotation", node: func(n *cluster.Node) { n.Drain = true }, why: "it has the annotation fairway.dev/drain"},
		{name: "a saved annotation", node: func(n *cluster.Node) { n.Drain = true }, saved: true, why: "it has the annotation fairway.dev/drain"},
		{name: "shutting down", node: func(n *cluster.Node) { n.ShuttingDown = true }, why: "its kubelet says that the node is shutting down"},
		{name: "it was shutting down before it was off", node: func(n *cluster.Node) { n.ShuttingDown = true }, saved: true},
		{name: "a cordon", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{cordoned} }, taints: []string{"maintenance"}},
		{name: "a taint that nobody asked for", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{maintained} }},
		{name: "its key", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{cordoned, maintained} }, taints: []string{"other", "maintenance"}, why: "it has the taint maintenance=disk:NoExecute (bgp.drainOnTaints)"},
		{name: "its value", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{maintained} }, taints: []string{"maintenance=disk"}, why: "it has the taint maintenance=disk:NoExecute"},
		{name: "its effect", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{maintained} }, taints: []string{"maintenance:NoExecute"}, why: "it has the taint maintenance=disk:NoExecute"},
		{name: "another value", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{maintained} }, taints: []string{"maintenance=fan"}},
		{name: "another effect", node: func(n *cluster.Node) { n.Taints = []cluster.Taint{maintained} }, taints: []string{"maintenance=disk:NoSchedule"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := Config{NodeName: "n1", ASN: 64512, Announce: []Announcement{announce(PodCIDRs, ServiceCIDRs, LoadBalancerIPs)}}
			config.ServiceCIDRs = append(config.ServiceCIDRs, pfx("10.96.0.0/16"))
			for _, text := range c.taints {
				m, err := ParseTaint(text)
				if err != nil {
					t.Fatal(err)
				}
				config.DrainTaints = append(config.DrainTaints, m)
			}
			s := snapshot(c.node)
			if c.saved {
				s.Saved = time.Unix(1, 0)
			}
			table, notes := Plan(s, config, pods, vips())
			var why string
			for _, n := range notes {
				why += n.String()
			}
			if (why != "") != (c.why != "") || !strings.Contains(why, c.why) {
				t.Errorf("the notes are %q, expected %q", why, c.why)
			}
			got, draining := prefixesOf(table.Paths), prefixesOf(table.Draining)
			const own, services = "10.244.1.0/24 fd00:1::/64", "10.96.0.0/16 10.96.0.11/32 10.96.0.13/32 203.0.113.9/32"
			if c.why != "" && (got != own || draining != services) {
				t.Errorf("it announces %s and drains %s", got, draining)
			}
			if c.why == "" && (len(table.Paths) != 6 || draining != "") {
				t.Errorf("it announces %s and drains %s", got, draining)
			}
		})
	}
}

func prefixesOf(paths []Path) string {
	var list []string
	for _, p := range paths {
		list = append(list, p.Prefix.String())
	}
	return strings.Join(list, " ")
}

// TestLeaving: notice is given by the community, once, and for iBGP by the preference; all else stays, also in what was given.
func TestLeaving(t *testing.T) {
	shared := &Attributes{Communities: append(make([]Community, 0, 5), 1), LargeCommunities: []LargeCommunity{{1, 2, 3}}, LocalPref: 200, MED: 5, Prepend: 1}
	given := []Path{{Prefix: pfx("10.244.1.0/24"), Attributes: shared}, {Prefix: pfx("10.244.2.0/24"), Attributes: shared}}
	left := Leaving(given)
	want := Attributes{Communities: []Community{1, gracefulShutdown}, LargeCommunities: shared.LargeCommunities, LocalPref: 0, MED: 5, Prepend: 1}
	for _, p := range slices.Concat(left, Leaving(left)) {
		if !p.Attributes.equal(&want) {
			t.Errorf("%s", p)
		}
	}
	if len(shared.Communities) != 1 || shared.LocalPref != 200 || given[0].Attributes != shared || shared.Communities[:2][1] != 0 {
		t.Errorf("the given ones have become %v", given)
	}
}

func TestParseTaintRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "is no taint, expected key",
		"=v":                               "is no taint, expected key",
		"a b":                              "is no taint, expected key",
		"maintenance:":                     `has the effect ""`,
		"maintenance=now:Evict":            `has the effect "Evict", expected one of NoSchedule, PreferNoSchedule, NoExecute`,
		"node.kubernetes.io/unschedulable": "is what a cordon sets",
		"node.kubernetes.io/unschedulable:NoSchedule": "is what a cordon sets",
		"node.kubernetes.io/not-ready":                "tells of the kubelet",
		"node.kubernetes.io/unreachable:NoExecute":    "is on every node when the API server has lost its network",
	} {
		if _, err := ParseTaint(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %q", text, err, want)
		}
	}
}
