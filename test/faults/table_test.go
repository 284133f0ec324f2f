package faults

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testsOf returns the names of a package's tests.
func testsOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// TestTable: each row of the document's table has tests, each test of this package is of exactly one row, and what make faults has to
// run in other packages, the Makefile names.
func TestTable(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	rows, of := 0, map[string][]string{} // the rows of a test
	for line := range strings.Lines(string(text)) {
		r, ok := parseRow(strings.TrimSuffix(line, "\n"))
		if !ok {
			continue
		}
		rows++
		dir, found := ".", false
		if r.pkg != "" {
			dir = filepath.Join("../..", r.pkg)
			if !strings.Contains(string(makefile), "./"+r.pkg) || !strings.Contains(string(makefile), r.run) {
				t.Errorf("row %s: make faults does not run it", r.run)
			}
		}
		for _, name := range testsOf(t, dir) {
			if strings.HasPrefix(name, "Test"+r.run) {
				found = true
				if r.pkg == "" {
					of[name] = append(of[name], r.run)
				}
			}
		}
		if !found {
			t.Errorf("row %s has no test in %s", r.run, dir)
		}
	}
	if rows < 30 {
		t.Errorf("the table has only %d rows", rows)
	}
	for _, name := range testsOf(t, ".") {
		if name != t.Name() && len(of[name]) != 1 {
			t.Errorf("%s is in the rows %v, want one", name, of[name])
		}
	}
}
