package doctor

import (
	"fmt"
	"io"
	"strings"
)

// Write prints the Report for people. That all is well is said at the end; what is not is the error of who calls it.
func (r Report) Write(w io.Writer) error {
	var b strings.Builder
	if r.Node != "" {
		fmt.Fprintf(&b, "node %s\n", r.Node)
	}
	const indent = 9 // of [unknown]
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-*s %-15s %s (%s)\n", indent, "["+string(f.Level)+"]", f.Name, f.Saw, f.Source)
		for i, line := range strings.Split(f.Do, "\n") {
			switch {
			case f.Do == "":
			case i == 0:
				fmt.Fprintf(&b, "%*s do: %s\n", indent, "", line)
			default:
				fmt.Fprintf(&b, "%*s     %s\n", indent, "", line)
			}
		}
	}
	if r.ExitCode() == 0 {
		all := "all right"
		if counts := r.Counts(); counts != "" {
			all += ", " + counts
		}
		fmt.Fprintln(&b, all)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
