package agent

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/doctor"
)

// hostFiles are the host's processes, as far as they are seen, and its files.
type hostFiles struct {
	// proc is /proc, or what is mounted like it.
	proc string
	// root is where the host's files are.
	root string
}

// runs returns the folder below proc of a process of this network namespace that runs a program, itself or by an interpreter; "" when
// none is seen.
func (h hostFiles) runs(program string) (dir string) {
	own, err := os.Readlink(filepath.Join(h.proc, "self/ns/net"))
	if err != nil {
		return ""
	}
	err = eachProcess(h.proc, own, func(at string, _ int, args []string) {
		if slices.ContainsFunc(args[:min(len(args), 2)], func(a string) bool { return filepath.Base(a) == program }) {
			dir = at
		}
	})
	if err != nil {
		return ""
	}
	return dir
}

// allSeen tells whether every process of the host is seen.
func (h hostFiles) allSeen() bool {
	pids, err := os.Readlink(filepath.Join(h.proc, "self/ns/pid"))
	return err == nil && pids == hostPIDs
}

// netifState is what systemd-networkd writes when it runs.
const netifState = "run/systemd/netif/state"

// networkd tells how it stands with systemd-networkd. Where its process is seen, its files are read as it sees them, unless another root
// is given.
func (h hostFiles) networkd() (n doctor.Networkd) {
	process := h.runs("systemd-networkd")
	root, given := h.root, filepath.Clean(h.root) != "/"
	switch {
	case process != "":
		n.Seen, n.Runs = true, true
		if !given {
			root = filepath.Join(process, "root")
		}
	case !given && h.allSeen():
		n.Seen = true
		return n
	case !given:
		n.Unseen = "neither the host's processes nor, without --host-root, its files"
		return n
	default:
		if _, err := os.Stat(filepath.Join(root, "etc/systemd")); err != nil {
			n.Unseen = err.Error()
			return n
		}
		_, err := os.Stat(filepath.Join(root, netifState))
		n.Seen, n.Runs = true, err == nil
		if !n.Runs {
			return n
		}
	}
	files := systemdConfig(root, "networkd.conf")
	n.ManageForeignRoutes, n.File = doctor.ManageForeignRoutes(files)
	if started, ok := h.started(process); ok && n.File != "" {
		info, err := os.Stat(inRoot(root, n.File))
		n.Newer = err == nil && info.ModTime().After(started)
	}
	return n
}

// userHz is the unit of times in /proc/PID/stat, a hundredth of a second on every architecture (proc(5)).
const userHz = 100

// started is when a process was.
func (h hostFiles) started(process string) (time.Time, bool) {
	if process == "" {
		return time.Time{}, false
	}
	stat, err := os.ReadFile(filepath.Join(process, "stat"))
	if err != nil {
		return time.Time{}, false
	}
	up, err := os.ReadFile(filepath.Join(h.proc, "uptime"))
	if err != nil {
		return time.Time{}, false
	}
	// The second field, the name, may have spaces and ends with the last parenthesis; starttime is the 22nd.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const starttime = 22 - 3
	if len(fields) <= starttime {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseFloat(fields[starttime], 64)
	if err != nil {
		return time.Time{}, false
	}
	uptime, err := strconv.ParseFloat(strings.Fields(string(up) + " ")[0], 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.Now().Add(-time.Duration((uptime - ticks/userHz) * float64(time.Second))), true
}

// systemdDirs are where systemd's programs look for their configuration, the first before the others.
var systemdDirs = []string{"/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"}

// systemdConfig reads the files of a systemd program's configuration in the order in which they count, as systemd-analyze cat-config
// lists them: the first main file that is there, then the drop-ins by name. Of drop-ins of one name that in the first folder counts; one
// that is a link to /dev/null hides the others.
func systemdConfig(root, name string) (files []doctor.ConfigFile) {
	add := func(path string) bool {
		text, err := os.ReadFile(inRoot(root, path))
		if err == nil {
			files = append(files, doctor.ConfigFile{Name: path, Text: string(text)})
		}
		return err == nil
	}
	for _, dir := range systemdDirs {
		if add(filepath.Join(dir, name)) {
			break
		}
	}
	dropIns := map[string]string{}
	for _, dir := range slices.Backward(systemdDirs) {
		entries, err := os.ReadDir(filepath.Join(root, dir, name+".d"))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".conf") {
				dropIns[e.Name()] = filepath.Join(dir, name+".d", e.Name())
			}
		}
	}
	for _, base := range slices.Sorted(maps.Keys(dropIns)) {
		add(dropIns[base])
	}
	return files
}

// inRoot is where a file of the host is found. A link of the host's that is absolute leads on below root, but for /dev/null, which is
// empty everywhere.
func inRoot(root, path string) string {
	const hops = 8
	for range hops {
		to, err := os.Readlink(filepath.Join(root, path))
		switch {
		case err != nil:
			return filepath.Join(root, path)
		case to == os.DevNull:
			return to
		case filepath.IsAbs(to):
			path = to
		default:
			path = filepath.Join(filepath.Dir(path), to)
		}
	}
	return filepath.Join(root, path)
}
