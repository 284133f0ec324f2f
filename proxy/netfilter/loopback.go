package netfilter

import (
	"context"
	"fmt"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// loopbackGuard is what kubelet and kube-proxy write into the chain KUBE-FIREWALL, without its comment: packets from elsewhere to
// a loopback address are dropped, but for those that a rule sent there.
const loopbackGuard = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 "

// GuardsLoopback tells whether a rule keeps neighbours out of 127.0.0.0/8, which net.ipv4.conf.all.route_localnet lets in. It is
// kubelet's, or that of a service proxy.
func (b *Backend) GuardsLoopback(ctx context.Context) (bool, error) {
	bin, ok := b.Binaries[cluster.IPv4]
	if !ok {
		return false, nil
	}
	text, err := b.run(ctx, command{path: bin.Save, args: []string{"-t", iptables.Filter}}) // which needs no lock
	if err != nil {
		return false, fmt.Errorf("look for the rule that keeps neighbours out of 127.0.0.0/8: %w", err)
	}
	rule, jump := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		rule = rule || strings.HasPrefix(line, loopbackGuard) && strings.Contains(line, "! --ctstate RELATED,ESTABLISHED,DNAT") && strings.HasSuffix(line, "-j DROP")
		jump = jump || line == "-A INPUT -j KUBE-FIREWALL"
	}
	return rule && jump, nil
}
