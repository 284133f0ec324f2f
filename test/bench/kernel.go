package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/test/lab"
	"github.com/fairway-net/fairway/test/synth"
)

// The networks of the made-up clusters, as package synth numbers them.
var (
	clusterCIDR    = netip.MustParsePrefix("10.128.0.0/9")
	serviceCIDR    = netip.MustParsePrefix("10.96.0.0/12")
	infrastructure = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("fd00::/64")}
)

// timing is how long something took, and the processor time of it: of the programs that it ran, or of this process.
type timing struct{ wall, cpu sample }

// time runs f and adds what it took.
func (t *timing) time(f func() error) error { return t.with(childrenCPU, f) }

// own is time for what this process does itself.
func (t *timing) own(f func() error) error { return t.with(ownCPU, f) }

func (t *timing) with(cpu func() time.Duration, f func() error) (err error) {
	before := cpu()
	t.wall.time(func() { err = f() })
	t.cpu.add(cpu() - before)
	return err
}

// childrenCPU is the processor time, in user and kernel mode, of all programs that this process ran and that have ended, ownCPU
// its own so far.
func childrenCPU() time.Duration { return cpuOf(unix.RUSAGE_CHILDREN) }
func ownCPU() time.Duration      { return cpuOf(unix.RUSAGE_SELF) }

func cpuOf(who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		panic("bench: getrusage: " + err.Error()) // only wrong arguments fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// kernel is what the rules of one size cost in the kernel, by backend.
type kernel struct {
	services int
	by       map[lab.Backend]*restores
}

type restores struct {
	full   timing // into empty tables
	change timing // one changed endpoint
	read   timing // everything, compared with what should be
}

// measureKernel loads rules into fresh namespaces, the backends taking turns.
func measureKernel(ctx context.Context, services int, o options) (kernel, error) {
	k := kernel{services: services, by: map[lab.Backend]*restores{}}
	for i := range o.full {
		for _, b := range lab.Backends {
			progress("%d Services into iptables-%s, %d of %d", services, b, i+1, o.full)
			if k.by[b] == nil {
				k.by[b] = &restores{}
			}
			if err := loadOnce(ctx, b, madeUp(services, o.endpoints), o.changes, k.by[b]); err != nil {
				return k, fmt.Errorf("%d services, iptables-%s: %w", services, b, err)
			}
		}
	}
	return k, nil
}

// loadOnce makes a machine, loads a cluster's rules, changes them a few times and looks whether they are right.
func loadOnce(ctx context.Context, b lab.Backend, s *cluster.Snapshot, changes int, r *restores) (err error) {
	machine, err := lab.New(nodeTopology(), lab.Options{})
	if err != nil {
		return err
	}
	defer func() {
		if closing := machine.Close(); err == nil {
			err = closing
		}
	}()
	node := machine.Node(synth.NodeName)
	if err := os.Setenv("XTABLES_LOCKFILE", node.LockFile()); err != nil {
		return err
	}
	// The programs run where the thread is that starts them.
	return node.Do(func() error {
		backend, err := netfilter.Detect(ctx, string(b))
		if err != nil {
			return err
		}
		if err := netfilter.EnsureCounters(); err != nil { // which the rules of an offline plan name
			return err
		}
		l := loader{ctx: ctx, backend: backend, have: &iptables.Ruleset{Family: cluster.IPv4}}
		plan := agent.MakePlan(s, config(), agent.Offline, nil)
		if err := l.apply(rulesOf(plan), &r.full); err != nil {
			return err
		}
		for i := range changes {
			s = synth.Changed(s, (i*997)%len(s.Services), 200+i)
			plan = agent.MakePlan(s, config(), agent.Offline, plan)
			if err := l.apply(rulesOf(plan), &r.change); err != nil {
				return err
			}
		}
		return l.verify(&r.read)
	})
}

// A loader writes rules, and knows which are there.
type loader struct {
	ctx     context.Context
	backend *netfilter.Backend
	have    *iptables.Ruleset
}

func (l *loader) apply(want *iptables.Ruleset, t *timing) error {
	err := t.time(func() error {
		return l.backend.Apply(l.ctx, cluster.IPv4, l.backend.Diff(l.have, want))
	})
	l.have = want
	return err
}

// verify reads the rules back and compares them.
func (l *loader) verify(t *timing) error {
	return t.time(func() error {
		read, err := l.backend.Read(l.ctx, cluster.IPv4, l.have)
		if err != nil {
			return err
		}
		if r := iptables.Diff(read, l.have); !r.Empty() {
			return fmt.Errorf("the kernel holds other rules than were loaded, %d chains differ", r.Chains())
		}
		return nil
	})
}
