package differential

import (
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// last returns the objects of a scene at its end, as far as a generator knows them.
func (s scene) last() *objects {
	services, sliced, o := map[string]*corev1.Service{}, map[string]*discoveryv1.EndpointSlice{}, &objects{}
	for _, step := range s.steps {
		for _, a := range step {
			switch {
			case a.service != nil && a.verb == "delete":
				delete(services, key(a.service.Namespace, a.service.Name))
			case a.service != nil:
				services[key(a.service.Namespace, a.service.Name)] = a.service
			case a.slice != nil && a.verb == "delete":
				delete(sliced, key(a.slice.Namespace, a.slice.Name))
			case a.slice != nil:
				sliced[key(a.slice.Namespace, a.slice.Name)] = a.slice
			default:
				o.zone = *a.zone
			}
		}
	}
	for _, s := range services {
		o.services = append(o.services, *s)
	}
	for _, s := range sliced {
		o.slices = append(o.slices, *s)
	}
	slices.SortFunc(o.services, func(a, b corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(o.slices, func(a, b discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return o
}

// render returns the rules that the agent would have for objects, without any kernel.
func (o *objects) render(t *testing.T, f cluster.Family) string {
	a := source.NewAssembler()
	set := func(obj any) {
		converted, err := source.Convert(obj)
		if err != nil {
			t.Fatal(err)
		}
		a.Set(converted)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: ownNode, Labels: map[string]string{corev1.LabelTopologyZone: o.zone}}}
	for _, p := range podNetworks {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.2"}, {Type: corev1.NodeInternalIP, Address: "fd00:192:168::2"}}
	set(node)
	for i := range o.services {
		set(&o.services[i])
	}
	for i := range o.slices {
		set(&o.slices[i])
	}
	var pods []netip.Prefix
	for p := range strings.SplitSeq(podCIDRs, ",") {
		pods = append(pods, netip.MustParsePrefix(p))
	}
	table, _ := proxy.Plan(a.Snapshot(), f, proxy.Config{NodeName: ownNode, ClusterCIDRs: proxy.PairOf(pods),
		Addresses: &proxy.AddressPolicy{AllExternalIPs: true, AllLoadBalancerIPs: true}}, nil)
	text := iptables.Render(table, iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true}, nil).String()
	return strings.Replace(text, "*filter\n", "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n", 1)
}

// idle are kinds of rules without which no first packet of a connection fares differently.
var idle = regexp.MustCompile(`--ctstate RELATED,ESTABLISHED -j ACCEPT$|` +
	`-A KUBE-FW-\S+ -m comment --comment "[^"]*"$|` + // a comment
	`-A KUBE-POSTROUTING -j MARK|` + // unmarks what leaves
	// The agent's KUBE-SERVICES refuses external addresses too, for the node's own packets, and comes first.
	`-A KUBE-EXTERNAL-SERVICES -d|-A FORWARD .* -j KUBE-EXTERNAL-SERVICES$`)

// kindOf blanks out what differs between rules of one kind.
func kindOf(rule string) string {
	rule = regexp.MustCompile(`"[^"]*"|(KUBE-(?:SVC|SVL|EXT|FW|SEP)-)\S+`).ReplaceAllString(rule, "$1…")
	return regexp.MustCompile(`[0-9a-f.:]*[0-9][0-9a-f.:/]*|tcp|udp|sctp`).ReplaceAllString(rule, "#")
}

// A mutation changes a rule: "" removes it. ok is false for a rule that it can't change.
type mutation struct {
	name   string
	change func(rule string) (changed string, ok bool)
}

func replaced(old, new string) func(string) (string, bool) {
	return func(rule string) (string, bool) {
		changed := strings.Replace(rule, old, new, 1)
		return changed, changed != rule
	}
}

var mutations = []mutation{
	{"remove a rule", func(rule string) (string, bool) { return "", true }},
	{"other probability", replaced("--probability 0.5", "--probability 0.4")},
	{"reject instead of drop", replaced("-j DROP", "-j REJECT --reject-with icmp-port-unreachable")},
	{"drop instead of reject", replaced("-j REJECT", "-j DROP --reject-with")},
	{"other port", replaced("--dport ", "--dport 1")},
	{"other endpoint", replaced("--to-destination 10.244.1.", "--to-destination 10.244.2.")},
	{"other source", replaced("-s 10.244.1.", "-s 10.244.3.")},
	{"no mark", replaced("-j KUBE-MARK-MASQ", "-j RETURN")},
	{"mark turned round", replaced("! -s 10.244.0.0/16", "-s 10.244.0.0/16")},
	{"other protocol", func(rule string) (string, bool) {
		return strings.ReplaceAll(rule, " tcp ", " udp "), strings.Contains(rule, "-m tcp --dport")
	}},
}

// TestNoticesMutations: a rule set of which one rule was changed differs from itself. Not every rule matters in every
// cluster: another one may do the same to the same packets. So each kind of rule must matter somewhere, and few may not.
func TestNoticesMutations(t *testing.T) {
	noticed, unnoticed := map[string]int{}, map[string][]string{}
	missed, tried := 0, 0
	for seed := uint64(1); seed <= 8; seed++ {
		o := generate(seed).last()
		for _, f := range cluster.Families {
			text := o.render(t, f)
			v := o.view(f)
			r := rand.New(rand.NewPCG(seed, 1))
			probes := v.probes(r, podBridge, nil, text)
			// What service rules accept matters when a firewall drops the rest.
			if differs(t, v, probes, text, text) || differs(t, v, probes, dropByDefault(text), dropByDefault(text)) {
				t.Fatalf("seed %d, %s: equal rules differ", seed, f)
			}
			rules := ruleLines(text)
			for _, i := range r.Perm(len(rules))[:min(40, len(rules))] {
				for _, m := range mutations {
					changed, ok := m.change(rules[i])
					if !ok || idle.MatchString(rules[i]) {
						continue
					}
					tried++
					what := m.name + ": " + kindOf(rules[i])
					mutated := strings.Replace(text, rules[i]+"\n", changed+strings.Repeat("\n", min(1, len(changed))), 1)
					if differs(t, v, probes, text, mutated) || differs(t, v, probes, dropByDefault(text), dropByDefault(mutated)) {
						noticed[what]++
						noticed[m.name]++
						continue
					}
					missed++
					unnoticed[what] = append(unnoticed[what], rules[i])
				}
			}
		}
	}
	for what, rules := range unnoticed {
		if noticed[what] == 0 {
			t.Errorf("never noticed: %s\n%s", what, strings.Join(rules, "\n"))
		}
	}
	for _, m := range mutations {
		t.Logf("%s: noticed %d times", m.name, noticed[m.name])
		if noticed[m.name] == 0 {
			t.Errorf("%s was never noticed", m.name)
		}
	}
	if t.Logf("%d of %d changes went unnoticed", missed, tried); missed > tried/5 {
		t.Error("these are too many")
	}
}

// differs tells whether any probe differs and is not excused.
func differs(t *testing.T, v *view, probes []probe, proxy, agent string) bool {
	t.Helper()
	p, err := parsePair(&configurations[0], v.family, proxy, agent)
	if err != nil {
		t.Fatal(err)
	}
	for _, pr := range probes {
		d, err := p.walk(v, pr)
		if err != nil { // a mutation may make a rule that nobody understands
			return true
		}
		if d != nil && d.deliberate() == "" {
			return true
		}
	}
	return false
}

// ruleLines returns the rules of a text, all tables.
func ruleLines(text string) (list []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "-A ") {
			list = append(list, strings.TrimSuffix(line, "\n"))
		}
	}
	return list
}
