package process

import (
	"errors"
	"reflect"

	"github.com/fairway-net/fairway/routes/bgp"
)

// A step is a part of the way from one list of paths to another: so many are kept, the next so many are left out, then others come.
type step struct {
	Keep, Skip int
	Add        []bgp.Path
}

// difference returns the steps from one list of paths to another. They are few where both are in the order of a Table, and right
// for any.
func difference(have, want []bgp.Path) (steps []step) {
	var s step
	same, changed := sameness(), false
	for len(have) > 0 || len(want) > 0 {
		order := 0
		switch {
		case len(have) == 0:
			order = 1
		case len(want) == 0:
			order = -1
		case same(&have[0], &want[0]):
			if s.Skip > 0 || len(s.Add) > 0 {
				steps, s = append(steps, s), step{}
			}
			s.Keep++
			have, want = have[1:], want[1:]
			continue
		default:
			order = have[0].Prefix.Compare(want[0].Prefix)
		}
		changed = true
		if order <= 0 {
			s.Skip++
			have = have[1:]
		}
		if order >= 0 {
			s.Add = append(s.Add, want[0])
			want = want[1:]
		}
	}
	if !changed {
		return nil
	}
	return append(steps, s)
}

// sameness tells paths apart by all that is sent of them. Most share their attributes with others, so which of these are equal is
// remembered.
func sameness() func(a, b *bgp.Path) bool {
	known := map[[2]*bgp.Attributes]bool{}
	return func(a, b *bgp.Path) bool {
		x, y := *a, *b
		x.Attributes, y.Attributes, x.Service, y.Service = nil, nil, nil, nil
		if x != y {
			return false
		}
		if a.Attributes == b.Attributes {
			return true
		}
		pair := [2]*bgp.Attributes{a.Attributes, b.Attributes}
		equal, ok := known[pair]
		if !ok {
			equal = reflect.DeepEqual(a.Attributes, b.Attributes)
			known[pair] = equal
		}
		return equal
	}
}

var errSteps = errors.New("the difference is to other paths than there are")

// follow applies steps to a list of paths, which is not changed; without any it is the result.
func follow(have []bgp.Path, steps []step) ([]bgp.Path, error) {
	if len(steps) == 0 {
		return have, nil
	}
	size := len(have)
	for _, s := range steps {
		size += len(s.Add)
	}
	want := make([]bgp.Path, 0, size)
	for _, s := range steps {
		if s.Keep < 0 || s.Skip < 0 || s.Keep > len(have) || s.Skip > len(have)-s.Keep {
			return nil, errSteps
		}
		want = append(append(want, have[:s.Keep]...), s.Add...)
		have = have[s.Keep+s.Skip:]
	}
	if len(have) > 0 {
		return nil, errSteps
	}
	return want, nil
}
