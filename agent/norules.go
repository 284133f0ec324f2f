package agent

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/netfilter"
)

// errRulesPossible ends an agent that has waited for iptables: what it makes at its start depends on which iptables there is.
var errRulesPossible = errors.New("iptables works now: the agent ends, to be started again with it")

// noRules is the Part of an agent on a host where no iptables works. Routes and BGP go on without; the agent is not ready, and
// says why, until iptables is there.
type noRules struct {
	look func(context.Context) error
	// found is called when iptables works.
	found func()
}

func (*noRules) Name() string { return "rules" }

func (p *noRules) Sync(ctx context.Context, _ *Plan, _ bool) (Report, error) {
	err := p.look(ctx)
	if err == nil {
		p.found()
		err = errRulesPossible
	}
	return Report{}, err
}

// detect finds the iptables to use. Where none works, the Backend has no families, and the Part waits until one does.
func detect(ctx context.Context, choice string, found func()) (*netfilter.Backend, *noRules, error) {
	backend, err := netfilter.Detect(ctx, choice)
	if err == nil {
		announceBackend(backend)
	}
	if !errors.Is(err, netfilter.ErrNoBackend) {
		return backend, nil, err
	}
	klog.ErrorS(err, "Services have no rules until iptables works, routes are kept all the same")
	nothing := &netfilter.Backend{Name: "none", Why: "none works", Missing: map[cluster.Family]string{}}
	for _, f := range cluster.Families {
		nothing.Missing[f] = err.Error()
	}
	look := func(ctx context.Context) error {
		_, err := netfilter.Detect(ctx, choice)
		return err
	}
	return nothing, &noRules{look, found}, nil
}

// endWhen is an error when iptables works, for an agent that started without.
func endWhen(ctx context.Context, possible <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-possible:
		return errRulesPossible
	}
}
