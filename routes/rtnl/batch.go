package rtnl

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/routes"
)

// batchSize is how many requests the kernel gets at once. Should it refuse all of them, its answers fit in the socket's buffer.
const batchSize = 64

// setAll creates and replaces routes, many with one message to the kernel. What it refuses then is asked for again on its own,
// as is what set itself refuses.
func (s *step) setAll(ctx context.Context, list []routes.Route) error {
	for chunk := range slices.Chunk(list, batchSize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		rest := chunk
		if len(chunk) > 1 {
			var err error
			if rest, err = s.setTogether(chunk); err != nil {
				return err
			}
		}
		for _, r := range rest {
			if err := ctx.Err(); err != nil {
				return err
			}
			s.set(r)
		}
	}
	return nil
}

// setTogether creates and replaces routes with one message, and returns those that are left.
func (s *step) setTogether(list []routes.Route) (rest []routes.Route, err error) {
	var asked []routes.Route
	var requests []*nl.NetlinkRequest
	for _, r := range list {
		if incomplete(r) {
			rest = append(rest, r)
			continue
		}
		flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL
		if s.found.has[r.Key()] {
			flags = unix.NLM_F_REPLACE
		}
		asked = append(asked, r)
		requests = append(requests, s.conn.request(unix.RTM_NEWROUTE, flags, nl.NewRtMsg(), r))
	}
	if len(requests) == 0 {
		return rest, nil
	}
	refused, err := s.conn.executeAll(requests)
	if err != nil {
		return nil, fmt.Errorf("set %d routes: %w", len(requests), err)
	}
	for i, r := range asked {
		switch {
		case refused[requests[i].Seq]:
			rest = append(rest, r)
		case s.found.has[r.Key()]:
			s.written(&s.report.Replaced, "replace", r, nil)
		default:
			s.written(&s.report.Added, "add", r, nil)
		}
	}
	return rest, nil
}

// sendAll is the real executeAll. The kernel works off the requests in their order, and answers those that it refuses, and the
// last: only that one asks to be answered.
func (c *Conn) sendAll(requests []*nl.NetlinkRequest) (refused map[uint32]bool, err error) {
	last := requests[len(requests)-1]
	last.Flags |= unix.NLM_F_ACK
	var message []byte
	for _, r := range requests {
		message = append(message, r.Serialize()...)
	}
	s := c.socket.Socket
	s.Lock()
	defer s.Unlock()
	if err := unix.Sendto(s.GetFd(), message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	refused = map[uint32]bool{}
	for {
		answers, from, err := s.Receive()
		if err != nil {
			return nil, err
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, a := range answers {
			if a.Header.Type != unix.NLMSG_ERROR || len(a.Data) < 4 {
				continue
			}
			if binary.NativeEndian.Uint32(a.Data) != 0 { // a negative errno; 0 is the acknowledgement
				refused[a.Header.Seq] = true
			}
			if a.Header.Seq == last.Seq {
				return refused, nil
			}
		}
	}
}
