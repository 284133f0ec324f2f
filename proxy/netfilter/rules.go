package netfilter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// Tables is the kernel's side of the rules; a *Backend is one. Diff is iptables.Diff, or what does the same at less cost. Apply
// returns a *RestoreError when the rules were refused, see [Backend.Apply].
type Tables interface {
	Read(ctx context.Context, f cluster.Family, known *iptables.Ruleset) (*iptables.Ruleset, error)
	Diff(have, want *iptables.Ruleset) *iptables.Restore
	ReadChains(context.Context, cluster.Family, []iptables.ChainName) (*iptables.Ruleset, error)
	Apply(context.Context, cluster.Family, *iptables.Restore) error
}

// A Desired is what one family's tables should hold: the Ruleset rendered from Table with Options. The Table and the
// Options are there so that it can be rendered again without a Service that the kernel refuses.
type Desired struct {
	Table   *proxy.Table
	Ruleset *iptables.Ruleset
	Options iptables.Options
	// Add writes only to tables in which nothing of ours stands: what stands there is newer than this.
	Add bool
}

// A Report says what a Sync did to one family.
type Report struct {
	Family cluster.Family
	// Written is true when the kernel was changed; Lines and Chains count what was written.
	Written       bool
	Lines, Chains int
	// WroteFilter and WroteNAT count the rules that were written to the tables.
	WroteFilter, WroteNAT int
	// Full is true when the Sync knew nothing of the kernel and began by reading it; else it wrote the difference to what
	// was last known.
	Full bool
	// RulesFilter and RulesNAT count the rules of ours that the tables now hold.
	RulesFilter, RulesNAT int
	// Duration is the time that the Sync of this family took.
	Duration time.Duration
	// Refused counts the restores that the kernel, or iptables, refused.
	Refused int
	// Quarantined are the Services whose present rules were refused and are left out, in order.
	Quarantined []Quarantine
	// Drifts tell what somebody else had done to the rules, which is repaired now. After a Sync that failed it is told by the
	// next one that does not.
	Drifts []iptables.Drift
	// Above are the rules of others that stand before our jumps.
	Above []Above
	// Retry is the time until a quarantined Service should be tried again by a Sync; 0 when there is none.
	Retry time.Duration
}

// Rules keeps one node's service rules. It is for one goroutine.
type Rules struct {
	tables Tables
	now    func() time.Time
	// KeepFirst moves our jumps back to the front of nat's built-in chains when somebody else put a rule before them that decides
	// about packets.
	KeepFirst bool
	keepers   map[cluster.Family]*keeper
}

// NewRules returns the keeper of a node's rules. It knows nothing of the kernel yet: the first Sync reads it, and
// writes only the difference.
func NewRules(t Tables) *Rules {
	return &Rules{tables: t, now: time.Now, keepers: map[cluster.Family]*keeper{}}
}

// Sync makes the tables hold what is desired, one Desired per family, and returns a Report for each in their order. A
// family that fails does not stop the other; their errors are joined. After an error the next Sync reads the kernel
// and goes on from there; errors.Is finds ErrLocked and the context's errors.
//
// A refused Service is no error: its new value is left out, and it is named in the Report. Sync tries it again when its value
// changed, and after a while.
func (r *Rules) Sync(ctx context.Context, want []Desired) ([]Report, error) {
	reports := make([]Report, 0, len(want))
	var errs []error
	for _, d := range want {
		report, err := r.keeper(d.Table.Family).sync(ctx, d)
		reports = append(reports, report)
		errs = append(errs, err)
	}
	return reports, errors.Join(errs...)
}

// Invalidate makes the next Sync read the kernel instead of trusting what was last known of it.
func (r *Rules) Invalidate() {
	for _, k := range r.keepers {
		k.invalidate()
	}
}

// maxDoubts bounds how many chains are read one by one; for more than that everything is read.
const maxDoubts = 16

// Doubt makes the next Sync of a family read what somebody else may have changed.
func (r *Rules) Doubt(c Change) {
	k := r.keepers[c.Family]
	switch {
	case k == nil || k.have == nil:
		return // it will read everything
	case c.Chains == nil:
		k.invalidate()
		return
	}
	for _, name := range c.Chains {
		k.doubts[name] = true
	}
	if len(k.doubts) > maxDoubts {
		k.invalidate()
	}
}

func (r *Rules) keeper(f cluster.Family) *keeper {
	k := r.keepers[f]
	if k == nil {
		k = &keeper{family: f, tables: r.tables, now: r.now, held: map[cluster.Ref]*held{}, spelled: spelling{},
			doubts: map[iptables.ChainName]bool{}, places: places{keepFirst: r.KeepFirst}}
		r.keepers[f] = k
	}
	return k
}

