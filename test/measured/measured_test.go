package measured

import (
	"maps"
	"path/filepath"
	"testing"
	"time"
)

// TestRead: the worst of what a test and its parts measured is read again, under the name of its package.
func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "measured")
	Flow(t, 1, 2, time.Second) // there is no file yet
	if all, err := Read(file); len(all) > 0 || err != nil {
		t.Fatalf("without a file: %v, %v", all, err)
	}
	t.Setenv(FileEnv, file)
	Flow(t, 3, 100, time.Second)
	t.Run("part", func(t *testing.T) {
		Flow(t, 5, 50, time.Millisecond)
		Repair(t, 2*time.Second)
	})
	Repair(t, time.Second)
	all, err := Read(file)
	want := map[Test]Measurement{{"test/measured", "TestRead"}: {Failed: 5, Attempts: 50, Gap: time.Second, Repair: 2 * time.Second, Flows: 2, Repairs: 2}}
	if err != nil || !maps.Equal(all, want) {
		t.Errorf("%v, %v, expected %v", all, err, want)
	}
}
