package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fairway-net/fairway"

// A fence says which packages may import something, and why nobody else may.
type fence struct {
	what   string // an import path, or its beginning when it ends with a slash
	within []string
	reason string
}

// fences hold for everything but tests. A place that ends with "/..." includes what is below it.
var fences = []fence{
	{"k8s.io/api/", []string{"agent/source/...", "agent/report", "test/..."}, "Kubernetes types stop at the door: the agent thinks in package cluster's words"},
	{"k8s.io/apimachinery/", []string{"agent/source/...", "agent/report", "test/..."}, "Kubernetes types stop at the door"},
	{"k8s.io/client-go/", []string{"agent/source/...", "agent/report", "test/..."}, "only sources and the reporter speak to the API"},
	{"github.com/vishvananda/netlink", []string{"routes/rtnl", "proxy/netfilter", "test/..."}, "the kernel has few doors"},
	{"github.com/osrg/gobgp/", []string{"routes/bgp/speaker"}, "gobgp v3 gets no more releases; one package would change"},
	{"github.com/coreos/go-iptables/", []string{"proxy/netfilter", "test/..."}, "the kernel has few doors"},
	{"os/exec", []string{"proxy/netfilter", "routes/bgp/process", "test/..."}, "only iptables is run as a program, and this one itself, for what BGP neighbours may end"},
	{module + "/test/", []string{"test/..."}, "the agent does not depend on its tests"},
	{module + "/routes", []string{"agent", "routes/...", "cmd/...", "test/..."}, "services do not know routes"},
	{module + "/proxy", []string{"agent", "proxy/...", "cmd/...", "test/..."}, "routes do not know services"},
	{module + "/agent", []string{"cmd/...", "agent/kuberouter", "test/..."}, "the agent is on top; what writes its configuration uses it"},
}

// pure are packages that decide and do no I/O; what they may import of the standard library is limited.
var pure = []string{"agent/cluster", "agent/doctor", "routes", "routes/bgp", "proxy", "proxy/iptables"}

var impure = []string{"os", "net", "net/http", "syscall", "io/ioutil", "golang.org/x/sys/unix", "k8s.io/klog/v2"}

func (f fence) covers(imported string) bool {
	if strings.HasSuffix(f.what, "/") {
		return strings.HasPrefix(imported, f.what)
	}
	return imported == f.what || !strings.HasPrefix(f.what, module) && strings.HasPrefix(imported, f.what+"/")
}

func (f fence) lets(dir string) bool {
	for _, w := range f.within {
		if below, deep := strings.CutSuffix(w, "/..."); dir == w || deep && (dir == below || strings.HasPrefix(dir, below+"/")) {
			return true
		}
	}
	return false
}

// sources calls visit for every Go file of the module, with its folder relative to the module.
func sources(t *testing.T, mode parser.Mode, visit func(dir, file string, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || len(name) > 2 && name[0] == '.' {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, mode)
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(p, "../"))
		visit(path.Dir(rel), rel, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFences(t *testing.T) {
	seen := map[string]bool{}
	sources(t, parser.ImportsOnly, func(dir, file string, f *ast.File) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		seen[dir] = true
		for _, i := range f.Imports {
			imported := strings.Trim(i.Path.Value, `"`)
			for _, fence := range fences {
				if fence.covers(imported) && !fence.lets(dir) {
					t.Errorf("%s imports %s: %s", file, imported, fence.reason)
				}
			}
			for _, p := range pure {
				for _, no := range impure {
					if dir == p && imported == no {
						t.Errorf("%s imports %s: package %s decides, and does no I/O", file, imported, p)
					}
				}
			}
			if dir == "agent/cluster" && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s: the vocabulary imports the standard library only", file, imported)
			}
		}
	})
	for _, p := range pure {
		if !seen[p] {
			t.Errorf("package %s, which a rule is about, does not exist", p)
		}
	}
}

// TestPackageDocs: each package has one package comment, which says what it is for.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	packages := map[string]bool{}
	sources(t, parser.PackageClauseOnly|parser.ParseComments, func(dir, file string, f *ast.File) {
		if strings.HasSuffix(f.Name.Name, "_test") {
			return
		}
		packages[dir] = true
		if f.Doc != nil {
			docs[dir] = append(docs[dir], file)
			if text := f.Doc.Text(); len(strings.Fields(text)) < 12 {
				t.Errorf("%s: the package comment says little: %q", file, text)
			}
		}
	})
	for dir := range packages {
		if n := len(docs[dir]); n != 1 {
			t.Errorf("package %s has %d package comments, expected one: %v", dir, n, docs[dir])
		}
	}
}

// TestDependencies: each direct dependency earns its place in a line of the README's table, and the table has no other.
func TestDependencies(t *testing.T) {
	mod := read(t, "../go.mod")
	readme := read(t, "../README.md")
	direct := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s*(?:require )?([a-z0-9.-]+\.[a-z]+/\S+) v\S+$`).FindAllStringSubmatch(mod, -1) {
		direct[m[1]] = true
	}
	if len(direct) == 0 {
		t.Fatal("go.mod has no direct dependencies")
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9.-]+\\.[a-z]+/\\S+)` \\|").FindAllStringSubmatch(readme, -1) {
		listed[m[1]] = true
	}
	for d := range direct {
		if !listed[d] {
			t.Errorf("README.md does not say what %s is for", d)
		}
	}
	for d := range listed {
		if !direct[d] {
			t.Errorf("README.md lists %s, which is no direct dependency", d)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// wallClock are the files that may ask what time it is by the clock on the wall, which jumps when somebody sets it, and why. A time that
// Go has from time.Now has the monotonic clock, too, and is compared by that, unless one of these methods drops it.
var wallClock = map[string]string{
	"agent/bgpconfig.go":          "a length of time, cut to seconds",
	"agent/kuberouter/flags.go":   "a length of time, cut to seconds",
	"agent/metrics.go":            "what a metric shows",
	"agent/report/event.go":       "names of Events, which agents on several nodes must agree on",
	"agent/report/report.go":      "the windows of these names; a clock that is set back begins a new one",
	"agent/saved.go":              "what a metric shows",
	"routes/bgp/speaker/clock.go": "it looks for what gobgp times by that clock",
}

// TestWallClock: nothing is timed by the clock on the wall, so that an hour that is skipped or comes twice ends no session, pause or hold
// time.
func TestWallClock(t *testing.T) {
	drop := []string{"Unix", "UnixMilli", "UnixMicro", "UnixNano", "Truncate"}
	seen := map[string]bool{}
	sources(t, parser.SkipObjectResolution, func(_, file string, f *ast.File) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "test/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if method, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains(drop, method.Sel.Name) {
				seen[file] = true
				if wallClock[file] == "" {
					t.Errorf("%s asks for the time by the clock on the wall (%s), which jumps when it is set; say why that is right in wallClock", file, method.Sel.Name)
				}
			}
			return true
		})
	})
	for file := range wallClock {
		if !seen[file] {
			t.Errorf("%s, which may ask for the time by the clock on the wall, does not", file)
		}
	}
}
