package doctor

import (
	"slices"
	"strings"
)

// A ConfigFile is a file of configuration with its text.
type ConfigFile struct{ Name, Text string }

// ManageForeignRoutes reads the setting of systemd-networkd out of its files, in the order in which they count: of several lines the
// last one does. from is the file that it is from, empty when no file has it: then it is yes (networkd.conf(5)).
//
// Files are of systemd.syntax(7): sections, comments that begin with # or ;, lines that go on after a backslash. What is no boolean
// is passed over, as systemd does.
func ManageForeignRoutes(files []ConfigFile) (yes bool, from string) {
	yes = true
	for _, f := range files {
		section := ""
		for line := range strings.Lines(strings.ReplaceAll(f.Text, "\\\n", " ")) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
				continue
			}
			key, value, found := strings.Cut(line, "=")
			if !found || section != "[Network]" || strings.TrimSpace(key) != "ManageForeignRoutes" {
				continue
			}
			switch v := strings.ToLower(strings.TrimSpace(value)); {
			case slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, v):
				yes, from = true, f.Name
			case slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, v):
				yes, from = false, f.Name
			}
		}
	}
	return yes, from
}
