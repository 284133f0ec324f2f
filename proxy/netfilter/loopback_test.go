package netfilter

import (
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

// The guard is what kubelet has, and nothing less than that.
func TestGuardsLoopback(t *testing.T) {
	const guarded = `*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
`
	without := func(line string) string {
		var rest []string
		for l := range strings.Lines(guarded) {
			if !strings.HasPrefix(l, line) {
				rest = append(rest, l)
			}
		}
		return strings.Join(rest, "")
	}
	onBackends(t, func(t *testing.T, b *Backend) {
		for _, c := range []struct {
			name, rules string
			want        bool
		}{
			{"no jump", without("-A INPUT"), false},
			{"no rule", without("-A KUBE"), false},
			{"another verdict", strings.ReplaceAll(guarded, "-j DROP", "-j ACCEPT"), false},
			{"other networks", strings.ReplaceAll(guarded, "! -s 127.0.0.0/8", "! -s 127.0.0.0/9"), false},
			{"kubelet's", guarded, true},
		} {
			shell(t, "*filter\nCOMMIT\n"+c.rules, b.Binaries[cluster.IPv4].Restore)
			if is, err := b.GuardsLoopback(t.Context()); is != c.want || err != nil {
				t.Errorf("%s: %v, %v, want %v", c.name, is, err, c.want)
			}
		}
	})
}
