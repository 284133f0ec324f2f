package netfilter

import (
	"context"
	"fmt"

	"github.com/fairway-net/fairway/agent/cluster"
)

// GuardsLoopback tells whether a rule keeps neighbours out of 127.0.0.0/8, which net.ipv4.conf.all.route_localnet lets in. It is
// kubelet's, or that of a service proxy.
func (b *Backend) GuardsLoopback(ctx context.Context) (bool, error) {
	if _, ok := b.Binaries[cluster.IPv4]; !ok {
		return false, nil
	}
	have, err := b.Read(ctx, cluster.IPv4, nil)
	if err != nil {
		return false, fmt.Errorf("look for the rule that keeps neighbours out of 127.0.0.0/8: %w", err)
	}
	return have.Guarded(), nil
}
