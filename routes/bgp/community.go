package bgp

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A Community is a BGP community (RFC 1997).
type Community uint32

// A LargeCommunity is a large BGP community (RFC 8092).
type LargeCommunity [3]uint32

// wellKnown are the communities with a name in IANA's registry, as the routers' configurations spell them.
var wellKnown = map[string]Community{
	"graceful-shutdown":   0xffff0000, // RFC 8326
	"accept-own":          0xffff0001, // RFC 7611
	"blackhole":           0xffff029a, // RFC 7999
	"no-export":           0xffffff01,
	"no-advertise":        0xffffff02,
	"no-export-subconfed": 0xffffff03,
	"no-peer":             0xffffff04, // RFC 3765
}

// String returns the well-known name, or "64512:100".
func (c Community) String() string {
	for name, value := range wellKnown {
		if value == c {
			return name
		}
	}
	return fmt.Sprintf("%d:%d", uint32(c)>>16, uint32(c)&0xffff)
}

// MarshalText returns what String does.
func (c Community) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// MarshalText returns what String does.
func (c LargeCommunity) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// String returns "64512:1:2".
func (c LargeCommunity) String() string { return fmt.Sprintf("%d:%d:%d", c[0], c[1], c[2]) }

// AddCommunity adds a community that is written as "64512:100", "64512:1:2" (large) or by its well-known name. The error says
// what would be right.
func (a *Attributes) AddCommunity(text string) error {
	if c, ok := wellKnown[strings.ToLower(text)]; ok {
		a.Communities = append(a.Communities, c)
		return nil
	}
	parts := strings.Split(text, ":")
	bits := map[int]int{2: 16, 3: 32}[len(parts)]
	if bits == 0 {
		return fmt.Errorf("%q is no community, expected two numbers as in 64512:100, three as in 64512:1:2, or one of %s",
			text, strings.Join(slices.Sorted(maps.Keys(wellKnown)), ", "))
	}
	var numbers LargeCommunity
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, bits)
		if err != nil {
			return fmt.Errorf("%q is no community: %q is no number from 0 to %d", text, part, uint64(1)<<bits-1)
		}
		numbers[i] = uint32(n)
	}
	if len(parts) == 2 {
		a.Communities = append(a.Communities, Community(numbers[0]<<16|numbers[1]))
	} else {
		a.LargeCommunities = append(a.LargeCommunities, numbers)
	}
	return nil
}

// equal reports whether two paths would have the same attributes.
func (a *Attributes) equal(b *Attributes) bool {
	return a == b || a.LocalPref == b.LocalPref && a.MED == b.MED && a.Prepend == b.Prepend &&
		slices.Equal(a.Communities, b.Communities) && slices.Equal(a.LargeCommunities, b.LargeCommunities)
}

// String returns what differs from the defaults, as in " communities no-export 64512:100 med 10".
func (a *Attributes) String() string {
	var b strings.Builder
	if len(a.Communities)+len(a.LargeCommunities) > 0 {
		b.WriteString(" communities")
		for _, c := range a.Communities {
			b.WriteString(" " + c.String())
		}
		for _, c := range a.LargeCommunities {
			b.WriteString(" " + c.String())
		}
	}
	if a.LocalPref != DefaultLocalPref {
		fmt.Fprintf(&b, " local-pref %d", a.LocalPref)
	}
	if a.MED != 0 {
		fmt.Fprintf(&b, " med %d", a.MED)
	}
	if a.Prepend != 0 {
		fmt.Fprintf(&b, " prepend %d", a.Prepend)
	}
	return b.String()
}
