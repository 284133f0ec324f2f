package netfilter

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// A Cleaned says what Cleanup removed from one family of one backend.
type Cleaned struct {
	Backend string
	Family  cluster.Family
	Chains  int
}

// Cleanup removes all chains that iptables.Owned names, and the jumps to them, from both families. choice is Legacy,
// NFT, or Auto for every backend that holds some. What is somebody else's stays as it is; a chain of ours that a
// foreign rule leads to is emptied but stays. Running it again does nothing.
//
// A failure in one place does not keep it from cleaning the others. A backend or family that the kernel does not have
// holds nothing; when none at all can be read, the error is ErrNoBackend.
func Cleanup(ctx context.Context, choice string) ([]Cleaned, error) {
	return newDetector().cleanup(ctx, choice)
}

func (d *detector) cleanup(ctx context.Context, choice string) (done []Cleaned, err error) {
	names := []string{choice}
	switch choice {
	case Auto, "":
		names = []string{Legacy, NFT}
	case Legacy, NFT:
	default:
		return nil, fmt.Errorf("iptables backend %q: must be %s, %s or %s", choice, Auto, Legacy, NFT)
	}
	var found, lacking []*Backend
	for _, name := range names {
		b := d.find(ctx, name)
		if len(b.Binaries) == 0 {
			lacking = append(lacking, b)
			continue
		}
		found = append(found, b)
	}
	if len(found) == 0 {
		return nil, noBackend(lacking...)
	}
	var errs, unread []error
	readable := 0
	for _, b := range found {
		for _, f := range b.Families() {
			seen, err := d.saved(ctx, b, f)
			if err != nil {
				unread = append(unread, fmt.Errorf("clean up %s iptables-%s: %w", f, b.Name, err))
				continue
			}
			readable++
			// A table is asked for by name only where it holds something, since asking creates it.
			if seen.chains == 0 {
				continue
			}
			c, err := b.clean(ctx, f)
			errs = append(errs, err)
			if c.Chains > 0 {
				done = append(done, c)
			}
		}
	}
	if readable == 0 {
		return nil, fmt.Errorf("%w: %w", ErrNoBackend, errors.Join(unread...))
	}
	return done, errors.Join(errs...)
}

// clean empties one family.
func (b *Backend) clean(ctx context.Context, f cluster.Family) (c Cleaned, err error) {
	c = Cleaned{Backend: b.Name, Family: f}
	have, err := b.Read(ctx, f, nil)
	if err != nil {
		return c, fmt.Errorf("clean up iptables-%s: %w", b.Name, err)
	}
	r := b.Diff(have, &iptables.Ruleset{Family: f})
	if r.Empty() {
		return c, nil
	}
	if err := b.Apply(ctx, f, r); err != nil {
		return c, fmt.Errorf("clean up iptables-%s: %w", b.Name, err)
	}
	c.Chains = r.Chains()
	return c, nil
}
