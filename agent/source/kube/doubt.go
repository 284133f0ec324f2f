package kube

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// The second look at lists that would delete more than half of the cluster: when it comes, how long it may take, and how many
// objects a request asks for.
const (
	secondLook = 2 * time.Second
	lookBound  = time.Minute
	lookPage   = 500
)

// believed returns the state to publish after a list has arrived: next, unless that is much less than there was before. Then the API
// is asked once more, for what its store says and not its cache, until both agree; so long, what was published stays in
// force. It returns nil when ctx ends.
func (s *Source) believed(ctx context.Context, before source.Census, next *cluster.Snapshot) *cluster.Snapshot {
	why := before.Shrunk(source.Count(next))
	if why == "" {
		return next
	}
	defer s.doubt("")
	for delay := secondLook; ; delay = min(2*delay, lastRetry) {
		s.doubt(why)
		if sleep(ctx, delay) != nil {
			return nil
		}
		store, err := s.look(ctx)
		next, _ = s.snapshot()
		have := source.Count(next)
		if before.Shrunk(have) == "" || err == nil && store.Shrunk(have) == "" {
			return next
		}
		if err == nil {
			s.relist()
		}
	}
}

func (s *Source) doubt(why string) {
	if s.OnDoubt != nil {
		s.OnDoubt(why)
	}
}

// relist makes all lists come anew.
func (s *Source) relist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, again := range s.relists {
		again()
	}
}

// look counts what the API's store has, which a list without a resource version is made of.
func (s *Source) look(ctx context.Context) (source.Census, error) {
	ctx, cancel := context.WithTimeout(ctx, lookBound)
	defer cancel()
	a := source.NewAssembler()
	for i := range lists {
		if w := &lists[i]; !w.optional {
			if err := s.gather(ctx, w, a); err != nil {
				return source.Census{}, fmt.Errorf("list %s once more: %w", w.resource, err)
			}
		}
	}
	return source.Count(a.Snapshot()), nil
}

func (s *Source) gather(ctx context.Context, w *watched, a *source.Assembler) error {
	for o := (metav1.ListOptions{Limit: lookPage}); ; {
		list := w.list()
		if err := s.request(w, &o).Do(ctx).Into(list); err != nil {
			return err
		}
		err := meta.EachListItem(list, func(obj runtime.Object) error {
			converted, err := source.Convert(obj)
			if err == nil {
				a.Set(converted)
			}
			return err
		})
		if err != nil {
			return err
		}
		page, err := meta.ListAccessor(list)
		if err != nil {
			return err
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}
