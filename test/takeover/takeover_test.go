package takeover

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// soon bounds what takes a moment on a machine that has nothing else to do.
const soon = time.Minute

// others is what kubelet and the house have on the node, and what a kube-proxy keeps for itself.
const others = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:HOUSE-RULES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -s 203.0.113.0/24 -j HOUSE-RULES
-A HOUSE-RULES -j DROP
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
*nat
:HOUSE-NAT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A PREROUTING -s 203.0.113.0/24 -j HOUSE-NAT
-A PREROUTING -s 203.0.113.7/32 -j KUBE-MARK-MASQ
-A HOUSE-NAT -j KUBE-MARK-MASQ
COMMIT
`

// jumps are the rules that kube-proxy has in built-in chains: table, chain, rule.
var jumps = [][3]string{
	{"filter", "INPUT", `-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`},
	{"filter", "INPUT", `-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS`},
	{"filter", "INPUT", `-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`},
	{"filter", "FORWARD", `-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`},
	{"filter", "FORWARD", `-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`},
	{"filter", "FORWARD", `-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD`},
	{"filter", "FORWARD", `-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`},
	{"filter", "OUTPUT", `-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`},
	{"filter", "OUTPUT", `-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`},
	{"nat", "PREROUTING", `-m comment --comment "kubernetes service portals" -j KUBE-SERVICES`},
	{"nat", "OUTPUT", `-m comment --comment "kubernetes service portals" -j KUBE-SERVICES`},
	{"nat", "POSTROUTING", `-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING`},
}

const filterRules = `*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-PROXY-FIREWALL -d 198.51.100.9/32 -p tcp -m comment --comment "default/lb traffic not accepted by KUBE-FW-AAAAAAAAAAAAAAAA" -m tcp --dport 80 -j DROP
COMMIT
`

// natRules are for the Service default/web at VIP with the endpoints NEAR and FAR and the node port 30080; and a load balancer's.
const natRules = `*nat
:KUBE-EXT-SVCHASH - [0:0]
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-NEARHASH - [0:0]
:KUBE-SEP-FARHASH - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-SVCHASH - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-FW-AAAAAAAAAAAAAAAA -m comment --comment "other traffic to default/lb will be dropped by KUBE-PROXY-FIREWALL"
-A KUBE-SERVICES -d 198.51.100.9/32 -p tcp -m comment --comment "default/lb loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d VIP/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-SVCHASH
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http" -m tcp --dport 30080 -j KUBE-EXT-SVCHASH
-A KUBE-EXT-SVCHASH -m comment --comment "masquerade traffic for default/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-SVCHASH -j KUBE-SVC-SVCHASH
-A KUBE-SVC-SVCHASH ! -s 10.244.0.0/16 -d VIP/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-SVCHASH -m comment --comment "default/web:http -> NEAR:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-NEARHASH
-A KUBE-SVC-SVCHASH -m comment --comment "default/web:http -> FAR:8080" -j KUBE-SEP-FARHASH
-A KUBE-SEP-NEARHASH -s NEAR/32 -m comment --comment "default/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-NEARHASH -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination NEAR:8080
-A KUBE-SEP-FARHASH -s FAR/32 -m comment --comment "default/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-FARHASH -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination FAR:8080
`

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// A takeover is a lab in which n1 is kube-proxy's: the Service web has an endpoint on each node.
type takeover struct {
	*lab.Lab
	backend lab.Backend
	n1, n2  *lab.Node
	cluster *lab.Cluster
	vip     netip.Addr
	nat     string // natRules, filled in
}

func TestTakeover(t *testing.T) {
	for _, b := range lab.Backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func test(t *testing.T, b lab.Backend) {
	l := lab.ForTest(t, lab.Conformance())
	s := prepare(t, l, b)
	s.kubeProxy(t)
	before := s.save(t)
	load := s.load(t)
	session, r := l.Pod("p2").Open(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(s.vip, 80)})
	ok(t, r.Expect(lab.OK))

	agent, err := s.n1.StartAgent(lab.AgentOptions{Cluster: s.cluster, Backend: b})
	ok(t, err)
	ok(t, agent.WaitReady(soon))
	s.taken(t, before)
	load.verify(t, "taken over")

	// The old agent's route gives way: ours is there at once.
	ok(t, s.n1.DeleteRoute(s.n2.PodCIDRs[0]))
	ok(t, lab.Eventually(soon, func() error {
		out, err := s.n1.Run("ip", "route", "show", "proto", "102")
		if err == nil && !strings.Contains(out, s.n2.PodCIDRs[0].String()) {
			err = fmt.Errorf("our routes are %q", out)
		}
		return err
	}))
	if _, err := session.Ask("still there?", soon); err != nil {
		t.Errorf("a session from before: %v", err)
	}

	load = s.load(t)
	ok(t, agent.Stop(soon))
	s.kubeProxy(t)
	load.verify(t, "given back")
	if _, err := session.Ask("still there?", soon); err != nil {
		t.Errorf("a session from before, after all: %v", err)
	}
	if after := s.save(t); !slices.Equal(sorted(after), sorted(before)) {
		t.Errorf("given back, the rules are\n%s\nwhile they were\n%s", after, before)
	}
}

// prepare makes n2 fairway's already; n1 has others' rules and route.
func prepare(t *testing.T, l *lab.Lab, b lab.Backend) *takeover {
	t.Helper()
	services, err := l.Cluster()
	ok(t, err)
	s := &takeover{Lab: l, backend: b, n1: l.Node("n1"), n2: l.Node("n2"), cluster: services, vip: netip.MustParseAddr("10.96.0.10")}
	for _, name := range []string{"p1", "p3"} {
		_, err := l.Pod(name).Serve(lab.Server{Name: name, Proto: lab.TCP, Port: 8080})
		ok(t, err)
	}
	web := lab.Service("web", []netip.Addr{s.vip}, lab.TCPPort("http", 80, 8080))
	web.Spec.Type, web.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	services.SetService(web)
	services.SetEndpoints(web, lab.Ready(l.Pod("p1")), lab.Ready(l.Pod("p3")))
	ok(t, services.Write())
	agent, err := s.n2.StartAgent(lab.AgentOptions{Cluster: services, Backend: b})
	ok(t, err)
	ok(t, agent.WaitReady(soon))

	ok(t, s.n1.Restore(b, cluster.IPv4, strings.Replace(others, "*nat\n", "*nat\n:KUBE-MARK-MASQ - [0:0]\n", 1), true))
	ok(t, s.n1.AddRoute(lab.Route{Dst: s.n2.PodCIDRs[0], Via: s.n2.Addr(cluster.IPv4)}))
	near, far := l.Pod("p1").Addr(cluster.IPv4).String(), l.Pod("p3").Addr(cluster.IPv4).String()
	const port = "default/web:http" + "tcp"
	s.nat = strings.NewReplacer("VIP", s.vip.String(), "SVCHASH", hash(port), "NEARHASH", hash(port+near+":8080"),
		"FARHASH", hash(port+far+":8080"), "NEAR", near, "FAR", far).Replace(natRules)
	return s
}

// kubeProxy makes a full sync as kube-proxy does: jumps that are missing, then all chains, and away with stale ones.
func (s *takeover) kubeProxy(t *testing.T) {
	t.Helper()
	iptables := lab.Tool(s.backend, cluster.IPv4, "")
	for _, j := range jumps {
		chain := j[2][strings.LastIndex(j[2], " ")+1:]
		command := fmt.Sprintf("%[1]s -w -t %[2]s -N %[4]s 2>&-; %[1]s -w -t %[2]s -C %[3]s %[5]s 2>&- || %[1]s -w -t %[2]s -I %[3]s %[5]s",
			iptables, j[0], j[1], chain, j[2])
		_, err := s.n1.Run("sh", "-c", command)
		ok(t, err)
	}
	nat, sweep := s.nat, ""
	for line := range strings.Lines(s.save(t, "nat")) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, ":"), " ")
		stale := slices.ContainsFunc([]string{":KUBE-SVC-", ":KUBE-SVL-", ":KUBE-EXT-", ":KUBE-FW-", ":KUBE-SEP-"},
			func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		if stale && !strings.Contains(nat, ":"+name+" ") {
			nat = strings.Replace(nat, "*nat\n", "*nat\n:"+name+" - [0:0]\n", 1)
			sweep += "-X " + name + "\n"
		}
	}
	ok(t, s.n1.Restore(s.backend, cluster.IPv4, filterRules+nat+sweep+"COMMIT\n", true))
}

// save returns the rules of n1; of all tables without one named.
func (s *takeover) save(t *testing.T, tables ...string) string {
	t.Helper()
	text, err := s.n1.Save(s.backend, cluster.IPv4, strings.Join(tables, ""))
	ok(t, err)
	return text
}

func sorted(text string) []string { return slices.Sorted(strings.Lines(text)) }

// taken fails the test unless the rules are fairway's, and others' as they were.
func (s *takeover) taken(t *testing.T, before string) {
	t.Helper()
	now := s.save(t)
	for line := range strings.Lines(others) {
		if (line[0] == ':' || line[0] == '-') && !strings.Contains(now, line) {
			t.Errorf("taken over, this is missing: %s", line)
		}
	}
	for _, gone := range []string{"-j KUBE-PROXY-FIREWALL", "KUBE-FW-", "KUBE-SEP-" + hash("default/web:httptcp10.244.2.2:8080"), "198.51.100.9"} {
		if !strings.Contains(before, gone) || strings.Contains(now, gone) {
			t.Errorf("taken over, %s should have gone:\n%s", gone, now)
		}
	}
}

// A load is what goes on all the time.
type load struct {
	probers map[string]*lab.Prober
	astray  *lab.Capture
}

func (s *takeover) load(t *testing.T) *load {
	t.Helper()
	// A packet to the VIP that no rule translates follows n1's default route.
	astray, err := s.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == s.vip })
	ok(t, err)
	d := &load{probers: map[string]*lab.Prober{}, astray: astray}
	for name, from := range map[string]struct {
		ns *lab.Namespace
		to netip.AddrPort
	}{
		"pod to VIP":           {s.Pod("p2").Namespace, netip.AddrPortFrom(s.vip, 80)},
		"outside to node port": {s.Client("c").Namespace, netip.AddrPortFrom(s.n1.Addr(cluster.IPv4), 30080)},
	} {
		p, err := from.ns.Probe(lab.ProbeConfig{Dial: lab.Dial{Proto: lab.TCP, To: from.to, Timeout: 10 * time.Second}})
		ok(t, err)
		d.probers[name] = p
	}
	return d
}

// verify goes on for a moment, and fails the test unless every connection came to one of the endpoints.
func (d *load) verify(t *testing.T, what string) {
	t.Helper()
	time.Sleep(time.Second)
	for name, p := range d.probers {
		r := p.Stop()
		t.Logf("%s, %s: %v %v", what, name, r, r.Names)
		if r.Failed() > 0 || len(r.Names) != 2 {
			t.Errorf("%s, %s: %v, answers %v", what, name, r, r.Names)
		}
	}
	if n := d.astray.Count(); n > 0 {
		t.Errorf("%s: %d packets to the VIP went to the router", what, n)
	}
	d.astray.Close()
}
