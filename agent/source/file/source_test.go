package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// A recorder takes what a Source publishes and says.
type recorder struct {
	mu        sync.Mutex
	snapshots []*cluster.Snapshot
	errs      []error
}

func run(t *testing.T, dir string) *recorder {
	t.Helper()
	r := &recorder{}
	s := &Source{Dir: dir, OnError: func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.errs = append(r.errs, err)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(s *cluster.Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.snapshots = append(r.snapshots, s)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func (r *recorder) last() *cluster.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.snapshots) == 0 {
		return nil
	}
	return r.snapshots[len(r.snapshots)-1]
}

func (r *recorder) lastError() (said int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.errs) == 0 {
		return 0, nil
	}
	return len(r.errs), r.errs[len(r.errs)-1]
}

func until(t *testing.T, condition func() bool, got func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute it is: %s", got())
		}
	}
}

func (r *recorder) await(t *testing.T, want string) *cluster.Snapshot {
	t.Helper()
	until(t, func() bool { return text(r.last()) == want }, func() string { return text(r.last()) })
	return r.last()
}

func (r *recorder) awaitError(t *testing.T, part string) {
	t.Helper()
	matches := func() bool {
		_, err := r.lastError()
		return part == "" && err == nil || part != "" && err != nil && strings.Contains(err.Error(), part)
	}
	until(t, matches, func() string { _, err := r.lastError(); return fmt.Sprint(err) })
}

func n(name string, third int) string {
	return fmt.Sprintf(nodeYAML, name, fmt.Sprintf("10.200.%d.0/24", third))
}

// rename writes a file as it should be done.
func rename(t *testing.T, path, content string) {
	t.Helper()
	put(t, filepath.Join(filepath.Dir(path), ".new"), content)
	if err := os.Rename(filepath.Join(filepath.Dir(path), ".new"), path); err != nil {
		t.Fatal(err)
	}
}

func TestSourceFollowsFiles(t *testing.T) {
	dir := write(t, "a.yaml", n("n1", 1)+"---\n"+n("n2", 2))
	r := run(t, dir)
	first := r.await(t, "n1[10.200.1.0/24] n2[10.200.2.0/24]")
	put(t, filepath.Join(dir, "b.yaml"), n("n3", 3))
	r.await(t, "n1[10.200.1.0/24] n2[10.200.2.0/24] n3[10.200.3.0/24]")
	rename(t, filepath.Join(dir, "a.yaml"), n("n1", 1)+"---\n# changed\n"+n("n2", 9))
	second := r.await(t, "n1[10.200.1.0/24] n2[10.200.9.0/24] n3[10.200.3.0/24]")
	if first.Nodes[0] != second.Nodes[0] || first.Nodes[1] == second.Nodes[1] {
		t.Error("not the changed Node, and only it, has a new value")
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	r.await(t, "n1[10.200.1.0/24] n2[10.200.9.0/24]")
	if said, err := r.lastError(); said != 0 {
		t.Errorf("an error was reported: %v", err)
	}
}

func TestSourceKeepsTheLastGoodState(t *testing.T) {
	dir := write(t, "a.yaml", n("n1", 1), "b.yaml", n("n2", 2))
	r := run(t, dir)
	good := r.await(t, "n1[10.200.1.0/24] n2[10.200.2.0/24]")
	put(t, filepath.Join(dir, "b.yaml"), "kind: Node\nmetadata: [\n")
	r.awaitError(t, "b.yaml:2: document 1: ")
	put(t, filepath.Join(dir, "a.yaml"), n("n1", 7)) // good, but not alone
	put(t, filepath.Join(dir, "b.yaml"), "kind: Node\n\n\nmetadata: [\n")
	r.awaitError(t, "b.yaml:4: document 1: ")
	if r.last() != good {
		t.Errorf("published while broken: %s", text(r.last()))
	}
	put(t, filepath.Join(dir, "b.yaml"), n("n2", 2))
	r.await(t, "n1[10.200.7.0/24] n2[10.200.2.0/24]")
	r.awaitError(t, "")
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.errs, func(err error) bool { return err == nil }) {
		t.Error("not told that the folder is good again")
	}
}

func TestSourceWaitsForAGoodStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "late")
	r := run(t, dir)
	r.awaitError(t, "no such file")
	put(t, filepath.Join(dir, "a.yaml"), "kind: [")
	r.awaitError(t, "a.yaml:1: ")
	if r.last() != nil {
		t.Errorf("published: %s", text(r.last()))
	}
	put(t, filepath.Join(dir, "a.yaml"), "# an empty cluster\n")
	r.await(t, "")
	r.awaitError(t, "")
}

func TestSourceFollowsTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	put(t, filepath.Join(dir, "a.yaml"), n("n1", 1))
	r := run(t, dir)
	good := r.await(t, "n1[10.200.1.0/24]")
	for _, gone := range []struct {
		how string
		do  func() error
	}{
		{"removed", func() error { return os.RemoveAll(dir) }},
		{"moved away", func() error { return os.Rename(dir, dir+".old") }},
	} {
		if err := gone.do(); err != nil {
			t.Fatal(err)
		}
		r.awaitError(t, "no such file")
		if r.last() != good {
			t.Errorf("a folder that was %s reads as %q", gone.how, text(r.last()))
		}
		put(t, filepath.Join(dir, "a.yaml"), n("n1", 1))
		r.awaitError(t, "")
		if r.last() != good {
			t.Errorf("the same state again was published")
		}
		// And it is watched again.
		put(t, filepath.Join(dir, "b.yaml"), n("n2", 2))
		r.await(t, "n1[10.200.1.0/24] n2[10.200.2.0/24]")
		if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
			t.Fatal(err)
		}
		good = r.await(t, "n1[10.200.1.0/24]")
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	r.awaitError(t, ErrNoManifests.Error())
	if r.last() != good {
		t.Errorf("an emptied folder reads as %q", text(r.last()))
	}
}

// A ConfigMap is mounted as links through ..data, which is replaced in one rename.
func TestSourceFollowsConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, content string) {
		t.Helper()
		put(t, filepath.Join(dir, name, "a.yaml"), content)
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..2026_1", n("n1", 1))
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	r := run(t, dir)
	r.await(t, "n1[10.200.1.0/24]")
	version("..2026_2", n("n1", 2))
	if err := os.RemoveAll(filepath.Join(dir, "..2026_1")); err != nil {
		t.Fatal(err)
	}
	r.await(t, "n1[10.200.2.0/24]")
}

// A folder that has lost more than half of a cluster is looked at once more before that is believed; what is only being written never
// takes anything away, and what is really gone goes.
func TestSourceDoubtsAShrunkenFolder(t *testing.T) {
	var all, few string
	for i := range 20 {
		all += "---\n" + n(fmt.Sprintf("n%02d", i), i)
		if i < 4 {
			few = all
		}
	}
	dir := write(t, "a.yaml", all)
	doubts := make(chan string, 10)
	var mu sync.Mutex
	var published []int
	s := &Source{Dir: dir, OnDoubt: func(why string) { doubts <- why }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(s *cluster.Snapshot) {
			mu.Lock()
			defer mu.Unlock()
			published = append(published, len(s.Nodes))
		})
	}()
	defer func() { cancel(); <-ended }()
	got := func() []int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(published)
	}
	says := func() string { return fmt.Sprint(got()) }
	until(t, func() bool { return says() == "[20]" }, says)
	path := filepath.Join(dir, "a.yaml")
	rename(t, path, few)
	if why := <-doubts; why != "4 of 20 Nodes are left" {
		t.Errorf("doubted: %q", why)
	}
	rename(t, path, all+"# whole again\n")
	if why := <-doubts; why != "" {
		t.Errorf("still doubted: %q", why)
	}
	rename(t, path, all+"---\n"+n("n20", 20))
	until(t, func() bool { return says() == "[20 20 21]" }, says)
	rename(t, path, few)
	until(t, func() bool { return says() == "[20 20 21 4]" }, says)
	if first, second := <-doubts, <-doubts; first != "4 of 21 Nodes are left" || second != "" {
		t.Errorf("doubted: %q, then %q", first, second)
	}
}

// The first look is compared with what was known before the start.
func TestSourceDoubtsFromTheStart(t *testing.T) {
	dir := write(t, "a.yaml", n("n1", 1))
	doubts, published := make(chan string, 10), make(chan *cluster.Snapshot, 10)
	s := &Source{Dir: dir, OnDoubt: func(why string) { doubts <- why }, Before: source.Census{Nodes: 12}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(s *cluster.Snapshot) { published <- s }) }()
	defer func() { cancel(); <-ended }()
	if why := <-doubts; why != "1 of 12 Nodes are left" || len(published) > 0 {
		t.Errorf("doubted: %q; published: %d", why, len(published))
	}
	if s := <-published; len(s.Nodes) != 1 {
		t.Errorf("published: %s", text(s))
	}
}
