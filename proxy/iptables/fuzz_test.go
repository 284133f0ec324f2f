package iptables_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

// FuzzParse: whatever iptables-save may print, parsing it does not panic, and what was understood is understood in the same
// way when it is printed again.
func FuzzParse(f *testing.F) {
	f.Add("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n")
	f.Add("*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -m comment --comment \"a \\\"quoted\\\" -j KUBE-SERVICES\" -j KUBE-FIREWALL\nCOMMIT\n# Completed\n")
	f.Add("*nat\n:KUBE-SVC-X - [0:0]\n:OTHER - [0:0]\n-A OTHER -g KUBE-SVC-X\n-A KUBE-SVC-X -p tcp -j DNAT --to-destination 10.0.0.1:80\n-A OTHER -j RETURN\n-A KUBE-SVC-X -j RETURN\nCOMMIT\n*raw\nCOMMIT\n")
	f.Add("*nat\n")
	f.Fuzz(func(t *testing.T, save string) {
		r, err := iptables.Parse(cluster.IPv4, save)
		if err != nil {
			return
		}
		text := r.String()
		again, err := iptables.Parse(cluster.IPv4, text)
		if err != nil {
			t.Fatalf("%v in what was printed:\n%s", err, text)
		}
		if got := again.String(); got != text {
			t.Errorf("printed\n%s\nafter parsing it\n%s", text, got)
		}
	})
}

// FuzzRender: a Service with the longest and oddest names that Kubernetes allows, at any address, gives rules in which no
// line is longer than iptables takes, and none was added by what an object contains.
func FuzzRender(f *testing.F) {
	f.Add(uint64(1), "default", "web", "http")
	f.Add(uint64(2), strings.Repeat("n", 63), strings.Repeat("s", 63), strings.Repeat("p", 15))
	f.Add(uint64(3), "a", "0", "")
	f.Fuzz(func(t *testing.T, seed uint64, namespace, name, port string) {
		if !label(namespace, 63) || !label(name, 63) || port != "" && !label(port, 63) {
			return // the sources let nothing else in
		}
		s := synth.Random(rand.New(rand.NewPCG(seed, 5)))
		for _, svc := range s.Services {
			svc.Namespace, svc.Name = namespace, name
			for i := range svc.Ports {
				svc.Ports[i].Name = port
			}
		}
		if len(s.Services) > 1 {
			s.Services = s.Services[:1]
		}
		for _, family := range cluster.Families {
			table, _ := proxy.Plan(s, family, config, nil)
			r := iptables.Render(table, options, nil)
			for line := range strings.Lines(r.String()) {
				if len(line) > 1024 || !strings.ContainsAny(line[:1], "*:-C") {
					t.Errorf("line %q", line)
				}
				if _, comment, ok := strings.Cut(line, `--comment "`); ok {
					comment, _, _ = strings.Cut(comment, `"`)
					if len(comment) > 255 {
						t.Errorf("a comment of %d bytes: %s", len(comment), line)
					}
				}
			}
			if again, err := iptables.Parse(family, r.String()); err != nil || again.String() != r.String() {
				t.Errorf("it is not what it says: %v", err)
			}
		}
	})
}

// label tells whether a text is a DNS label of RFC 1123.
func label(s string, longest int) bool {
	if s == "" || len(s) > longest || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
