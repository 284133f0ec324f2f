package snapshot

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

const (
	fileName = "snapshot.json.gz"
	// newName is where the next one is written: always the same, so that an agent that is killed leaves no more than one.
	newName = fileName + ".new"
)

// Save writes a Snapshot to a directory, which it makes when it is not there. What was there before stays until the new one is
// complete and on the disk; an error leaves it as it was. Only one at a time may write to a directory.
func Save(dir string, s *cluster.Snapshot, nodeName string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	next := filepath.Join(dir, newName)
	if err := write(next, s, nodeName, now); err != nil {
		_ = os.Remove(next) // a full disk has better uses
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, fileName)); err != nil {
		return err
	}
	return sync(dir)
}

func write(path string, s *cluster.Snapshot, nodeName string, now time.Time) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 64<<10)
	if err := Encode(w, s, nodeName, now); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// sync makes the new name survive a power cut.
func sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Load reads what Save wrote to a directory for the same node; errors.Is finds fs.ErrNotExist when there is nothing.
func Load(dir, nodeName string) (*cluster.Snapshot, error) {
	path := filepath.Join(dir, fileName)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := Decode(bufio.NewReaderSize(f, 64<<10), nodeName)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
