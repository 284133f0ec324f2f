package netfilter

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// inNamespace moves the rest of the test, and the programs that it starts, to a network namespace of its own. The
// namespace ends with the thread, and the thread with the test's goroutine.
func inNamespace(t *testing.T) {
	t.Helper()
	skip := t.Skip
	if os.Getenv("FAIRWAY_LAB") == "require" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("network namespaces need root")
	}
	for _, name := range []string{"iptables-legacy", "iptables-nft"} {
		if _, err := exec.LookPath(name); err != nil {
			skip("Debian's package iptables is needed: " + err.Error())
		}
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
}

// onBackends runs a test in a namespace of its own for each backend.
func onBackends(t *testing.T, test func(*testing.T, *Backend)) {
	for _, name := range []string{Legacy, NFT} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			b, err := Detect(context.Background(), name)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Families()) != 2 {
				t.Fatalf("both families are needed here: %v", b.Missing)
			}
			test(t, b)
		})
	}
}

// shell runs a program and returns what it printed.
func shell(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := run(context.Background(), command{path: name, args: args, stdin: stdin})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// save is all that a family holds, without the lines that carry the time, and without counters.
func save(t *testing.T, b *Backend, f cluster.Family) string {
	t.Helper()
	var kept strings.Builder
	for line := range strings.Lines(shell(t, "", b.Binaries[f].Save)) {
		if line[0] == '#' {
			continue
		}
		if line[0] == ':' {
			line, _, _ = strings.Cut(line, " [")
			line += "\n"
		}
		kept.WriteString(line)
	}
	return kept.String()
}

// A world is a cluster of the tests, one address family.
type world struct {
	family   cluster.Family
	services []*cluster.Service
}

var (
	backendCounts = []int{0, 1, 2, 3, 7}
	protocols     = []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP}
)

// newWorld has n Services: all protocols, one or two ports, with and without node port, no to many endpoints.
func newWorld(f cluster.Family, n int) *world {
	w := &world{family: f}
	for i := range n {
		w.services = append(w.services, w.service(i, backendCounts[i%len(backendCounts)]))
	}
	return w
}

func (w *world) vip(i int) netip.Addr {
	if w.family == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", i+1))
	}
	return netip.AddrFrom4([4]byte{10, 96, byte((i + 1) >> 8), byte(i + 1)})
}

func (w *world) pod(i int) netip.Addr {
	if w.family == cluster.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:200:1::%x", i+1))
	}
	return netip.AddrFrom4([4]byte{10, 200 + byte((i+1)>>16), byte((i + 1) >> 8), byte(i + 1)})
}

// service makes Service number i with so many endpoints, every third of them on this node.
func (w *world) service(i, endpoints int) *cluster.Service {
	port := cluster.ServicePort{Protocol: protocols[i%3], Port: 80}
	if i%4 != 3 {
		port.NodePort = uint16(30000 + i)
	}
	ports := []cluster.ServicePort{port}
	if i%4 == 1 {
		ports[0].Name = "http"
		ports = append(ports, cluster.ServicePort{Name: "dns-tcp", Protocol: port.Protocol, Port: 53})
	}
	slice := &cluster.EndpointSlice{Name: "s", Family: w.family}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, cluster.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: p.Port + 8000})
	}
	for j := range endpoints {
		node := "n2"
		if (i+j)%3 == 0 {
			node = "n1"
		}
		slice.Endpoints = append(slice.Endpoints, cluster.Endpoint{Addr: w.pod(200*i + j), NodeName: node, Ready: true, Serving: true})
	}
	svc := &cluster.Service{Namespace: "default", Name: fmt.Sprintf("svc-%04d", i), UID: fmt.Sprint(i), Type: "NodePort",
		ClusterIPs: []netip.Addr{w.vip(i)}, Ports: ports, Slices: []*cluster.EndpointSlice{slice}}
	if i%2 == 0 {
		svc.HealthCheckNodePort = uint16(20000 + i)
	}
	return svc
}

// wander changes the world a little, or a lot.
func (w *world) wander(r *rand.Rand, most int) {
	var next []*cluster.Service
	at := map[string]*cluster.Service{}
	for _, s := range w.services {
		at[s.UID] = s
	}
	keep := r.Float64()
	for i := range most {
		switch s := at[fmt.Sprint(i)]; {
		case r.Float64() < keep:
			if s != nil {
				next = append(next, s)
			}
		case r.IntN(3) > 0:
			next = append(next, w.service(i, backendCounts[r.IntN(len(backendCounts))]))
		}
	}
	w.services = next
}

func (w *world) table(c proxy.Config) *proxy.Table {
	c.NodeName = "n1"
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: "n1", InternalIPs: []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}}}, Services: w.services}
	table, _ := proxy.Plan(s, w.family, c, nil)
	return table
}

func desired(table *proxy.Table, o iptables.Options) Desired {
	return Desired{Table: table, Ruleset: iptables.Render(table, o, nil), Options: o}
}

func (w *world) desired() Desired {
	return desired(w.table(proxy.Config{ClusterCIDRs: podCIDRs}), iptables.Options{MasqueradeBit: 14, RandomFully: true, DropInvalid: true})
}

var podCIDRs = [2]netip.Prefix{netip.MustParsePrefix("10.200.0.0/14"), netip.MustParsePrefix("fd00:200::/32")}

var (
	serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")}
	nodeCIDRs    = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}
)

// mustSync syncs and fails the test on an error.
func mustSync(t *testing.T, r *Rules, want ...Desired) []Report {
	t.Helper()
	reports, err := r.Sync(context.Background(), want)
	if err != nil {
		t.Fatal(err)
	}
	return reports
}

// mustHold checks that the tables hold exactly a Ruleset, byte for byte.
func mustHold(t *testing.T, tables Tables, want *iptables.Ruleset) {
	t.Helper()
	have, err := tables.Read(context.Background(), want.Family, nil)
	if err != nil {
		t.Fatal(err)
	}
	if h, w := have.String(), want.String(); h != w {
		t.Fatalf("the kernel does not print what was rendered:\n%s", firstDifference(h, w))
	}
}

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(h), len(w)) {
		if h[i] != w[i] {
			return fmt.Sprintf("line %d\n have %s\n want %s", i+1, h[i], w[i])
		}
	}
	return fmt.Sprintf("have %d lines, want %d", len(h), len(w))
}