// A keeper keeps the rules of one family.
type keeper struct {
	family cluster.Family
	tables Tables
	now    func() time.Time
	// have is what the tables hold; nil when that is not known.
	have *iptables.Ruleset
	// known is what the tables held before somebody may have changed it, until they are read again; nil when that is not known.
	known *iptables.Ruleset
	// doubts are the chains that may be different from what have says.
	doubts map[iptables.ChainName]bool
	// drifts are what others were found to have done, until it is repaired.
	drifts []iptables.Drift
	places places
	// table is the Table whose rules were last in force; nil before the first.
	table *proxy.Table
	// wanted is what was last wanted, which is what the tables most likely hold.
	wanted *iptables.Ruleset
	// counted is the Ruleset that the two counts are of.
	counted               *iptables.Ruleset
	rulesFilter, rulesNAT int
	// fresh is true when have was read, and nothing was written since. A write on top of it is looked at afterwards:
	// what it repairs may be a spelling that was not seen yet.
	fresh   bool
	spelled spelling
	held    map[cluster.Ref]*held
}

func (k *keeper) sync(ctx context.Context, d Desired) (Report, error) {
	start, full := k.now(), k.have == nil
	a := newAttempt(k, d)
	err := a.look(ctx)
	if err == nil {
		err = a.settle(ctx)
	}
	if due := k.due(a.services, start); err == nil && len(due) > 0 {
		err = a.admit(ctx, due, nil)
	}
	if err == nil {
		err = a.tidy(ctx)
	}
	report := a.report
	report.Family, report.Full = k.family, full
	report.Quarantined, report.Retry = k.quarantine(k.now())
	report.RulesFilter, report.RulesNAT = k.count()
	if k.have != nil {
		report.Above = k.places.above(k.have)
	}
	if err == nil {
		report.Drifts, k.drifts = k.drifts, nil
	}
	report.Duration = k.now().Sub(start)
	return report, err
}

// invalidate forgets what the tables hold, but remembers it as what they should.
func (k *keeper) invalidate() {
	if k.have != nil {
		k.known = k.have
	}
	k.have = nil
	clear(k.doubts)
}

// current returns what the tables hold, read if need be.
func (k *keeper) current(ctx context.Context) (*iptables.Ruleset, error) {
	switch {
	case k.have == nil:
		read, err := k.tables.Read(ctx, k.family, k.wanted)
		if err != nil {
			return nil, err
		}
		k.look(k.known, k.spelled.translate(read))
		k.known, k.fresh = nil, true
	case len(k.doubts) > 0:
		chains := slices.Collect(maps.Keys(k.doubts))
		part, err := k.tables.ReadChains(ctx, k.family, chains)
		if err != nil {
			k.invalidate()
			return k.current(ctx)
		}
		k.look(k.have, iptables.Patch(k.have, k.spelled.translate(part), chains))
		clear(k.doubts)
	}
	return k.have, nil
}

// look takes what was read for what the tables hold, and finds what others did to it since it was known.
func (k *keeper) look(known, read *iptables.Ruleset) {
	if known != nil {
		k.drifts = append(k.drifts, iptables.Drifts(known, read)...)
		read.Filter.Remember(&known.Filter)
	}
	k.drifts = append(k.drifts, k.places.look(read, known == nil, k.now())...)
	k.have = read
}

// write turns what the tables hold into want. It returns the Restore also with an error, nil when there was no need.
func (k *keeper) write(ctx context.Context, want *iptables.Ruleset) (*iptables.Restore, error) {
	have, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	k.wanted = want
	r := k.tables.Diff(have, want)
	if r.Empty() {
		k.have, k.fresh = iptables.Written(have, want), false // Equal, but it shares its memory with what is planned next.
		return nil, nil
	}
	// Whatever becomes of the write, part of it may take effect.
	k.have, k.known = nil, nil
	if err := k.tables.Apply(ctx, k.family, r); err != nil {
		return r, err
	}
	if k.fresh || len(k.spelled) > 0 {
		return r, k.readBack(ctx, have, want)
	}
	k.have = iptables.Written(have, want)
	return r, nil
}

// readBack compares what was just written, in place of what was had, with what the kernel shows. Rules that it shows in other words, as another
// version of iptables does, are remembered in that form.
func (k *keeper) readBack(ctx context.Context, had, want *iptables.Ruleset) error {
	read, err := k.tables.Read(ctx, k.family, want)
	if err != nil {
		return err
	}
	k.spelled.learn(had, want, read)
	read = k.spelled.translate(read)
	k.drifts = append(k.drifts, k.places.look(read, false, k.now())...)
	k.have = read
	if r := iptables.Diff(read, want); !r.Empty() {
		k.fresh = true
		return fmt.Errorf("%s rules differ in %d chains right after they were written; is another program writing them?", k.family, r.Chains())
	}
	k.have, k.fresh = iptables.Written(read, want), false
	return nil
}

// count counts the rules that the tables hold, when that is known.
func (k *keeper) count() (filter, nat int) {
	if k.have != nil && k.wanted != k.counted {
		k.counted = k.wanted
		k.rulesFilter, k.rulesNAT = k.have.Filter.Rules(), k.have.NAT.Rules()
	}
	return k.rulesFilter, k.rulesNAT
}
