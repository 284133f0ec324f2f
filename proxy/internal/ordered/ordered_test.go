package ordered_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fairway-net/fairway/proxy/internal/ordered"
)

// An element has a rank that it shares with others.
type element struct{ rank int }

func byRank(a, b *element) int { return cmp.Compare(a.rank, b.rank) }

// TestEdit compares with filtering and sorting everything.
func TestEdit(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	list := []*element{}
	for step := range 2000 {
		var gone, fresh, kept []*element
		for _, e := range list {
			if r.IntN(4) == 0 {
				gone = append(gone, e)
			} else {
				kept = append(kept, e)
			}
		}
		for range r.IntN(6) {
			fresh = append(fresh, &element{r.IntN(12)})
		}
		r.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
		before := slices.Clone(list)
		got := ordered.Edit(list, gone, slices.Clone(fresh), byRank)
		if !slices.Equal(list, before) {
			t.Fatalf("step %d: Edit changed the list that it was given", step)
		}
		if !slices.IsSortedFunc(got, byRank) {
			t.Fatalf("step %d: the result is not in order", step)
		}
		if len(got) != len(kept)+len(fresh) {
			t.Fatalf("step %d: %d elements, expected %d", step, len(got), len(kept)+len(fresh))
		}
		for _, e := range append(kept, fresh...) {
			if !slices.Contains(got, e) {
				t.Fatalf("step %d: an element is missing", step)
			}
		}
		list = got
	}
}
