package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// An instruction is one of a Dockerfile, with continued lines joined.
type instruction struct {
	name string
	args string
}

// parseDockerfile splits a Dockerfile into instructions. It knows what ours uses.
func parseDockerfile(text string) []instruction {
	var out []instruction
	var joined string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		if part, continued := strings.CutSuffix(line, "\\"); continued {
			joined += part
			continue
		}
		name, args, _ := strings.Cut(joined+line, " ")
		out = append(out, instruction{strings.ToUpper(name), args})
		joined = ""
	}
	return out
}

func dockerfile(tb testing.TB) []instruction {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(repoDir(tb), "Dockerfile"))
	if err != nil {
		tb.Fatal(err)
	}
	return parseDockerfile(string(text))
}

// A built is the outcome of the Dockerfile's first stage.
type built struct {
	path string
	err  error
}

// imageBuild runs the first stage of the Dockerfile without a container engine: its COPY lines into an empty folder,
// there its go build line. So a source that is not copied, or that .dockerignore leaves out, is missing here too.
var imageBuild = sync.OnceValue(func() built {
	path, err := runBuildStage()
	return built{path, err}
})

const imageVersion = "v0.0.0-e2e"

// builtAgent is the agent as the image has it.
func builtAgent(tb testing.TB) string {
	tb.Helper()
	b := imageBuild()
	if b.err != nil {
		tb.Fatalf("build stage of the Dockerfile: %v", b.err)
	}
	return b.path
}

func runBuildStage() (string, error) {
	repo, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(repo, "Dockerfile"))
	if err != nil {
		return "", err
	}
	ignored, err := readDockerignore(filepath.Join(repo, ".dockerignore"))
	if err != nil {
		return "", err
	}
	src := filepath.Join(imageDir(), "src")
	for _, in := range parseDockerfile(string(text)) {
		if strings.HasPrefix(in.args, "--from=") {
			break // the second stage
		}
		switch {
		case in.name == "COPY":
			err = copySources(repo, src, strings.Fields(in.args), ignored)
		case in.name == "RUN" && strings.Contains(in.args, "go build"):
			err = runBuildLine(src, in.args)
		}
		if err != nil {
			return "", fmt.Errorf("%s %s: %w", in.name, in.args, err)
		}
	}
	return filepath.Join(imageDir(), "out", "fairway"), nil
}

// imageDir is this process's folder for what the Dockerfile builds.
func imageDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("fairway-e2e-%d", os.Getpid()))
}

// runBuildLine runs the go build line with this machine's go command and module cache.
func runBuildLine(src, line string) error {
	cmd := exec.Command("sh", "-ec", strings.ReplaceAll(line, "/out/", filepath.Join(imageDir(), "out")+"/"))
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOWORK=off", "VERSION="+imageVersion)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// An ignoreRule is a line of .dockerignore. The last one that matches a path, or a folder above it, decides.
type ignoreRule struct {
	pattern *regexp.Regexp
	keep    bool
}

func readDockerignore(path string) ([]ignoreRule, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rules []ignoreRule
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		line, keep := strings.CutPrefix(line, "!")
		pattern := regexp.QuoteMeta(line)
		pattern = strings.ReplaceAll(pattern, `\*\*/`, `(.*/)?`)
		pattern = strings.ReplaceAll(pattern, `\*`, `[^/]*`)
		rules = append(rules, ignoreRule{regexp.MustCompile("^" + pattern + "(/.*)?$"), keep})
	}
	return rules, nil
}

func isIgnored(rules []ignoreRule, path string) bool {
	ignored := false
	for _, r := range rules {
		if r.pattern.MatchString(path) {
			ignored = !r.keep
		}
	}
	return ignored
}

// copySources does what COPY does with files and folders: the last argument is where to.
func copySources(repo, src string, args []string, ignored []ignoreRule) error {
	target := args[len(args)-1]
	for _, from := range args[:len(args)-1] {
		to := filepath.Join(src, target)
		if strings.HasSuffix(target, "/") {
			to = filepath.Join(to, from)
		}
		err := filepath.WalkDir(filepath.Join(repo, from), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(repo, path)
			if err != nil || isIgnored(ignored, rel) {
				return err
			}
			inside, err := filepath.Rel(filepath.Join(repo, from), path)
			if err != nil {
				return err
			}
			return copyFile(path, filepath.Join(to, inside))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

func TestDockerfileBuilds(t *testing.T) {
	out, err := exec.Command(builtAgent(t), "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), imageVersion) {
		t.Errorf("fairway version: %q, %v; want the build argument VERSION, %s", out, err, imageVersion)
	}
}

// TestDockerfileRuns compares what the Dockerfile runs with what the manifests and this test expect to be run.
func TestDockerfileRuns(t *testing.T) {
	all := dockerfile(t)
	for _, want := range []instruction{
		{"COPY", "--from=build /out/fairway " + entrypoint},
		{"ENTRYPOINT", fmt.Sprintf("[%q]", entrypoint)},
		{"USER", "0:0"},
	} {
		if !slices.Contains(all, want) {
			t.Errorf("no %s %s", want.name, want.args)
		}
	}
}

// TestDockerfilePackages asks the Debian that it runs on: the packages exist, and the one of iptables has both kinds.
func TestDockerfilePackages(t *testing.T) {
	var packages []string
	for _, in := range dockerfile(t) {
		_, after, ok := strings.Cut(in.args, "apt-get install ")
		if in.name != "RUN" || !ok {
			continue
		}
		line, _, _ := strings.Cut(after, "&&")
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "-") {
				packages = append(packages, word)
			}
		}
	}
	if !slices.Contains(packages, "iptables") {
		t.Fatalf("packages %v: iptables is missing", packages)
	}
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("this is not Debian: no dpkg")
	}
	for _, p := range packages {
		files, err := exec.Command("dpkg-query", "--listfiles", p).Output()
		if err != nil {
			// Not installed here: then it is at least one that could be.
			if out, err := exec.Command("apt-cache", "show", p).CombinedOutput(); err != nil {
				t.Errorf("package %s: %v: %s", p, err, out)
			}
			continue
		}
		if p == "iptables" {
			checkBothKinds(t, strings.Split(string(files), "\n"))
		}
	}
}

func checkBothKinds(t *testing.T, files []string) {
	t.Helper()
	for _, tool := range []string{"iptables-legacy-restore", "iptables-nft-restore", "ip6tables-legacy-restore", "ip6tables-nft-restore"} {
		if !slices.ContainsFunc(files, func(f string) bool { return filepath.Base(f) == tool }) {
			t.Errorf("package iptables has no %s", tool)
		}
	}
}
