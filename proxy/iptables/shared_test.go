package iptables_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/textkernel"
)

// TestGuardComesFirst: whatever jumps come later, the one to the rule that keeps neighbours away from 127.0.0.0/8 is met before
// them; and it stays when it is no longer needed.
func TestGuardComesFirst(t *testing.T) {
	svc := &cluster.Service{Namespace: "default", Name: "web", UID: "s", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}}
	render := func(localhost bool, healthCheck uint16) *iptables.Ruleset {
		s := *svc
		s.HealthCheckNodePort = healthCheck
		c := proxy.Config{NodeName: "n", NodePorts: &proxy.NodePortPolicy{Localhost: localhost}}
		table, _ := proxy.Plan(&cluster.Snapshot{Services: []*cluster.Service{&s}}, cluster.IPv4, c, nil)
		return iptables.Render(table, options, nil)
	}
	have := &iptables.Ruleset{Family: cluster.IPv4}
	for _, step := range []struct {
		name    string
		want    *iptables.Ruleset
		guarded bool
		moved   bool
	}{
		{"without", render(false, 0), false, false},
		{"guarded", render(true, 0), true, true},
		{"with a health check port", render(true, 32000), true, true},
		{"without it again", render(true, 0), true, true},
		{"nothing new", render(true, 0), true, false},
		{"no longer needed", render(false, 0), true, false},
	} {
		restore := iptables.Diff(have, step.want)
		last := ""
		for line := range strings.Lines(restore.String()) {
			if strings.HasPrefix(line, "-I INPUT 1 ") {
				last = line
			}
		}
		if moved := last == "-I INPUT 1 -j KUBE-FIREWALL\n"; moved != step.moved || last != "" && !moved && step.guarded {
			t.Errorf("%s: the last jump put in front is %q", step.name, last)
		}
		after, err := textkernel.Apply(have, restore, nil)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if after.Guarded() != step.guarded {
			t.Errorf("%s: guarded is %v", step.name, after.Guarded())
		}
		have = after
	}
}
