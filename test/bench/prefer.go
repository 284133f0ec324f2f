package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// preferred runs f while this process runs before others, so that a machine with other work to do disturbs it less. That is
// true of all its threads: one that had to wait might hold what f needs.
func preferred(f func() error) error {
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return fmt.Errorf("getpriority: %w", err)
	}
	if err := prefer(-20); err != nil {
		return err
	}
	return errors.Join(f(), prefer(20-own)) // the system call returns 20 less the nice value
}

// prefer gives all threads of this process a nice value.
func prefer(nice int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("setpriority: %w", err)
		}
	}
	return nil
}
