package agent

import (
	"context"
	"errors"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// Init sets the sysctls that an agent needs and that it can't set itself where /proc/sys is read-only, as it is in an
// unprivileged container: forwarding of IPv4, conntrack's, and for node ports on 127.0.0.1 route_localnet, if a rule keeps
// neighbours out of 127.0.0.0/8 by now, which kubelet sees to. What is right already is not written. It needs no API.
//
// IPv6 forwarding is not set: whether the node should forward IPv6, only its Node tells, and it costs a host routes that it
// learned from router advertisements.
//
// The error names every file that could not be set, with its value and the one that would be right.
func Init(ctx context.Context, c Config) error {
	errs := []error{rtnl.EnsureForwarding(cluster.IPv4)}
	errs = append(errs, netfilter.ApplyConntrack(c.Conntrack)...)
	if p := c.proxy().NodePorts; p != nil && p.Localhost {
		errs = append(errs, routeLocalnet(ctx, c.IPTablesBackend))
	}
	return errors.Join(errs...)
}

func routeLocalnet(ctx context.Context, choice string) error {
	b, err := netfilter.Detect(ctx, choice)
	if err != nil {
		return err
	}
	if guarded, err := b.GuardsLoopback(ctx); err != nil || !guarded {
		return err
	}
	return netfilter.EnableRouteLocalnet()
}

// sysctlNotes are the Notes on a node for what ApplyConntrack could not set.
func sysctlNotes(node cluster.Ref, refused []error) (notes []cluster.Note) {
	for _, err := range refused {
		notes = append(notes, cluster.Note{Object: node, Reason: cluster.ReasonSysctlRefused, Detail: err.Error()})
	}
	return notes
}
