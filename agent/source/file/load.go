package file

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// ErrNoManifests is the cause when a folder holds no manifest.
var ErrNoManifests = errors.New("no *.yaml, *.yml or *.json in the folder (for an empty cluster, put in a file with only a comment)")

// Load reads files, whatever their names, and folders, and returns what they hold together. Its Host is that of the Host
// document, nil without one. The error names every file that is broken: errors.As finds the first *Error.
func Load(paths ...string) (*cluster.Snapshot, error) {
	var r reader
	items, err := r.read(paths)
	if err != nil {
		return nil, err
	}
	a := source.NewAssembler()
	snapshot := *assemble(a, items)
	for _, it := range items {
		if it.host != nil {
			snapshot.Host = it.host
		}
	}
	return &snapshot, nil
}

// assemble makes the items all that the Assembler holds.
func assemble(a *source.Assembler, items []item) *cluster.Snapshot {
	byKind := map[source.Kind][]*source.Object{}
	for _, it := range items {
		if it.object != nil {
			byKind[it.object.ID.Kind] = append(byKind[it.object.ID.Kind], it.object)
		}
	}
	for _, kind := range source.Kinds {
		a.Replace(kind, byKind[kind])
	}
	return a.Snapshot()
}

// A reader reads files, and does not decode again what it has read before.
type reader struct {
	known map[string]decoded
}

type decoded struct {
	sum   [sha256.Size]byte
	items []item
	err   error
}

// read returns everything that the paths hold, or all that is wrong with it.
func (r *reader) read(paths []string) ([]item, error) {
	var items []item
	var faults []error
	known := map[string]decoded{}
	for _, path := range paths {
		files, err := manifests(path)
		if err != nil {
			faults = append(faults, err)
		}
		for _, f := range files {
			d := r.file(f)
			known[f] = d
			items = append(items, d.items...)
			if d.err != nil {
				faults = append(faults, d.err)
			}
		}
	}
	r.known = known
	if len(faults) == 0 {
		faults = duplicates(items)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return items, nil
}

func (r *reader) file(path string) decoded {
	data, err := os.ReadFile(path)
	if err != nil {
		return decoded{err: fmt.Errorf("read manifest: %w", err)}
	}
	sum := sha256.Sum256(data)
	if d, ok := r.known[path]; ok && d.sum == sum {
		return d
	}
	items, err := decodeFile(path, data)
	return decoded{sum: sum, items: items, err: err}
}

// manifests returns the path itself when it is a file, or the manifests in the folder in order of their names.
func manifests(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var files []string
	for _, e := range entries {
		if name := filepath.Join(path, e.Name()); isManifest(e.Name()) && !isFolder(name) {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		return nil, &Error{File: path, Err: ErrNoManifests}
	}
	return files, nil
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// isFolder follows symbolic links, as a mounted ConfigMap consists of them. A dangling one is no folder, so reading it
// gives the error.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// duplicates finds objects that are given more than once. Which of the two is meant, only the writer knows.
func duplicates(items []item) []error {
	var faults []error
	seen := map[string]place{}
	for _, it := range items {
		key := hostKind + " document"
		if it.object != nil {
			key = it.object.ID.String()
		}
		if first, ok := seen[key]; ok {
			faults = append(faults, it.at.fault(fmt.Errorf("%s is given a second time; the first is at %s", key, first)))
			continue
		}
		seen[key] = it.at
	}
	return faults
}
