package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
)

// logged returns the lines that do logs at the default verbosity, without their heads, in order of the alphabet.
func logged(t *testing.T, do func()) []string {
	t.Helper()
	var out bytes.Buffer
	klog.LogToStderr(false)
	klog.SetOutput(&out)
	defer klog.LogToStderr(true)
	do()
	klog.Flush()
	var lines []string
	for line := range strings.Lines(out.String()) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "] ")
		lines = append(lines, text)
	}
	slices.Sort(lines)
	return lines
}

// planOf returns a Plan with a Service for each name and, with b, a second node.
func planOf(t *testing.T, b bool, names ...string) *Plan {
	t.Helper()
	s := &cluster.Snapshot{Nodes: []*cluster.Node{{Name: "a", InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}}}}
	if b {
		s.Nodes = append(s.Nodes, &cluster.Node{Name: "b", InternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.2")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}})
	}
	for _, name := range names {
		s.Services = append(s.Services, &cluster.Service{Namespace: "default", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}}})
	}
	return MakePlan(s, Config{NodeName: "a"}, Offline, nil)
}

func TestAnnounce(t *testing.T) {
	var many []string
	for i := range announceEach + 1 {
		many = append(many, fmt.Sprintf("s%02d", i))
	}
	for _, c := range []struct {
		name     string
		old, new *Plan
		want     []string
	}{
		{"at start", nil, planOf(t, true, "web"), []string{
			`"Adding new service port" portName="default/web:http" servicePort="10.0.0.1:80/TCP"`,
			`"Adding route" route="10.244.2.0/24 via 192.168.0.2 proto 102" node="b"`}},
		{"nothing new", planOf(t, true, "web"), planOf(t, true, "web"), nil},
		{"one goes, one comes", planOf(t, true, "api"), planOf(t, false, "web"), []string{
			`"Adding new service port" portName="default/web:http" servicePort="10.0.0.1:80/TCP"`,
			`"Removing route" route="10.244.2.0/24 via 192.168.0.2 proto 102" node="b"`,
			`"Removing service port" portName="default/api:http" servicePort="10.0.0.1:80/TCP"`}},
		{"many", nil, planOf(t, false, many...), []string{`"Many service ports and routes changed at once, -v=1 shows each" changes=51`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := logged(t, func() { announce(c.old, c.new) }); !slices.Equal(got, c.want) {
				t.Errorf("it says\n%s\nexpected\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestQuietSync: a sync that writes what was planned is worth no line.
func TestQuietSync(t *testing.T) {
	p := &fakePart{name: "x"}
	r := newRunner(p, pace{}, time.Minute, func(outcome) {})
	got := logged(t, func() {
		for i := range 3 {
			r.sync(t.Context(), goal{uint64(i + 1), planOf(t, true, "web")}, false)
		}
	})
	if n, _, _ := p.see(); n != 3 || len(got) > 0 {
		t.Errorf("%d syncs, and the log says\n%s", n, strings.Join(got, "\n"))
	}
}
