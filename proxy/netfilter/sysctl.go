package netfilter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ConntrackSettings are the sizes and times of conntrack that a cluster needs, as kube-proxy has them. They are documented in
// the kernel's Documentation/networking/nf_conntrack-sysctl.rst.
type ConntrackSettings struct {
	// MaxPerCore is the number of entries for each CPU of the machine, Min the least number of all together; 0 for MaxPerCore
	// leaves nf_conntrack_max alone.
	MaxPerCore, Min int
	// TCPEstablishedTimeout and the other times are in whole seconds; 0 leaves one alone.
	TCPEstablishedTimeout, TCPCloseWaitTimeout time.Duration
	// TCPBeLiberal takes segments outside of the window for valid; false leaves it as it is.
	TCPBeLiberal                 bool
	UDPTimeout, UDPStreamTimeout time.Duration
}

// DefaultConntrackSettings are kube-proxy's.
var DefaultConntrackSettings = ConntrackSettings{MaxPerCore: 32768, Min: 131072, TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour}

// mostConntrack is what MaxPerCore leads to at most, on a machine with very many CPUs; Min does not raise it then.
const mostConntrack = 1 << 20

// max returns nf_conntrack_max for a machine; 0 for leaving it alone.
func (c ConntrackSettings) max(cpus int) int {
	scaled := c.MaxPerCore * cpus
	switch {
	case c.MaxPerCore <= 0:
		return 0
	case scaled > mostConntrack:
		return mostConntrack
	}
	return max(scaled, c.Min)
}

// A SysctlError says that a file under /proc/sys or /sys has another value than it should, and could not be changed. It wraps
// the reason, or nothing when the file did not take the value.
type SysctlError struct {
	File string
	// Want is the value that would be right, Have the one that is there; empty when it could not be read.
	Want, Have string
	Err        error
}

