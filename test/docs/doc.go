// Package docs runs the commands of the README and of docs/: a command in a fenced block of the language sh is one that a
// reader may type, so a test must have typed it before.
//
// They are typed on a node of a lab with a running agent. Those that start with kubectl are run against a real API server
// by test/e2e, those of the page about looking inside on a node of the demo by test/demo. The targets of make are checked to
// exist; each has a test of its own.
package docs

import (
	"os"
	"path/filepath"
	"strings"
)

// A Command is one command of a document.
type Command struct {
	File string
	Text string
}

// Commands returns the commands of README.md and docs/*.md below the module's root, in their order. A line that ends with
// a backslash goes on with the next one.
func Commands(root string) ([]Command, error) {
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	var all []Command
	for _, file := range append([]string{filepath.Join(root, "README.md")}, files...) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, c := range commandsOf(string(text)) {
			all = append(all, Command{filepath.Base(file), c})
		}
	}
	return all, nil
}

func commandsOf(text string) (commands []string) {
	in := false
	continued := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case !in:
			in = line == "```sh"
		case line == "```":
			in = false
		case line == "" || line[0] == '#':
		case strings.HasSuffix(line, "\\"):
			continued += strings.TrimSuffix(line, "\\") + " "
		default:
			commands = append(commands, continued+line)
			continued = ""
		}
	}
	return commands
}
