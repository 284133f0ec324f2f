package netfilter

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// Leftovers are what kube-proxy made in this kernel, in whatever mode, and what the agent neither uses nor removes by itself. To
// find them changes nothing.
type Leftovers struct {
	// Backend is the iptables that the agent uses.
	Backend string

	tables []cluster.Family // with an nftables table
	ipvs   ipvsState
	// saved are all backends and families that could be read.
	saved []savedFamily
	// Unread tells what could not be read, and so may hold more.
	Unread []error
}

// A savedFamily is what the tables of one family of a backend hold.
type savedFamily struct {
	backend *Backend
	family  cluster.Family
	*iptables.Saved
}

// FindLeftovers looks for what is of no use to an agent that uses a backend, Legacy or NFT.
func FindLeftovers(ctx context.Context, backend string) (*Leftovers, error) {
	return newDetector().leftovers(ctx, backend)
}

// OtherModes returns sentences for the log of an agent that starts: what of a kube-proxy in nftables or IPVS mode acts on the packets
// of Services beside it. It reads no rules.
func OtherModes() (list []string, err error) {
	tables, err := kubeProxyTables()
	if err != nil {
		return nil, err
	}
	_, link, err := ipvsAddrs()
	if err != nil {
		return nil, err
	}
	return warnings(tables, link), nil
}

func warnings(tables []cluster.Family, ipvs bool) (list []string) {
	for _, f := range tables {
		list = append(list, fmt.Sprintf("the nftables table %s %s of a kube-proxy in nftables mode acts at the same hooks: of it and iptables' nat table, "+
			"what was made later translates a new connection first, and so decides; when that kube-proxy is stopped, its endpoints grow old: then remove it by fairway takeover", nftFamily(f), kubeProxyTable))
	}
	if ipvs {
		list = append(list, ipvsLink+" of a kube-proxy in IPVS mode is there: iptables translates new connections before IPVS sees them; "+
			"when that kube-proxy is stopped, remove what it left by fairway takeover")
	}
	return list
}

func (d *detector) leftovers(ctx context.Context, backend string) (*Leftovers, error) {
	l := &Leftovers{Backend: backend}
	var err error
	if l.tables, err = kubeProxyTables(); err != nil {
		return nil, err
	}
	if l.ipvs, err = readIPVS("/proc/net"); err != nil {
		return nil, err
	}
	l.saved, l.Unread = d.saveAll(ctx)
	return l, nil
}

// saveAll reads both backends, as far as they can be read.
func (d *detector) saveAll(ctx context.Context) (all []savedFamily, unread []error) {
	for _, name := range []string{Legacy, NFT} {
		b := d.find(ctx, name)
		for _, f := range b.Families() {
			s, err := b.saved(ctx, f)
			if err != nil {
				unread = append(unread, fmt.Errorf("%s of iptables-%s: %w", f, name, err))
				continue
			}
			all = append(all, savedFamily{b, f, s})
		}
	}
	return all, unread
}

// saved reads all tables of a family. It asks for none by name, which would create it.
func (b *Backend) saved(ctx context.Context, f cluster.Family) (*iptables.Saved, error) {
	text, err := b.run(ctx, command{path: b.Binaries[f].Save})
	if err != nil {
		return nil, err
	}
	return iptables.ParseSaved(text)
}

// A Step is one thing to remove.
type Step struct {
	// What says what is removed, in a sentence without an end: "remove the nftables table ip kube-proxy".
	What string
	// Canaries: after this a kube-proxy that runs would write all of its rules anew.
	Canaries bool
	do       func(context.Context) error
}

// Do removes it. Doing it again does nothing.
func (s Step) Do(ctx context.Context) error { return s.do(ctx) }

// EstablishedIPVS counts the TCP connections that go through IPVS, and end with it.
func (l *Leftovers) EstablishedIPVS() int { return l.ipvs.established }

// HasIPVS tells that the kernel has something of a kube-proxy in IPVS mode, other than iptables rules.
func (l *Leftovers) HasIPVS() bool {
	return l.ipvs.link || len(l.ipvs.services) > 0 || len(l.ipvs.sets) > 0
}

// Steps returns what removes the Leftovers, in the order in which to do it: first what still takes packets away from the agent's
// rules, at last the canaries. No step takes a rule away without which a connection would fail, as long as the agent's rules are in
// the kernel; but those of IPVS end the connections that go through it, which ipvs lets them do.
func (l *Leftovers) Steps(ipvs bool) (steps []Step) {
	for _, f := range l.tables {
		steps = append(steps, Step{What: fmt.Sprintf("remove the nftables table %s %s of kube-proxy in nftables mode", nftFamily(f), kubeProxyTable),
			do: func(context.Context) error { return deleteKubeProxyTable(f) }})
	}
	for _, s := range l.saved {
		if s.backend.Name != l.Backend {
			steps = append(steps, s.steps("of Services, beside those of the agent in iptables-"+l.Backend+",", iptables.Owned)...)
		}
	}
	for _, s := range l.saved {
		steps = append(steps, s.steps("of kube-proxy in IPVS mode", iptables.OfIPVS)...)
	}
	if ipvs {
		steps = append(steps, l.ipvs.steps()...)
	}
	for _, s := range l.saved {
		canaries := s.steps("by which kube-proxy notices a flush", iptables.IsCanary)
		for i := range canaries {
			canaries[i].Canaries = true
		}
		steps = append(steps, canaries...)
	}
	return steps
}

