package iptables

import "strings"

// Rules counts the rules that the input adds to a table. A rule of a chain that is written anew counts, changed or not.
func (r *Restore) Rules(table string) (n int) {
	inside := false
	for line := range strings.Lines(r.String()) {
		switch {
		case line[0] == '*':
			inside = line[1:len(line)-1] == table
		case inside && (strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, "-I ")):
			n++
		}
	}
	return n
}
