package e2e

import (
	"path/filepath"
	"runtime"
	"testing"
)

// sourceDir is the folder of this file, test/e2e; repoDir the repository's.
func sourceDir(tb testing.TB) string {
	tb.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		tb.Fatal("the compiler did not record the path of this file")
	}
	return filepath.Dir(file)
}

func repoDir(tb testing.TB) string { return filepath.Dir(filepath.Dir(sourceDir(tb))) }
