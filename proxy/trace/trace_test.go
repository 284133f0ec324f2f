package trace_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/trace"
	"github.com/fairway-net/fairway/test/synth"
)

var (
	nodeIPs = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2"),
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	node = trace.Node{Local: func(a netip.Addr) bool {
		for _, n := range nodeIPs {
			if a == n {
				return true
			}
		}
		return false
	}}
	pods = proxy.PairOf([]netip.Prefix{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:10:128::/48")})
)

// A source is where a packet comes from, per family.
type source struct {
	name   string
	in     string
	addr   [2]string
	masked bool // its source is replaced on the way to a ClusterIP
}

var sources = []source{
	{"pod", "cni0", [2]string{"10.128.0.1", "fd00:10:128::77"}, false},
	{"outside", "eth0", [2]string{"192.0.2.9", "2001:db8::9"}, true},
	{"node", "", [2]string{"10.0.0.2", "fd00::2"}, true},
}

func follow(t *testing.T, r *trace.Rules, p cluster.Protocol, src, dst netip.AddrPort, in string) []trace.Outcome {
	t.Helper()
	outcomes, err := r.Trace(trace.Packet{Protocol: p, Src: src, Dst: dst, In: in}, node)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, o := range outcomes {
		sum += o.Share
	}
	if math.Abs(sum-1) > 1e-6 {
		t.Fatalf("%s to %s: the shares add up to %f: %v", src, dst, sum, outcomes)
	}
	return outcomes
}

// TestRulesDoWhatTheTableSays: whatever the layout of the rules, each frontend of a Table leads to its backends, in equal
// shares, masqueraded when it should be; and what is next to a frontend is left alone.
func TestRulesDoWhatTheTableSays(t *testing.T) {
	clusters := map[string]*cluster.Snapshot{"even": synth.Even(3, 400, 3), "crowded": crowded()}
	for seed := range uint64(15) {
		clusters[fmt.Sprint("seed ", seed)] = synth.Random(rand.New(rand.NewPCG(seed, 7)))
	}
	for name, s := range clusters {
		for i, f := range cluster.Families {
			for _, large := range []bool{false, true} {
				// What is for no port of a ClusterIP is rejected, or not, independently of the size.
				table, _ := proxy.Plan(s, f, proxy.Config{NodeName: synth.NodeName, ClusterCIDRs: pods, ForwardUnknown: large,
					Addresses: &proxy.AddressPolicy{AllExternalIPs: true, AllLoadBalancerIPs: true}}, nil)
				ruleset := iptables.Render(table, iptables.Options{MasqueradeBit: 14, DropInvalid: true, Large: large}, nil)
				rules, err := trace.Parse(f, ruleset.String())
				if err != nil {
					t.Fatal(err)
				}
				check := checker{t, fmt.Sprintf("%s, %s, large %v", name, f, large), i, rules, table}
				for _, p := range table.Ports {
					check.port(p)
				}
			}
		}
	}
}

// crowded is a cluster with hundreds of endpoints to a Service: with affinity and without, of policy Cluster and Local.
func crowded() *cluster.Snapshot {
	s := synth.Even(3, 4, 300)
	for i, svc := range s.Services {
		changed := *svc
		changed.Type, changed.Ports = "NodePort", slices.Clone(svc.Ports)
		changed.Ports[0].NodePort = uint16(31000 + i)
		if i%2 == 1 {
			changed.ExternalTrafficPolicy = cluster.PolicyLocal
		}
		if i >= 2 {
			changed.Affinity = time.Hour
		}
		s.Services[i] = &changed
	}
	return s
}

type checker struct {
	t      *testing.T
	name   string
	family int
	rules  *trace.Rules
	table  *proxy.Table
}

func (c checker) port(p *proxy.Port) {
	for _, from := range sources {
		src := netip.AddrPortFrom(netip.MustParseAddr(from.addr[c.family]), 40000)
		if p.ClusterIP.IsValid() {
			got := follow(c.t, c.rules, p.Protocol, src, netip.AddrPortFrom(p.ClusterIP, p.Port), from.in)
			c.leads(p, from.name+" to ClusterIP", p.Internal, from.masked, got)
			miss := netip.AddrPortFrom(p.ClusterIP, 9)
			want := trace.Reject
			if !c.table.RejectUnknown {
				want = trace.Accept
			}
			if o := follow(c.t, c.rules, p.Protocol, src, miss, from.in); len(o) != 1 || o[0].Verdict != want || o[0].Dst != miss {
				c.t.Errorf("%s: a port next to %s: %v, expected %s", c.name, p.Name, o, want)
			}
		}
		if p.NodePort != 0 {
			c.external(p, from, src, "node port", netip.AddrPortFrom(nodeIPs[c.family], p.NodePort))
		}
		for _, a := range p.ExternalIPs {
			c.external(p, from, src, "external IP", netip.AddrPortFrom(a, p.Port))
		}
		for _, a := range p.LoadBalancerIPs {
			to := netip.AddrPortFrom(a, p.Port)
			allowed := p.AllowedSources == nil || p.External == proxy.Reject
			for _, n := range p.AllowedSources {
				allowed = allowed || n.Contains(src.Addr())
			}
			if allowed {
				c.external(p, from, src, "load balancer IP", to)
			} else {
				c.leads(p, from.name+" to load balancer IP", proxy.Drop, false, follow(c.t, c.rules, p.Protocol, src, to, from.in))
			}
			if p.AllowSelf && from.name == "node" && p.External != proxy.Reject {
				c.external(p, from, netip.AddrPortFrom(a, 40000), "load balancer IP from itself", to)
			}
		}
	}
}

// external follows a packet to a frontend that is not the ClusterIP.
func (c checker) external(p *proxy.Port, from source, src netip.AddrPort, what string, to netip.AddrPort) {
	verdict, masked := p.External, true
	if verdict == proxy.ToLocal || verdict == proxy.Drop { // policy Local
		masked = from.name == "node"
		if from.name != "outside" {
			verdict = proxy.ToCluster
		}
	}
	local := node
	local.Local = func(a netip.Addr) bool { return a == src.Addr() && from.name == "node" || node.Local(a) }
	outcomes, err := c.rules.Trace(trace.Packet{Protocol: p.Protocol, Src: src, Dst: to, In: from.in}, local)
	if err != nil {
		c.t.Fatal(err)
	}
	c.leads(p, from.name+" to "+what, verdict, masked, outcomes)
}

// leads compares what becomes of a packet with a verdict of the port.
func (c checker) leads(p *proxy.Port, what string, v proxy.Verdict, masked bool, got []trace.Outcome) {
	var want []proxy.Backend
	switch v {
	case proxy.Reject, proxy.Drop:
		if len(got) != 1 || string(got[0].Verdict) != v.String() {
			c.t.Errorf("%s: %s, %s: %v, expected %s", c.name, p.Name, what, got, v)
		}
		return
	case proxy.ToCluster:
		want = p.Cluster
	case proxy.ToLocal:
		want = p.Local
	}
	shares := map[netip.AddrPort]float64{}
	for _, o := range got {
		if o.Verdict != trace.Accept || o.Masquerade != masked {
			c.t.Errorf("%s: %s, %s: %v, expected accept, masqueraded %v", c.name, p.Name, what, o, masked)
		}
		shares[o.Dst] += o.Share
	}
	for _, b := range want {
		if share := 1 / float64(len(want)); math.Abs(shares[b.Addr]-share) > 1e-6 {
			c.t.Errorf("%s: %s, %s: %s gets %f, expected %f", c.name, p.Name, what, b.Addr, shares[b.Addr], share)
		}
	}
	if len(shares) != len(want) {
		c.t.Errorf("%s: %s, %s: leads to %v, expected %v", c.name, p.Name, what, shares, want)
	}
}

// kubeProxy are rules in kube-proxy's layout: a chain per endpoint, affinity, a source range, policy Local.
const kubeProxy = `# comment
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -s 10.128.0.0/9 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-PROXY-FIREWALL -d 198.51.100.1/32 -p tcp -m comment --comment "traffic not accepted by KUBE-FW-A" -m tcp --dport 80 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-A - [0:0]
:KUBE-FW-A - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVL-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 198.51.100.1/32 -p tcp -m tcp --dport 80 -j KUBE-FW-A
-A KUBE-SERVICES -d 198.51.100.2/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-A
-A KUBE-FW-A -s 192.0.2.0/24 -j KUBE-EXT-A
-A KUBE-FW-A -m comment --comment "other traffic to \"A\" will be dropped"
-A KUBE-EXT-A -s 10.128.0.0/9 -j KUBE-SVC-A
-A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-SVC-A
-A KUBE-EXT-A -j KUBE-SVL-A
-A KUBE-SVC-A -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-2 --mask 255.255.255.255 --rsource -j KUBE-SEP-2
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SVL-A -j KUBE-SEP-1
-A KUBE-SEP-1 -s 10.128.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m recent --set --name KUBE-SEP-1 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.128.0.5:8080
-A KUBE-SEP-2 -p tcp -m recent --set --name KUBE-SEP-2 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.128.1.5:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
`

func TestTrace(t *testing.T) {
	rules, err := trace.Parse(cluster.IPv4, kubeProxy)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, in, src, dst string
		invalid            bool
		recent             string
		want               string
	}{
		{name: "allowed source, policy Local", in: "eth0", src: "192.0.2.9", dst: "198.51.100.1:80", want: "100.0% drop 10.128.0.5:8080"}, // FORWARD's policy, no mark
		{name: "denied source", in: "eth0", src: "203.0.113.9", dst: "198.51.100.1:80", want: "100.0% drop 198.51.100.1:80"},
		{name: "pod", in: "cni0", src: "10.128.0.9", dst: "198.51.100.2:80", want: " 50.0% accept 10.128.0.5:8080\n 50.0% accept 10.128.1.5:8080"},
		{name: "pod to itself", in: "cni0", src: "10.128.0.5", dst: "198.51.100.2:80", want: " 50.0% accept 10.128.0.5:8080 masqueraded\n 50.0% accept 10.128.1.5:8080"},
		{name: "node", src: "10.0.0.2", dst: "198.51.100.2:80", want: " 50.0% accept 10.128.0.5:8080 masqueraded\n 50.0% accept 10.128.1.5:8080 masqueraded"},
		{name: "affinity", in: "cni0", src: "10.128.0.9", dst: "198.51.100.2:80", recent: "KUBE-SEP-2", want: "100.0% accept 10.128.1.5:8080"},
		{name: "invalid", in: "cni0", src: "10.128.0.9", dst: "198.51.100.2:80", invalid: true, want: "100.0% drop 198.51.100.2:80"},
		{name: "pod to pod", in: "cni0", src: "10.128.0.9", dst: "10.128.1.9:80", want: "100.0% accept 10.128.1.9:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := node
			n.Recent = func(list string) bool { return list == c.recent }
			outcomes, err := rules.Trace(trace.Packet{Protocol: cluster.TCP, Src: netip.AddrPortFrom(netip.MustParseAddr(c.src), 40000),
				Dst: netip.MustParseAddrPort(c.dst), In: c.in, Invalid: c.invalid}, n)
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, o := range outcomes {
				lines = append(lines, o.String())
			}
			if got := strings.Join(lines, "\n"); got != c.want {
				t.Errorf("got\n%s\nexpected\n%s", got, c.want)
			}
		})
	}
}

