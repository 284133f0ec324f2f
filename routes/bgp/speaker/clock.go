package speaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// clockCheck is how often sessions that began in the future are looked for.
const clockCheck = 5 * time.Second

// gobgp drops each UPDATE that it receives earlier, by the clock on the wall and in whole seconds, than the session began. So a clock that is
// set back, as is usual some time after a node has booted, makes it deaf to sessions that are younger than that, until the clock has caught
// up. watchClock begins such sessions anew, for as long as the process lives.
func (s *Speaker) watchClock() {
	for range time.Tick(clockCheck) {
		for _, a := range s.deaf(time.Now()) {
			err := hangUp(a)
			klog.InfoS("The clock was set back to before the beginning of a BGP session, it begins anew", "peer", a, "err", err)
		}
	}
}

// deaf returns the peers whose sessions began later than now.
func (s *Speaker) deaf(now time.Time) (peers []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, r := range s.records {
		// Without their monotonic clocks, by which nothing begins in the future.
		if r.up && now.Round(0).Before(r.since.Round(0).Truncate(time.Second)) {
			peers = append(peers, a)
		}
	}
	return peers
}

// hangUp closes this process's connections to BGP peers at an address, without gobgp's knowledge: the routers at their other ends then keep the
// node's routes, if they have agreed to graceful restart. All that gobgp itself offers to end a session is a NOTIFICATION,
// after which they would not (RFC 4724, section 4).
func hangUp(peer netip.Addr) error {
	const files = "/proc/self/fd"
	entries, err := os.ReadDir(files)
	if err != nil {
		return err
	}
	var errs []error
	hung := 0
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return fmt.Errorf("%s: %w", files, err)
		}
		// A duplicate: the number may be another file's by the time of the shutdown, which ends a connection whoever has it.
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue // it was closed meanwhile
		}
		if remote(own) == peer {
			hung++
			errs = append(errs, unix.Shutdown(own, unix.SHUT_RDWR))
		}
		errs = append(errs, unix.Close(own))
	}
	if hung == 0 {
		errs = append(errs, fmt.Errorf("there is no connection to %s", peer))
	}
	return errors.Join(errs...)
}

// remote returns who is at the other end of a TCP connection; the zero Addr for any other file.
func remote(fd int) netip.Addr {
	if protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || protocol != unix.IPPROTO_TCP {
		return netip.Addr{}
	}
	name, err := unix.Getpeername(fd)
	if err != nil {
		return netip.Addr{}
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(name.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(name.Addr).Unmap()
	}
	return netip.Addr{}
}
