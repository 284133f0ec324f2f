package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

const (
	// A quarantined Service is tried again after retryFirst, and then less and less often: a kernel module may have
	// been loaded.
	retryFirst = time.Minute
	retryMost  = 10 * time.Minute
	// maxRestores bounds the restores of one Sync of a family. Finding one culprit among 10,000 Services takes 16;
	// what has not been tried when they are used up is quarantined as well, and tried again later.
	maxRestores = 48
	// maxBlamed bounds how often the line that iptables names is believed, before it is found out by trying.
	maxBlamed = 16
)

// A Quarantine is a Service whose present rules are refused.
type Quarantine struct {
	// Note says so, and why.
	Note cluster.Note
	// Served tells that rules of an earlier value of the Service are in force, see [proxy.Table.Keeping].
	Served bool
	// Input is what iptables-restore was given when it refused the Service, cut to maxInput, and Stderr what it said; "" when
	// there was no time to try it.
	Input, Stderr string
}

// maxInput bounds what is remembered of a refused input.
const maxInput = 64 << 10

// held is a Service in quarantine.
type held struct {
	service *cluster.Service
	// before are its ports when it was last accepted; none when it never was, as far as this process knows.
	before []*proxy.Port
	cause  string
	input  string
	stderr string
	delay  time.Duration
	retry  time.Time
}

// An attempt is one Sync of a family.
type attempt struct {
	*keeper
	desired  Desired
	services map[cluster.Ref]*cluster.Service
	// out are the Services whose new value is left out at the moment, those in quarantine and those under suspicion, with what
	// they did before. convicted tells that there are new ones in quarantine.
	out       map[cluster.Ref]proxy.Earlier
	convicted bool
	// stays are the tables to leave as they are, nil for one to write.
	stays [len(iptables.Tables)]*iptables.Table
	left  int
	// last is the Restore that was refused.
	last   *iptables.Restore
	report Report
}

func newAttempt(k *keeper, d Desired) *attempt {
	a := &attempt{keeper: k, desired: d, out: map[cluster.Ref]proxy.Earlier{}, left: maxRestores}
	if len(k.held) == 0 {
		return a
	}
	a.index()
	for ref, h := range k.held {
		if a.services[ref] == nil {
			delete(k.held, ref)
			continue
		}
		a.out[ref] = proxy.Earlier{Ports: h.before}
	}
	return a
}

// index makes the Services of the Table known by Ref; in most Syncs nobody asks.
func (a *attempt) index() {
	if a.services != nil {
		return
	}
	a.services = map[cluster.Ref]*cluster.Service{}
	for _, p := range a.desired.Table.Ports {
		a.services[p.Service.Ref()] = p.Service
	}
}

// look finds out which tables are to stay as they are.
func (a *attempt) look(ctx context.Context) error {
	if !a.desired.Add {
		return nil
	}
	have, err := a.current(ctx)
	if err != nil {
		return err
	}
	for i, name := range iptables.Tables {
		if t := have.Table(name); len(t.Chains) > 0 {
			a.stays[i] = t
		}
	}
	return nil
}

// apply writes what is desired, with the older ports of the Services that are out.
func (a *attempt) apply(ctx context.Context) error {
	table, want := a.desired.Table, a.desired.Ruleset
	if len(a.out) > 0 {
		table = table.Keeping(a.out)
		want = iptables.Render(table, a.desired.Options, want)
	}
	r, err := a.write(ctx, a.staying(want))
	if err == nil && a.stays == [len(iptables.Tables)]*iptables.Table{} {
		a.table = table
	}
	if r == nil {
		return err
	}
	a.left--
	if _, refused := refusal(err); refused {
		a.report.Refused++
		a.last = r
	} else if err == nil {
		a.report.Written = true
		a.report.Lines += r.Lines()
		a.report.WroteFilter += r.Rules(iptables.Filter)
		a.report.WroteNAT += r.Rules(iptables.NAT)
		a.report.Chains += r.Chains()
	}
	return err
}

// staying puts the tables that stay in place of those of a Ruleset.
func (a *attempt) staying(want *iptables.Ruleset) *iptables.Ruleset {
	for i, name := range iptables.Tables {
		if a.stays[i] != nil {
			mixed := *want
			*mixed.Table(name) = *a.stays[i]
			want = &mixed
		}
	}
	return want
}