// TestLeaves: rules may ask for the interface that a packet leaves by, and look at packets without doing anything.
func TestLeaves(t *testing.T) {
	rules, err := trace.Parse(cluster.IPv4, `*filter
:FORWARD DROP [0:0]
-A FORWARD -m comment --comment "all" -j LOG --log-prefix "forward: " --log-level 4
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -o eth+ -j ACCEPT
COMMIT
`)
	if err != nil {
		t.Fatal(err)
	}
	for out, want := range map[string]string{"eth0": "accept", "docker0": "drop", "": "output interfaces are not known here"} {
		got := ""
		outcomes, err := rules.Trace(trace.Packet{Protocol: cluster.TCP, Src: netip.MustParseAddrPort("192.0.2.1:1"), Dst: netip.MustParseAddrPort("192.0.2.2:2"), In: "docker0", Out: out}, node)
		if err != nil {
			got = err.Error()
		} else if len(outcomes) == 1 {
			got = string(outcomes[0].Verdict)
		}
		if !strings.Contains(got, want) {
			t.Errorf("out of %q: %s, want %s", out, got, want)
		}
	}
}

// TestNotUnderstood: a rule that is not understood is an error, when a packet gets to it.
func TestNotUnderstood(t *testing.T) {
	for _, c := range []struct{ rule, want string }{
		{"-A PREROUTING -m length --length 100 -j ACCEPT", "the module length is not understood"},
		{"-A PREROUTING -g KUBE-X", "-g is not understood"},
		{"-A PREROUTING -j KUBE-X", "there is no chain KUBE-X"},
		{"-A PREROUTING -j SNAT --to-source 1.2.3.4", "--to-source of target SNAT is not understood"},
		{"-A PREROUTING -d", "-d lacks a value"},
		{"-A PREROUTING -d nonsense -j ACCEPT", "nonsense"},
		{"-A PREROUTING -p tcp -m tcp --dport x -j ACCEPT", `parsing "x"`},
		{`-A PREROUTING -m comment --comment "open -j ACCEPT`, "a quote is not closed"},
		{"-A PREROUTING -j PREROUTING", "more than 64 jumps"},
	} {
		rules, err := trace.Parse(cluster.IPv4, "*nat\n:PREROUTING ACCEPT [0:0]\n"+c.rule+"\nCOMMIT\n")
		if err != nil {
			t.Fatal(err)
		}
		p := trace.Packet{Protocol: cluster.TCP, Src: netip.MustParseAddrPort("192.0.2.1:1"), Dst: netip.MustParseAddrPort("192.0.2.2:2")}
		if _, err := rules.Trace(p, node); err != nil {
			t.Errorf("%s: a packet that does not get there gives %v", c.rule, err)
		}
		p.In = "eth0"
		if _, err := rules.Trace(p, node); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, expected %s", c.rule, err, c.want)
		}
	}
	for _, text := range []string{"-A PREROUTING -j ACCEPT\n", "*nat\nnonsense\n"} {
		if _, err := trace.Parse(cluster.IPv4, text); err == nil {
			t.Errorf("%q was parsed", text)
		}
	}
}