// steps returns what removes the chains that are picked; about says whose they are.
func (s savedFamily) steps(about string, pick func(table, chain string) bool) []Step {
	names := s.Chains(pick)
	if len(names) == 0 {
		return nil
	}
	const few = 5
	what := strings.Join(names[:min(few, len(names))], ", ")
	if len(names) > few {
		what += fmt.Sprintf(" and %d more", len(names)-few)
	}
	return []Step{{What: fmt.Sprintf("remove %d %s chains %s from iptables-%s: %s", len(names), s.family, about, s.backend.Name, what),
		do: func(ctx context.Context) error { return s.backend.remove(ctx, s.family, pick) }}}
}

// remove removes chains that are picked from what is there now.
func (b *Backend) remove(ctx context.Context, f cluster.Family, pick func(table, chain string) bool) error {
	s, err := b.saved(ctx, f)
	if err != nil {
		return err
	}
	r := s.Removal(pick)
	if r.Empty() {
		return nil
	}
	return b.Apply(ctx, f, r)
}

func (s *ipvsState) steps() (steps []Step) {
	if len(s.services) > 0 {
		steps = append(steps, Step{What: fmt.Sprintf("remove %d virtual services of IPVS at addresses of %s", len(s.services), ipvsLink),
			do: func(context.Context) error { return deleteVirtualServices(s.services) }})
	}
	if s.link {
		steps = append(steps, Step{What: fmt.Sprintf("remove the interface %s with its %d addresses", ipvsLink, len(s.addrs)),
			do: func(context.Context) error { return deleteIPVSLink() }})
	}
	if len(s.sets) > 0 {
		steps = append(steps, Step{What: "destroy the ipsets " + strings.Join(s.sets, ", "),
			do: func(context.Context) error { return destroySets(s.sets) }})
	}
	return steps
}

// Remarks are sentences about what acts beside an agent, and what no step removes.
func (l *Leftovers) Remarks() (list []string) {
	list = warnings(l.tables, l.ipvs.link)
	if l.HasIPVS() && l.ipvs.others > 0 {
		list = append(list, fmt.Sprintf("IPVS has %d virtual services at other addresses: node ports of kube-proxy or somebody else's; ipvsadm -Ln lists them", l.ipvs.others))
	}
	for _, err := range l.Unread {
		list = append(list, "not looked at: "+err.Error())
	}
	return list
}

// Handover is what lets a kube-proxy in iptables mode that runs make the rules wholly its own.
type Handover struct {
	saved []savedFamily
}

// FindHandover looks for the canaries of a kube-proxy. There is one of each family that it serves, in one backend.
func FindHandover(ctx context.Context) (*Handover, error) {
	all, unread := newDetector().saveAll(ctx)
	h := &Handover{}
	for _, s := range all {
		if len(s.Chains(iptables.IsCanary)) > 0 {
			h.saved = append(h.saved, s)
		}
	}
	return h, errors.Join(unread...)
}

// Families returns the families that kube-proxy has canaries in.
func (h *Handover) Families() (list []string) {
	for _, s := range h.saved {
		list = append(list, fmt.Sprintf("%s of iptables-%s", s.family, s.backend.Name))
	}
	return list
}

// Prompt removes the canaries, so that kube-proxy takes the tables for flushed and writes all of its rules. Nothing else changes.
func (h *Handover) Prompt(ctx context.Context) error {
	var errs []error
	for _, s := range h.saved {
		errs = append(errs, s.backend.remove(ctx, s.family, iptables.IsCanary))
	}
	return errors.Join(errs...)
}

// Done tells whether kube-proxy has made its canaries again, which it does after its rules.
func (h *Handover) Done(ctx context.Context) (bool, error) {
	for _, s := range h.saved {
		now, err := s.backend.saved(ctx, s.family)
		if err != nil {
			return false, err
		}
		if len(now.Chains(iptables.IsCanary)) < len(iptables.Tables)+1 { // and mangle
			return false, nil
		}
	}
	return true, nil
}

// Sweep removes the chains of ours that kube-proxy neither uses nor sweeps, and returns how many there were.
func (h *Handover) Sweep(ctx context.Context) (removed int, err error) {
	var errs []error
	for _, s := range h.saved {
		now, err := s.backend.saved(ctx, s.family)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if r := now.Removal(now.Strays()); !r.Empty() {
			removed += r.Chains()
			errs = append(errs, s.backend.Apply(ctx, s.family, r))
		}
	}
	return removed, errors.Join(errs...)
}
