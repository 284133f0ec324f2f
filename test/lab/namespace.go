package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named network namespaces.
const netnsDir = "/run/netns"

// ErrClosed is the error of everything that is asked of a namespace whose Lab was closed.
var ErrClosed = errors.New("the lab is closed")

// A Namespace is one network namespace of a Lab, with a thread of this process that lives in it. The thread is the
// parent of the processes started there, so that the kernel ends them when this process dies.
type Namespace struct {
	name   string
	lab    *Lab
	handle *netlink.Handle
	calls  chan func()
	quit   chan struct{}
	// ended is closed when the thread is about to leave.
	ended chan struct{}
	once  sync.Once
}

// newNamespace makes a named network namespace and a thread in it. The name must not exist.
func newNamespace(l *Lab, name string) (*Namespace, error) {
	ns := &Namespace{
		name: name, lab: l,
		calls: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	ready := make(chan error, 1)
	go ns.thread(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	return ns, nil
}

// thread runs calls on an OS thread of its own. It returns without unlocking the thread, so the runtime ends it rather
// than giving it to a goroutine that believes to be in the root namespace.
func (ns *Namespace) thread(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and /proc/self speaks of it. Hold it until another thread has the job.
		handed := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(handed)
			ns.serve(ready)
		}()
		<-handed
		runtime.UnlockOSThread()
		return
	}
	ns.serve(ready)
}

func (ns *Namespace) serve(ready chan<- error) {
	defer close(ns.ended)
	err := ns.create()
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-ns.calls:
			f()
		case <-ns.quit:
			return
		}
	}
}

// create moves the calling thread into a new namespace and gives that its name, as `ip netns add` does.
func (ns *Namespace) create() (err error) {
	path := filepath.Join(netnsDir, ns.name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, removeNamed(ns.name))
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount on %s: %w", path, err)
	}
	if ns.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("rtnetlink: %w", err)
	}
	return nil
}

// close ends the namespace's thread and removes its name. The kernel removes the namespace itself when the last
// socket and process are gone from it.
func (ns *Namespace) close() error {
	var err error
	ns.once.Do(func() {
		close(ns.quit)
		<-ns.ended
		ns.handle.Close()
		err = removeNamed(ns.name)
	})
	return err
}

// removeNamed removes a named namespace. One that is gone already is a success.
func removeNamed(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// shareNetnsDir makes the folder of named namespaces a shared mount, as iproute2 does: removing a name then also removes
// it from mount namespaces that were copied meanwhile, which would keep the network namespace alive.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Two processes at once would mount the folder on itself twice, the second hiding the names of the first.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// NetNS returns the name that `ip netns` has for the namespace.
func (ns *Namespace) NetNS() string { return ns.name }

// Handle returns an rtnetlink handle in the namespace, safe for use by several goroutines. Calls that the netlink package
// resolves through /sys do not belong to the namespace.
func (ns *Namespace) Handle() *netlink.Handle { return ns.handle }

// Do runs f on the namespace's thread and returns its error. A socket that f makes stays in the namespace wherever it is
// used later, and /proc/sys/net is the namespace's. Calls of one namespace run one after the other, so f should be
// short; it must not call Do of the same namespace, nor FailNow of a test. A panic of f is one of the caller.
func (ns *Namespace) Do(f func() error) error {
	var (
		err    error
		caught any
		done   = make(chan struct{})
	)
	call := func() {
		defer close(done)
		defer func() { caught = recover() }()
		err = f()
	}
	select {
	case ns.calls <- call:
	case <-ns.ended:
		return fmt.Errorf("namespace %s: %w", ns.name, ErrClosed)
	}
	<-done
	if caught != nil {
		panic(caught)
	}
	return err
}

// Sysctl sets a sysctl of the namespace, by its dotted name ("net.ipv4.ip_forward").
func (ns *Namespace) Sysctl(name, value string) error {
	return ns.Do(func() error { return writeSysctl(name, value) })
}

// ReadSysctl returns the value of a sysctl of the namespace.
func (ns *Namespace) ReadSysctl(name string) (string, error) {
	var value []byte
	err := ns.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(name))
		return err
	})
	return strings.TrimSpace(string(value)), err
}

func writeSysctl(name, value string) error {
	return os.WriteFile(sysctlPath(name), []byte(value), 0o644)
}

func sysctlPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// AddRoute adds a route, or replaces the one to the same destination.
func (ns *Namespace) AddRoute(r Route) error {
	if err := ns.handle.RouteReplace(&netlink.Route{Dst: ipNet(r.Dst), Gw: r.Via.AsSlice()}); err != nil {
		return fmt.Errorf("%s: add route %s via %s: %w", ns.name, r.Dst, r.Via, err)
	}
	return nil
}

// DeleteRoute removes the route of the main table to a destination. It is an error when there is none.
func (ns *Namespace) DeleteRoute(dst netip.Prefix) error {
	if err := ns.handle.RouteDel(&netlink.Route{Dst: ipNet(dst)}); err != nil {
		return fmt.Errorf("%s: delete route %s: %w", ns.name, dst, err)
	}
	return nil
}
