package netfilter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
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

// held is a Service in quarantine.
type held struct {
	service *cluster.Service
	detail  string
	delay   time.Duration
	retry   time.Time
}

// An attempt is one Sync of a family.
type attempt struct {
	*keeper
	desired  Desired
	services map[cluster.Ref]*cluster.Service
	// out are the Services that are left out at the moment: those in quarantine, and those under suspicion.
	out  map[cluster.Ref]bool
	left int
	// last is the Restore that was refused.
	last   *iptables.Restore
	report Report
}

func newAttempt(k *keeper, d Desired) *attempt {
	a := &attempt{keeper: k, desired: d, out: map[cluster.Ref]bool{}, left: maxRestores}
	if len(k.held) == 0 {
		return a
	}
	a.index()
	for ref := range k.held {
		if a.services[ref] == nil {
			delete(k.held, ref)
			continue
		}
		a.out[ref] = true
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

// apply writes what is desired without the Services that are out.
func (a *attempt) apply(ctx context.Context) error {
	want := a.desired.Ruleset
	if len(a.out) > 0 {
		want = iptables.Render(a.desired.Table.Without(a.out), a.desired.Options, want)
	}
	r, err := a.write(ctx, want)
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

// settle applies all that is not in quarantine, and quarantines what has to be for that. First it believes the lines
// that iptables named. Legacy names no rule when the kernel refuses: then all Services that change are left out, and
// let in again by halves. When the rest is refused as well, no Service is to blame, and that is an error.
func (a *attempt) settle(ctx context.Context) error {
	remembered := a.have != nil && !a.fresh
	err := a.apply(ctx)
	if _, refused := refusal(err); refused && remembered {
		// Somebody may have removed a chain that the rules lead to, or lead to one that they remove, since the kernel was
		// read. No Service is to blame for that, so read it again first.
		err = a.apply(ctx)
	}
	for range maxBlamed {
		e, refused := refusal(err)
		if !refused {
			return err
		}
		blamed := a.blamed(e)
		if len(blamed) == 0 {
			break
		}
		a.hold(blamed, e)
		err = a.apply(ctx)
	}
	cause, refused := refusal(err)
	if !refused {
		return err
	}
	suspects := slices.DeleteFunc(a.last.Services(), func(ref cluster.Ref) bool { return a.out[ref] })
	if len(suspects) == 0 {
		return err
	}
	a.leave(suspects)
	if err := a.apply(ctx); err != nil {
		return fmt.Errorf("also without the %d Services that changed: %w", len(suspects), err)
	}
	if len(suspects) == 1 {
		// That the rest went well does not convict it: what stood in the way may have passed meanwhile.
		return a.admit(ctx, suspects, cause)
	}
	return a.split(ctx, suspects, cause)
}

// blamed returns the Services that the lines in the error belong to.
func (a *attempt) blamed(e *RestoreError) (list []cluster.Ref) {
	for _, line := range e.Lines {
		if ref, ok := a.last.Blame(line); ok && !a.out[ref] && !slices.Contains(list, ref) {
			list = append(list, ref)
		}
	}
	return list
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
	a.leave(group)
	cause, refused := refusal(err)
	if !refused {
		return err
	}
	if len(group) == 1 {
		a.hold(group, cause)
		return nil
	}
	return a.split(ctx, group, cause)
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

// tidy takes away what the last refused restore left behind: the tables before the refused one had committed.
func (a *attempt) tidy(ctx context.Context) error {
	if a.have != nil {
		return nil
	}
	return a.apply(ctx)
}

func (a *attempt) leave(group []cluster.Ref) {
	for _, ref := range group {
		a.out[ref] = true
	}
}

// hold puts Services into quarantine, or leaves them there for longer.
func (a *attempt) hold(group []cluster.Ref, cause *RestoreError) {
	a.index()
	a.leave(group)
	for _, ref := range group {
		h, service := a.held[ref], a.services[ref]
		if h != nil && h.service == service {
			h.delay = min(2*h.delay, retryMost)
		} else {
			h = &held{service: service, delay: retryFirst}
			a.held[ref] = h
		}
		h.retry = a.now().Add(h.delay)
		if cause != nil {
			h.detail = a.detail(ref, cause)
		}
		if h.detail == "" {
			h.detail = fmt.Sprintf("its %s rules were refused, and it could not be tried again yet", a.family)
		}
	}
}

// detail words why a Service is left out. Where the Service's own line was named, it shows that, and leaves out what
// was said of others'.
func (a *attempt) detail(ref cluster.Ref, cause *RestoreError) string {
	const form = "the Service gets no %s rules on this node, iptables-restore refused them: %s"
	for _, line := range cause.Lines {
		if blamed, ok := a.last.Blame(line); ok && blamed == ref {
			return fmt.Sprintf(form, a.family, about(cause.Stderr, line)) + ": " + lineOf(a.last.String(), line)
		}
	}
	return fmt.Sprintf(form, a.family, summary(cause.Stderr))
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

// quarantine returns a Note for each Service in quarantine, and the time until one should be tried again.
func (k *keeper) quarantine(now time.Time) (notes []cluster.Note, retry time.Duration) {
	for _, h := range slices.Collect(maps.Values(k.held)) {
		notes = append(notes, cluster.Note{Object: h.service.Ref(), Reason: cluster.ReasonQuarantined, Detail: h.detail})
		if wait := max(h.retry.Sub(now), time.Second); retry == 0 || wait < retry {
			retry = wait
		}
	}
	return cluster.SortNotes(notes), retry
}
