package source

import (
	"strconv"
	"strings"
	"unique"
)

// The limits of RFC 1123 names as Kubernetes applies them.
const (
	maxLabel     = 63
	maxSubdomain = 253
	maxUID       = 128
)

func lowerOrDigit(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// isLabel reports whether s is an RFC 1123 label: lower-case letters, digits and inner hyphens, up to 63. It is the rule
// for namespaces, Services and ports.
func isLabel(s string) bool { return len(s) <= maxLabel && isDashed(s) }

// isSubdomain reports whether s is an RFC 1123 subdomain: such labels, of any length, joined by dots, up to 253. It is
// the rule for Nodes and EndpointSlices.
func isSubdomain(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isDashed(part) {
			return false
		}
	}
	return true
}

func isDashed(s string) bool {
	if s == "" || !lowerOrDigit(s[0]) || !lowerOrDigit(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !lowerOrDigit(c) && c != '-' {
			return false
		}
	}
	return true
}

// isLabelValue reports whether s can be the value of a Kubernetes label and is not empty: letters, digits, and inside
// also '-', '_' and '.'. Zones are such values.
func isLabelValue(s string) bool {
	if s == "" || len(s) > maxLabel {
		return false
	}
	for i := range len(s) {
		c := s[i]
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '_' || c == '.')
		if !inner && !lowerOrDigit(c) && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// isUID reports whether s can be the UID of an object. The API promises nothing about its form; in practice it is a
// UUID, and for static pods and old nodes a name.
func isUID(s string) bool {
	if len(s) > maxUID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !lowerOrDigit(c) && (c < 'A' || c > 'Z') && !strings.ContainsRune("-._:", rune(c)) {
			return false
		}
	}
	return true
}

// plain returns s as it may be shown to people: itself when it could be a name, else quoted and cut.
func plain(s string) string {
	if s == "" || isSubdomain(s) {
		return s
	}
	return quoted(s)
}

// quoted returns s in quotes, without control characters, cut to a length that a Note can bear.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// intern returns one copy of a string that many objects repeat: 50,000 endpoints name the same few nodes.
func intern(s string) string { return unique.Make(s).Value() }
