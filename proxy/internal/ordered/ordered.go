// Package ordered changes long ordered lists in a few places, at the cost of copying them: what one changed Service in
// ten thousand moves in a list is found by halves, and the rest is copied in one piece. It sorts nothing that was
// sorted before, and refuses to change a list in place, because somebody may still be reading the old one.
package ordered

import "slices"

// Edit returns a list without some of its elements and with others, in order. list must be in order; what is gone is told
// apart from others of the same rank by identity. In which order elements of the same rank come is not defined. gone and
// fresh need not be in order, but are when Edit returns; list stays as it is.
func Edit[T comparable](list, gone, fresh []T, order func(a, b T) int) []T {
	if len(gone)+len(fresh) == 0 {
		return list
	}
	slices.SortFunc(gone, order)
	slices.SortFunc(fresh, order)
	out := make([]T, 0, max(0, len(list)-len(gone)+len(fresh)))
	// upTo moves what comes before an element from list to out.
	upTo := func(e T) {
		n, _ := slices.BinarySearchFunc(list, e, order)
		out, list = append(out, list[:n]...), list[n:]
	}
	for len(gone)+len(fresh) > 0 {
		if len(gone) == 0 || len(fresh) > 0 && order(fresh[0], gone[0]) < 0 {
			upTo(fresh[0])
			out, fresh = append(out, fresh[0]), fresh[1:]
			continue
		}
		upTo(gone[0])
		n := 1
		for n < len(gone) && order(gone[0], gone[n]) == 0 {
			n++
		}
		for ; len(list) > 0 && order(list[0], gone[0]) == 0; list = list[1:] {
			if !slices.Contains(gone[:n], list[0]) {
				out = append(out, list[0])
			}
		}
		gone = gone[n:]
	}
	return append(out, list...)
}
