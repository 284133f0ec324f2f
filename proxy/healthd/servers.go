package healthd

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// retryListen is when to try again to listen at a port that was not to be had.
const retryListen = 2 * time.Second

// Servers serve the health checks of one address family. Their methods are for one goroutine at a time.
type Servers struct {
	family  cluster.Family
	healthy func() bool
	limits  limits
	open    map[netip.AddrPort]*server
}

// A Report tells what stood against a Sync.
type Report struct {
	// Notes tell which ports can't be listened at.
	Notes []cluster.Note
	// Retry is when to try them again; 0 when all are served.
	Retry time.Duration
}

// New returns Servers that serve nothing yet. healthy is asked at every request whether the service proxy keeps up; it
// must be safe for use by several goroutines.
func New(f cluster.Family, healthy func() bool) *Servers {
	return &Servers{family: f, healthy: healthy, limits: defaultLimits, open: map[netip.AddrPort]*server{}}
}

// Sync serves the checks at the addresses, and nothing else. What is served already goes on without interruption, with its
// new answers. No two checks may have the same port.
func (s *Servers) Sync(checks []proxy.HealthCheck, at proxy.NodePorts) Report {
	want := s.wanted(checks, at)
	// First, as a port at all addresses stands against the same port at one of them.
	for addr, srv := range s.open {
		if _, still := want[addr]; !still || srv.ended() {
			srv.stop()
			delete(s.open, addr)
		}
	}
	var r Report
	for _, addr := range slices.SortedFunc(maps.Keys(want), netip.AddrPort.Compare) {
		check := want[addr]
		if srv := s.open[addr]; srv != nil {
			srv.set(check)
			continue
		}
		l, err := net.Listen(s.network(), addr.String())
		if err == nil {
			s.open[addr] = serve(l, check, s.healthy, s.limits)
			continue
		}
		r.Retry = retryListen
		// An address of IPv6 can't be used for a second or so after it was added, while the kernel looks for duplicates
		// (RFC 4862); and one that is gone again will not be in the next Table. Neither needs anybody's attention.
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			r.Notes = append(r.Notes, failure(check, addr, err))
		}
	}
	return r
}

// Close ends all service. What was asked already is answered, unless the process ends before.
func (s *Servers) Close() {
	for addr, srv := range s.open {
		srv.stop()
		delete(s.open, addr)
	}
}

func (s *Servers) wanted(checks []proxy.HealthCheck, at proxy.NodePorts) map[netip.AddrPort]proxy.HealthCheck {
	addrs := at.Addrs
	if at.Everywhere {
		addrs = []netip.Addr{netip.IPv4Unspecified()}
		if s.family == cluster.IPv6 {
			addrs = []netip.Addr{netip.IPv6Unspecified()}
		}
	}
	want := make(map[netip.AddrPort]proxy.HealthCheck, len(checks)*len(addrs))
	for _, c := range checks {
		for _, a := range addrs {
			want[netip.AddrPortFrom(a, c.Port)] = c
		}
	}
	return want
}

// network keeps the families apart: "tcp" would serve both at the unspecified address of IPv6.
func (s *Servers) network() string {
	if s.family == cluster.IPv6 {
		return "tcp6"
	}
	return "tcp4"
}

func failure(c proxy.HealthCheck, at netip.AddrPort, err error) cluster.Note {
	why := cmp.Or(errno(err), err)
	detail := fmt.Sprintf("health check node port %d can't be served at %s: %v; it is tried again every %v", c.Port, at, why, retryListen)
	if errors.Is(err, syscall.EADDRINUSE) {
		detail += ", and right would be that no other program on the node uses that port"
	}
	return cluster.Note{Object: c.Service.Ref(), Reason: cluster.ReasonHealthCheckFailed, Detail: detail}
}

// errno returns the error number in an error of package net, nil when there is none.
func errno(err error) error {
	var n syscall.Errno
	if errors.As(err, &n) {
		return n
	}
	return nil
}