// Error implements error.
func (e *SysctlError) Error() string {
	have := "is " + e.Have
	if e.Have == "" {
		have = "can't be read"
	}
	s := fmt.Sprintf("%s %s, right would be %s", e.File, have, e.Want)
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Unwrap returns the reason.
func (e *SysctlError) Unwrap() error { return e.Err }

// ApplyConntrack makes conntrack's sysctls what the settings say, and returns a *SysctlError for each that has another value and
// could not be changed. What is right already is not written, so with a read-only /proc/sys they can be set beforehand.
//
// The size of the table belongs to the machine: in a network namespace of its own, where the kernel lets nobody change it,
// nf_conntrack_max is left alone, and that is no error. The other values are those of the calling thread's network namespace.
func ApplyConntrack(c ConntrackSettings) []error {
	return sysctls{root: "/", load: loadConntrack}.conntrack(c)
}

// EnableRouteLocalnet lets packets to 127.0.0.0/8 be routed, which a node port on 127.0.0.1 needs: net.ipv4.conf.all.route_localnet
// is 1 afterwards, or the error is a *SysctlError. It opens the host's loopback services to its neighbours (CVE-2020-8558) unless a
// rule keeps them out, so that has to be there first.
func EnableRouteLocalnet() error {
	return sysctls{root: "/"}.set("proc/sys/net/ipv4/conf/all/route_localnet", "1")
}

// loadConntrack makes the kernel load conntrack, whose sysctls are not there before: speaking to ctnetlink does.
func loadConntrack() error {
	n, err := openNfnetlink(subsystemConntrack)
	if err != nil {
		return err
	}
	defer n.close()
	const conntrackGetStats = 5 // IPCTNL_MSG_CT_GET_STATS
	return n.execute(message{kind: conntrackGetStats, flags: unix.NLM_F_ACK}, func([]byte) {})
}

// sysctls are the files below a root, which is another one in tests.
type sysctls struct {
	root string
	load func() error
}

const (
	conntrackSysctls = "proc/sys/net/netfilter/"
	conntrackMax     = conntrackSysctls + "nf_conntrack_max"
	// conntrackBuckets is the size of the hash table: a parameter of the module, and of no namespace.
	conntrackBuckets = "sys/module/nf_conntrack/parameters/hashsize"
	onlineCPUs       = "sys/devices/system/cpu/online"
)

func (s sysctls) conntrack(c ConntrackSettings) (refused []error) {
	if _, err := os.Stat(s.path(conntrackMax)); errors.Is(err, fs.ErrNotExist) && c != (ConntrackSettings{}) {
		// Without it every file is missing, which is what is said.
		_ = s.load()
	}
	try := func(err error) bool {
		if err != nil {
			refused = append(refused, err)
		}
		return err == nil
	}
	if n := c.max(s.cpus()); n > 0 && s.ours(conntrackMax) && try(s.set(conntrackMax, strconv.Itoa(n))) {
		try(s.atLeast(conntrackBuckets, n/4))
	}
	seconds := func(name string, d time.Duration) {
		if d > 0 {
			try(s.set(conntrackSysctls+name, strconv.Itoa(int(d/time.Second))))
		}
	}
	seconds("nf_conntrack_tcp_timeout_established", c.TCPEstablishedTimeout)
	seconds("nf_conntrack_tcp_timeout_close_wait", c.TCPCloseWaitTimeout)
	if c.TCPBeLiberal {
		try(s.set(conntrackSysctls+"nf_conntrack_tcp_be_liberal", "1"))
	}
	seconds("nf_conntrack_udp_timeout", c.UDPTimeout)
	seconds("nf_conntrack_udp_timeout_stream", c.UDPStreamTimeout)
	return refused
}

func (s sysctls) path(name string) string { return filepath.Join(s.root, name) }

func (s sysctls) read(name string) (string, error) {
	b, err := os.ReadFile(s.path(name))
	return strings.TrimSpace(string(b)), err
}

// set makes a file contain a value.
func (s sysctls) set(name, want string) error {
	refused := &SysctlError{File: s.path(name), Want: want}
	if refused.Have, refused.Err = s.read(name); refused.Err != nil {
		return refused
	}
	if refused.Have == want {
		return nil
	}
	if refused.Err = os.WriteFile(s.path(name), []byte(want+"\n"), 0); refused.Err != nil {
		return refused
	}
	if refused.Have, refused.Err = s.read(name); refused.Err == nil && refused.Have == want {
		return nil
	}
	return refused
}

// atLeast makes a file contain a number that is no less. The kernel rounds the number of buckets up.
func (s sysctls) atLeast(name string, want int) error {
	enough := func() bool {
		have, err := s.read(name)
		if err != nil {
			return false
		}
		n, err := strconv.Atoi(have)
		return err == nil && n >= want
	}
	if enough() {
		return nil
	}
	if err := s.set(name, strconv.Itoa(want)); err != nil && !enough() {
		return err
	}
	return nil
}

// ours tells whether the kernel lets this network namespace write a sysctl at all; see nf_conntrack_standalone_init_sysctl of
// net/netfilter/nf_conntrack_standalone.c. A file that is missing is ours, and is missed.
func (s sysctls) ours(name string) bool {
	info, err := os.Stat(s.path(name))
	return err != nil || info.Mode().Perm()&0o200 != 0
}

// cpus counts the machine's CPUs that are online. What this process may use, as runtime.NumCPU has it, can be fewer.
func (s sysctls) cpus() int {
	list, err := s.read(onlineCPUs)
	if n := countCPUs(list); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countCPUs counts what a list in the kernel's form names ("0-3,8"), see Documentation/admin-guide/cputopology.rst; 0 for what is none.
func countCPUs(list string) (n int) {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || last < first {
			return 0
		}
		n += last - first + 1
	}
	return n
}

// tcpLiberal is documented in the kernel's Documentation/networking/nf_conntrack-sysctl.rst.
const tcpLiberal = "/" + conntrackSysctls + "nf_conntrack_tcp_be_liberal"

// TCPLiberal tells whether conntrack accepts TCP segments that are out of window; then none of them is INVALID, and a
// rule that drops INVALID packets is not wanted. It is false when conntrack is not loaded yet, as in a new network
// namespace: its default is to be strict.
func TCPLiberal() (bool, error) {
	value, err := os.ReadFile(tcpLiberal)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read whether conntrack is liberal: %w", err)
	}
	return strings.TrimSpace(string(value)) != "0", nil
}
