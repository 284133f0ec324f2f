package netfilter

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// lockFile returns the path of the xtables lock as the legacy binaries determine it (libxtables, XT_LOCK_NAME).
func lockFile() string {
	if path := os.Getenv("XTABLES_LOCKFILE"); path != "" {
		return path
	}
	return "/run/xtables.lock"
}

// lockHolder names the process that holds the xtables lock: "pid 4711 (firewalld)". It is empty when nobody does any
// more, or when the holder is outside of our PID namespace, where the kernel does not show it.
func lockHolder() string {
	info, err := os.Stat(lockFile())
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	pid := flockHolder(locks, stat.Ino)
	if pid == 0 {
		return ""
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("pid %d (%s)", pid, strings.TrimSpace(string(comm)))
}

// flockHolder finds in the text of /proc/locks the process that has a flock(2) on an inode; 0 when there is none.
// The device is not compared: on overlayfs and btrfs it differs from what stat(2) says.
//
//	1: FLOCK  ADVISORY  WRITE 24309 fe:00:9977863 0 EOF
//	1: -> FLOCK  ADVISORY  WRITE 24310 fe:00:9977863 0 EOF     (one that waits)
func flockHolder(locks io.Reader, inode uint64) (pid int) {
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		_, ino, _ := strings.Cut(fields[5], ":")
		_, ino, _ = strings.Cut(ino, ":")
		if n, err := strconv.ParseUint(ino, 10, 64); err != nil || n != inode {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
