package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes"
)

// A Report is what a Sync did, and what it could not do for reasons that another try at once would not change.
type Report struct {
	// Added, Replaced and Deleted are the routes that were written. When nothing changed, all are empty.
	Added, Replaced, Deleted []routes.Route
	// Installed counts the wanted routes that are in the kernel now.
	Installed int
	// Waiting are wanted routes that the kernel has no way for at the moment: the link is down or gone, or the gateway is
	// on no link. An event of [Conn.Watch] comes when that changes. There is a Note for each.
	Waiting []routes.Route
	// Notes tell of routes that others' routes stand in the way of, and of Waiting ones.
	Notes []cluster.Note
}

// Sync makes our routes in the main table equal to want: it reads them all, creates and replaces what differs, and then
// deletes ours that are not wanted. When nothing differs it reads (one dump for each family) and writes nothing.
//
// A route that the kernel refuses does not keep the others from being written; the error then names each refused one,
// and errors.Is finds the unix.Errno (EPERM without CAP_NET_ADMIN). The Report is right also when there is an error.
// When reading fails nothing is written, and errors.Is finds nl.ErrDumpInterrupted when others changed the table
// faster than it could be read.
func (c *Conn) Sync(ctx context.Context, want *routes.Table) (Report, error) {
	return c.sync(ctx, want, false)
}

// Add is Sync for routes that may be out of date: it creates those that are missing, and neither replaces nor deletes any.
func (c *Conn) Add(ctx context.Context, want *routes.Table) (Report, error) {
	return c.sync(ctx, want, true)
}

func (c *Conn) sync(ctx context.Context, want *routes.Table, addOnly bool) (Report, error) {
	if want == nil {
		return Report{}, errors.New("sync routes: no table")
	}
	c.watch(want)
	found, err := c.read(ctx, want)
	if err != nil {
		return Report{}, err
	}
	s := &step{conn: c, found: found}
	want = s.withoutBlocked(want)
	changes := routes.Diff(found.ours, want)
	s.report.Installed = len(want.Routes) - len(changes.Set)
	if addOnly {
		changes.Set = slices.DeleteFunc(changes.Set, func(r routes.Route) bool { return found.has[r.Key()] })
		changes.Delete, found.strays = nil, nil
	}
	if err := s.setAll(ctx, changes.Set); err != nil {
		return s.done(err)
	}
	for _, r := range changes.Delete {
		if err := ctx.Err(); err != nil {
			return s.done(err)
		}
		s.remove(r, 0)
	}
	for _, stray := range found.strays {
		s.remove(stray.Route, stray.tos)
	}
	return s.done(nil)
}

// Cleanup deletes all routes of the Conn's protocol in the main table, where all of ours are, and returns how many there were. It may
// be called when there are none.
func (c *Conn) Cleanup(ctx context.Context) (removed int, err error) {
	report, err := c.Sync(ctx, &routes.Table{})
	return len(report.Deleted), err
}

// found is the main table as far as it concerns us.
type found struct {
	// ours are the routes of ours, in the kernel's order, and has their keys.
	ours []routes.Route
	has  map[routes.Key]bool
	// strays are routes of ours for one type of service: never wanted, and unknown to routes.Route.
	strays []kernelRoute
	// ahead are others' routes that the kernel prefers to ours of the same destination.
	ahead map[routes.Key]kernelRoute
}

// read lists the main table of both families.
func (c *Conn) read(ctx context.Context, want *routes.Table) (*found, error) {
	all := &found{has: map[routes.Key]bool{}, ahead: map[routes.Key]kernelRoute{}}
	wanted := make(map[netip.Prefix]uint32, len(want.Routes))
	for _, r := range want.Routes {
		wanted[r.Dst] = r.Metric
	}
	for _, f := range cluster.Families {
		var list []kernelRoute
		header := &nl.RtMsg{RtMsg: unix.RtMsg{Family: afOf(f), Table: unix.RT_TABLE_MAIN}}
		err := c.dump(ctx, unix.RTM_GETROUTE, header, func() { list = list[:0] }, func(payload []byte) error {
			// Without IPv6 in the kernel, its dump is one of all families (rtnl_dump_all): take ours only.
			if len(payload) < unix.SizeofRtMsg || payload[0] != afOf(f) {
				return nil
			}
			r, err := decode(payload)
			if err != nil || r.table != unix.RT_TABLE_MAIN || r.cloned {
				return err
			}
			if _, concerns := wanted[r.Dst]; concerns || r.protocol == c.protocol {
				list = append(list, r)
			}
			return nil
		})
		// A table that never had a route does not exist.
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("list %s routes: %w", f, err)
		}
		for _, r := range list {
			all.add(r, r.protocol == c.protocol, wanted)
		}
	}
	return all, nil
}

// add files one route. The kernel lists, and prefers, the routes of one destination in the order of their metrics, and
// of one metric in the order in which it looks at them; so another's is ahead of ours when it comes first.
func (all *found) add(r kernelRoute, ours bool, wanted map[netip.Prefix]uint32) {
	metric, concerns := wanted[r.Dst]
	key := routes.Key{Dst: r.Dst, Metric: metric}
	switch {
	case ours && r.tos != 0:
		all.strays = append(all.strays, r)
	case ours:
		all.ours = append(all.ours, r.ours())
		all.has[r.Key()] = true
	case concerns && r.tos == 0 && r.Metric <= metric && !all.has[key]:
		if _, known := all.ahead[key]; !known || r.Metric == metric {
			all.ahead[key] = r
		}
	}
}

