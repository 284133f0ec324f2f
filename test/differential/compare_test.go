package differential

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/trace"
)

// An end is what can become of a packet. Where one that is refused was on its way to does not matter.
type end struct {
	verdict    trace.Verdict
	dst        netip.AddrPort
	masquerade bool
}

// ends are all that can become of a packet, with their shares.
type ends map[end]float64

func endsOf(outcomes []trace.Outcome) ends {
	e := ends{}
	for _, o := range outcomes {
		key := end{verdict: o.Verdict}
		if o.Verdict == trace.Accept {
			key.dst, key.masquerade = o.Dst, o.Masquerade
		}
		e[key] += o.Share
	}
	return e
}

// tolerance is above what the kernel's quantised probabilities make of an equal share, by far, and far below what one
// endpoint more or less would change.
const tolerance = 1e-6

func (e ends) equal(o ends) bool {
	return len(e) == len(o) && !slices.ContainsFunc(slices.Collect(maps.Keys(e)), func(k end) bool {
		share, ok := o[k]
		return !ok || math.Abs(share-e[k]) > tolerance
	})
}

// only tells whether nothing else can happen.
func (e ends) only(k end) bool { return len(e) == 1 && e[k] > 0 }

// A difference is a probe that comes to different ends.
type difference struct {
	probe
	view             *view
	proxy, agent     ends
	byProxy, byAgent []trace.Outcome
	firewall         bool // what nobody accepts is dropped
	configuration    *configuration
}

func (d *difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", d.probe)
	for _, side := range []struct {
		name     string
		outcomes []trace.Outcome
	}{{"kube-proxy", d.byProxy}, {"fairway", d.byAgent}} {
		fmt.Fprintf(&b, "  %s:\n", side.name)
		for _, o := range side.outcomes {
			fmt.Fprintf(&b, "    %s\n", o)
			for _, r := range o.Rules {
				fmt.Fprintf(&b, "      %s\n", r)
			}
		}
	}
	return b.String()
}

// A pairOfRules is what both sides have in the kernel, for one family.
type pairOfRules struct {
	proxy, agent         string // as iptables-save prints them
	proxyRules, ourRules *trace.Rules
	firewall             bool           // what nobody accepts is dropped
	configuration        *configuration // under which both sides run
}

func parsePair(c *configuration, f cluster.Family, proxy, agent string) (*pairOfRules, error) {
	p := &pairOfRules{proxy: proxy, agent: agent, configuration: c}
	var err error
	if p.proxyRules, err = trace.Parse(f, proxy); err != nil {
		return nil, fmt.Errorf("kube-proxy's rules: %w", err)
	}
	if p.ourRules, err = trace.Parse(f, agent); err != nil {
		return nil, fmt.Errorf("fairway's rules: %w", err)
	}
	return p, nil
}

// A tally counts probes, and differences that are deliberate.
type tally struct {
	probes     int
	deliberate map[string]int
}

func (t *tally) add(o *tally) {
	t.probes += o.probes
	for name, n := range o.deliberate {
		t.deliberate[name] += n
	}
}

func newTally() *tally { return &tally{deliberate: map[string]int{}} }

// compare walks all probes through both rule sets and returns what differs and is not deliberate.
func (p *pairOfRules) compare(v *view, probes []probe, t *tally) (list []*difference, err error) {
	for _, pr := range probes {
		d, err := p.walk(v, pr)
		if err != nil {
			return nil, err
		}
		t.probes++
		if d == nil {
			continue
		}
		if why := d.deliberate(); why != "" {
			t.deliberate[why]++
			continue
		}
		list = append(list, d)
	}
	return list, nil
}

// walk returns the difference that one probe makes, deliberate or not; nil for none.
func (p *pairOfRules) walk(v *view, pr probe) (*difference, error) {
	d := &difference{probe: pr, view: v, firewall: p.firewall, configuration: p.configuration}
	var err error
	if d.byProxy, err = p.proxyRules.Trace(pr.Packet, pr.node()); err != nil {
		return nil, fmt.Errorf("kube-proxy's rules: %w", err)
	}
	if d.byAgent, err = p.ourRules.Trace(pr.Packet, pr.node()); err != nil {
		return nil, fmt.Errorf("fairway's rules: %w", err)
	}
	if d.proxy, d.agent = endsOf(d.byProxy), endsOf(d.byAgent); d.proxy.equal(d.agent) {
		return nil, nil
	}
	return d, nil
}

// dropByDefault makes DROP the policy of the chains in which a firewall would have it.
func dropByDefault(text string) string {
	return strings.NewReplacer(":INPUT ACCEPT", ":INPUT DROP", ":FORWARD ACCEPT", ":FORWARD DROP").Replace(text)
}

// rulesToCompare returns both texts as they are, or with a firewall that refuses what nobody allowed: what service rules
// accept matters only then.
func rulesToCompare(c *configuration, r *rand.Rand, f cluster.Family, proxy, agent string) (*pairOfRules, error) {
	firewall := r.IntN(3) == 0
	if firewall {
		proxy, agent = dropByDefault(proxy), dropByDefault(agent)
	}
	p, err := parsePair(c, f, proxy, agent)
	if p != nil {
		p.firewall = firewall
	}
	return p, err
}

// objectsOf prints the objects that a difference is about.
func (d *difference) objectsOf() string {
	var b strings.Builder
	for _, c := range d.claims {
		svc := c.service.DeepCopy()
		parts := []any{svc}
		svc.ManagedFields = nil
		for _, s := range d.view.slicesOf(svc) {
			parts = append(parts, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: s.Labels},
				AddressType: s.AddressType, Ports: s.Ports, Endpoints: s.Endpoints})
		}
		for _, o := range parts {
			if text, err := yaml.Marshal(o); err == nil {
				fmt.Fprintf(&b, "---\n%s", text)
			}
		}
	}
	return b.String()
}
