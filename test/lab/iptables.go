package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Backend is one of the two kinds of iptables; its text is what --iptables-backend takes.
type Backend string

// The backends.
const (
	Legacy Backend = "legacy"
	NFT    Backend = "nft"
)

// Backends lists both, to run a test over.
var Backends = []Backend{Legacy, NFT}

// Tool returns the name of a tool of a backend and family: Tool(NFT, IPv6, "-save") is "ip6tables-nft-save". The
// tool is "", "-save" or "-restore".
func Tool(b Backend, f cluster.Family, tool string) string {
	name := "iptables-"
	if f == cluster.IPv6 {
		name = "ip6tables-"
	}
	return name + string(b) + tool
}

// ToolFolder makes a folder below dir in which the iptables tools without a suffix are those of a backend, as on a host that uses it:
// kube-proxy runs what it finds in the PATH by these names.
func ToolFolder(dir string, b Backend) (string, error) {
	folder := filepath.Join(dir, "tools-"+string(b))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	for _, f := range cluster.Families {
		for _, tool := range []string{"", "-save", "-restore"} {
			name := Tool(b, f, tool)
			target, err := exec.LookPath(name)
			if err != nil {
				return "", err
			}
			link := filepath.Join(folder, strings.Replace(name, "-"+string(b), "", 1))
			if err := os.Symlink(target, link); err != nil && !os.IsExist(err) {
				return "", err
			}
		}
	}
	return folder, nil
}

// otherTables is what iptables-nft says on its standard error, so anywhere between or within the lines, when legacy tables are there.
var otherTables = regexp.MustCompile(`# Warning: ip6?tables-legacy tables present, use ip6?tables-legacy-save to see them\n`)

var policyCounters = regexp.MustCompile(`(?m)^(:\S+ \S+) \[\d+:\d+\]$`)

// Save returns what iptables-save prints of a table, or of all tables that exist when the name is empty, without comment
// lines and with all counters zero, so that two texts of the same rules are equal.
func (ns *Namespace) Save(b Backend, f cluster.Family, table string) (string, error) {
	var args []string
	if table != "" {
		args = []string{"-t", table}
	}
	out, err := ns.Run(Tool(b, f, "-save"), args...)
	if err != nil {
		return "", err
	}
	var kept strings.Builder
	for line := range strings.Lines(otherTables.ReplaceAllString(out, "")) {
		if !strings.HasPrefix(line, "#") {
			kept.WriteString(line)
		}
	}
	return policyCounters.ReplaceAllString(kept.String(), "$1 [0:0]"), nil
}

// Restore loads text as iptables-restore takes it; with --noflush, chains that it does not name stay.
func (ns *Namespace) Restore(b Backend, f cluster.Family, text string, noflush bool) error {
	var args []string
	if noflush {
		args = append(args, "--noflush")
	}
	if b == Legacy {
		args = append(args, "-w", "5")
	}
	if _, err := ns.RunInput(text, Tool(b, f, "-restore"), args...); err != nil {
		return fmt.Errorf("load rules: %w", err)
	}
	return nil
}