// settle applies all that is not in quarantine, and quarantines what has to be for that. When a restore is refused, the
// Services that iptables named are suspects, and the others are applied at once. Legacy names no rule when the kernel refuses:
// then all Services that change are suspects. Meanwhile they keep the rules that they have. Then they are admitted again, by
// halves: what stood in the way may have passed meanwhile, or may have been what somebody else did to the kernel since it was
// read. When the rest is refused as well, no Service is to blame, and that is an error.
func (a *attempt) settle(ctx context.Context) error {
	remembered := a.have != nil && !a.fresh
	err := a.apply(ctx)
	var cause *RestoreError
	var suspects []cluster.Ref
	for range maxBlamed {
		e, refused := refusal(err)
		if !refused {
			break
		}
		cause = e
		blamed := a.blamed(e)
		if len(blamed) == 0 {
			break
		}
		suspects = append(suspects, blamed...)
		a.leave(blamed)
		err = a.apply(ctx)
	}
	if e, refused := refusal(err); refused {
		cause = e
		changed := slices.DeleteFunc(a.last.Services(), a.isOut)
		suspects = append(suspects, changed...)
		a.leave(changed)
		if len(changed) > 0 || remembered || len(a.out) > 0 {
			err = a.retreat(ctx)
		}
	}
	switch {
	case err != nil && len(suspects) > 0:
		return fmt.Errorf("also without the %d Services that changed: %w", len(suspects), err)
	case err != nil || len(suspects) == 0:
		return err
	}
	if err := a.prove(ctx); err != nil {
		return err
	}
	return a.admit(ctx, suspects, cause)
}

// prove makes sure that restores are accepted when none has been: that nothing was left to write without the suspects convicts none
// of them, when it is the program that fails, or the kernel refuses everybody.
func (a *attempt) prove(ctx context.Context) error {
	if a.report.Written {
		return nil
	}
	a.left--
	err := a.tables.Apply(ctx, a.family, iptables.Nothing())
	if _, refused := refusal(err); refused {
		a.report.Refused++
		return fmt.Errorf("a restore that changes nothing: %w", err)
	}
	return err
}

// retreat applies what is left without the Services that are out; when what they did before is refused as well, without that, too.
func (a *attempt) retreat(ctx context.Context) error {
	err := a.apply(ctx)
	if _, refused := refusal(err); refused && a.forget() {
		err = a.apply(ctx)
	}
	return err
}

// blamed returns the Services that the lines in the error belong to.
func (a *attempt) blamed(e *RestoreError) (list []cluster.Ref) {
	for _, line := range e.Lines {
		if ref, ok := a.last.Blame(line); ok && !a.isOut(ref) && !slices.Contains(list, ref) {
			list = append(list, ref)
		}
	}
	return list
}

func (a *attempt) isOut(ref cluster.Ref) bool {
	_, out := a.out[ref]
	return out
}

// admit lets a group of Services in that are out, as far as they are not refused. cause is the refusal that got them
// out, nil when that was in an earlier Sync.
func (a *attempt) admit(ctx context.Context, group []cluster.Ref, cause *RestoreError) error {
	if a.left <= 0 {
		a.hold(group, cause)
		return nil
	}
	for _, ref := range group {
		delete(a.out, ref)
	}
	err := a.apply(ctx)
	if err == nil {
		for _, ref := range group {
			delete(a.held, ref)
		}
		return nil
	}
	cause, refused := refusal(err)
	guilty := group
	if refused && len(group) > 1 {
		guilty = a.blamed(cause)
	}
	a.leave(group)
	switch rest := slices.DeleteFunc(slices.Clone(group), func(ref cluster.Ref) bool { return slices.Contains(guilty, ref) }); {
	case !refused:
		return err
	case len(guilty) == 0:
		return a.split(ctx, group, cause)
	case len(rest) == 0:
		a.hold(guilty, cause)
		return nil
	default:
		a.hold(guilty, cause)
		return a.admit(ctx, rest, cause)
	}
}

// split admits a group that was refused in two parts. What needs SCTP comes apart from the rest first: it is what a
// kernel most often lacks, and then all of it is refused.
func (a *attempt) split(ctx context.Context, group []cluster.Ref, cause *RestoreError) error {
	a.index()
	var common, rare []cluster.Ref
	for _, ref := range group {
		if usesSCTP(a.services[ref]) {
			rare = append(rare, ref)
		} else {
			common = append(common, ref)
		}
	}
	if len(common) == 0 || len(rare) == 0 {
		common, rare = group[:len(group)/2], group[len(group)/2:]
	}
	if err := a.admit(ctx, common, cause); err != nil {
		return err
	}
	return a.admit(ctx, rare, cause)
}