// A step is one Sync under way.
type step struct {
	conn   *Conn
	found  *found
	report Report
	errs   []error
}

func (s *step) done(err error) (Report, error) {
	return s.report, errors.Join(append(s.errs, err)...)
}

// withoutBlocked returns want without the routes whose place another's route has, and notes those and the routes that
// another's takes precedence over. One of ours that is as wanted behind another's stays.
func (s *step) withoutBlocked(want *routes.Table) *routes.Table {
	if len(s.found.ahead) == 0 {
		return want
	}
	have := make(map[routes.Key]routes.Route, len(s.found.ours))
	for _, r := range s.found.ours {
		have[r.Key()] = r
	}
	var rest routes.Table
	for _, r := range want.Routes {
		other, ahead := s.found.ahead[r.Key()]
		if ahead {
			s.note(r, cluster.ReasonRouteConflict, conflict(r, other))
		}
		mine, there := have[r.Key()]
		if !ahead || other.Metric != r.Metric || there && mine.Same(r) {
			rest.Routes = append(rest.Routes, r)
		}
	}
	return &rest
}

func conflict(r routes.Route, other kernelRoute) string {
	if other.Metric < r.Metric {
		return fmt.Sprintf("The route %s of another owner takes precedence over ours, via %s; right would be none for %s.",
			other, r.Via(), r.Dst)
	}
	return fmt.Sprintf("The route %s of another owner stands where ours, via %s, should be; right would be none for %s.",
		other, r.Via(), r.Dst)
}

func (s *step) note(r routes.Route, reason, detail string) {
	s.report.Notes = append(s.report.Notes, cluster.Note{Object: r.Ref(), Reason: reason, Detail: detail})
}

// incomplete reports that a route lacks a gateway or a link, as one does that was planned offline.
func incomplete(r routes.Route) bool {
	return slices.ContainsFunc(r.NextHops(), func(h routes.Hop) bool { return h.LinkIndex == 0 || !h.Gateway.IsValid() })
}

// set replaces our route of the same key, or creates one.
func (s *step) set(r routes.Route) {
	if incomplete(r) {
		s.errs = append(s.errs, fmt.Errorf("route %s: no gateway or link", r))
		return
	}
	if s.found.has[r.Key()] {
		err := s.conn.write(unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, nl.NewRtMsg(), r)
		if !gone(err) {
			s.written(&s.report.Replaced, "replace", r, err)
			return
		}
	}
	err := s.conn.write(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewRtMsg(), r)
	if errors.Is(err, unix.EEXIST) { // since we read
		s.note(r, cluster.ReasonRouteConflict, fmt.Sprintf(
			"Another route for %s appeared where ours, via %s, should be; right would be none.", r.Dst, r.Via()))
		return
	}
	s.written(&s.report.Added, "add", r, err)
}

// written files the outcome of creating or replacing r.
func (s *step) written(to *[]routes.Route, verb string, r routes.Route, err error) {
	switch {
	case err == nil:
		*to = append(*to, r)
		s.report.Installed++
	case noWay(err):
		s.report.Waiting = append(s.report.Waiting, r)
		s.note(r, cluster.ReasonNextHopUnreachable, fmt.Sprintf(
			"The kernel has no way to %s over link %s for %s at the moment (%v); the route follows when it has.",
			r.Via(), r.NextHops()[0].Link, r.Dst, err))
	default:
		s.errs = append(s.errs, fmt.Errorf("%s route %s: %w", verb, r, err))
	}
}

// remove deletes one route of ours; the protocol in the request keeps the kernel from taking another's instead.
func (s *step) remove(r routes.Route, tos uint8) {
	request := r
	request.Hops = nil // what goes, goes with all next hops; in which order the kernel has them does not matter
	header := nl.NewRtDelMsg()
	header.Tos = tos
	switch err := s.conn.write(unix.RTM_DELROUTE, 0, header, request); {
	case err == nil:
		s.report.Deleted = append(s.report.Deleted, r)
	case !gone(err):
		s.errs = append(s.errs, fmt.Errorf("delete route %s: %w", r, err))
	}
}

// write sends one request and waits for its acknowledgement.
func (c *Conn) write(kind uint16, flags int, header *nl.RtMsg, r routes.Route) error {
	return c.execute(c.request(kind, unix.NLM_F_ACK|flags, header, r), func([]byte) {})
}

// request makes a request about one route.
func (c *Conn) request(kind uint16, flags int, header *nl.RtMsg, r routes.Route) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(kind), flags)
	encode(req, header, r)
	return req
}

// gone reports that what a request was about does not exist: fib_trie.c and ip6_fib.c answer ESRCH or ENOENT for a
// route, ENODEV for its link.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// noWay reports that the kernel cannot use the gateway as things are: the link is down or gone, or the gateway is on
// none (fib_check_nh and ip6_route_check_nh answer ENETUNREACH and EHOSTUNREACH).
func noWay(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}