func usesSCTP(s *cluster.Service) bool {
	return s != nil && slices.ContainsFunc(s.Ports, func(p cluster.ServicePort) bool { return p.Protocol == cluster.SCTP })
}

// tidy takes away what the last refused restore left behind, as the tables before the refused one had committed, and endpoints
// that Services in quarantine have no more.
func (a *attempt) tidy(ctx context.Context) error {
	if a.have != nil && !a.convicted {
		return nil
	}
	for ref := range a.out {
		a.out[ref] = proxy.Earlier{Ports: a.held[ref].before}
	}
	return a.retreat(ctx)
}

// leave leaves the new values of Services out. They keep what they did before; whole, unless they are in quarantine.
func (a *attempt) leave(group []cluster.Ref) {
	suspects := make(map[cluster.Ref]bool, len(group))
	for _, ref := range group {
		if h := a.held[ref]; h != nil {
			a.out[ref] = proxy.Earlier{Ports: h.before}
		} else {
			a.out[ref], suspects[ref] = proxy.Earlier{Whole: true}, true
		}
	}
	if len(suspects) == 0 || a.table == nil {
		return
	}
	for _, p := range a.table.Ports {
		if ref := p.Service.Ref(); suspects[ref] {
			e := a.out[ref]
			e.Ports = append(e.Ports, p)
			a.out[ref] = e
		}
	}
}

// forget gives up the older ports of all Services that are out, and reports whether there were any.
func (a *attempt) forget() (any bool) {
	for ref, e := range a.out {
		any = any || len(e.Ports) > 0
		a.out[ref] = proxy.Earlier{}
		if h := a.held[ref]; h != nil {
			h.before = nil
		}
	}
	return any
}

// hold puts Services that are out into quarantine, or leaves them there for longer.
func (a *attempt) hold(group []cluster.Ref, cause *RestoreError) {
	a.index()
	for _, ref := range group {
		h, service := a.held[ref], a.services[ref]
		if h != nil && h.service == service {
			h.delay = min(2*h.delay, retryMost)
		} else {
			h = &held{service: service, before: a.out[ref].Ports, delay: retryFirst}
			a.held[ref], a.convicted = h, true
		}
		h.retry = a.now().Add(h.delay)
		if cause != nil {
			h.cause = "iptables-restore refused them: " + a.cause(ref, cause)
			h.input, h.stderr = a.last.String(), cause.Stderr
			h.input = strings.Clone(h.input[:min(len(h.input), maxInput)])
		}
		if h.cause == "" {
			h.cause = "they were refused with others', and could not be tried alone yet"
		}
	}
}

// cause words why a Service is left out. Where the Service's own line was named, it shows that, and leaves out what was said of
// others'.
func (a *attempt) cause(ref cluster.Ref, cause *RestoreError) string {
	for _, line := range cause.Lines {
		if blamed, ok := a.last.Blame(line); ok && blamed == ref {
			return about(cause.Stderr, line) + ": " + lineOf(a.last.String(), line)
		}
	}
	return summary(cause.Stderr)
}

// due returns the Services in quarantine that should be tried again: those that changed, and those that waited.
func (k *keeper) due(services map[cluster.Ref]*cluster.Service, now time.Time) (list []cluster.Ref) {
	for ref, h := range k.held {
		if s := services[ref]; s != h.service || !now.Before(h.retry) {
			list = append(list, ref)
		}
	}
	slices.SortFunc(list, func(a, b cluster.Ref) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// quarantine returns the Services in quarantine, and the time until one should be tried again.
func (k *keeper) quarantine(now time.Time) (list []Quarantine, retry time.Duration) {
	if len(k.held) == 0 {
		return nil, 0
	}
	served := map[cluster.Ref]bool{}
	if k.table != nil {
		for _, p := range k.table.Ports {
			served[p.Service.Ref()] = true
		}
	}
	for ref, h := range k.held {
		consequence := "the Service gets no %s rules on this node"
		if served[ref] {
			consequence = "the Service keeps the %s rules that it had on this node before, as far as its addresses and endpoints are still the same, and gets no new ones"
		}
		list = append(list, Quarantine{Served: served[ref], Input: h.input, Stderr: h.stderr, Note: cluster.Note{
			Object: ref, Reason: cluster.ReasonQuarantined, Detail: fmt.Sprintf(consequence, k.family) + ", " + h.cause}})
		if wait := max(h.retry.Sub(now), time.Second); retry == 0 || wait < retry {
			retry = wait
		}
	}
	slices.SortFunc(list, func(a, b Quarantine) int { return strings.Compare(a.Note.Object.String(), b.Note.Object.String()) })
	return list, retry
}
