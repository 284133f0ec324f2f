package rtnl

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Host reads the links and their addresses. Links are ordered by index, addresses by family and value, so that a host
// that did not change gives an equal value.
//
// An IPv6 address that is still tentative counts: its network is on the link from the moment that the address is given,
// and a Host that changed twice for each address would only make work. One that failed duplicate address detection
// does not count: the kernel does not use it. An address with a peer (point to point) counts as a single address.
func (c *Conn) Host(ctx context.Context) (*cluster.Host, error) {
	var links []cluster.Link
	err := c.dump(ctx, unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), func() { links = nil }, func(payload []byte) error {
		link, err := decodeLink(payload)
		links = append(links, link)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var addrs map[int][]netip.Prefix
	start := func() { addrs = map[int][]netip.Prefix{} }
	err = c.dump(ctx, unix.RTM_GETADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), start, func(payload []byte) error {
		index, addr, err := decodeAddr(payload)
		if addr.IsValid() {
			addrs[index] = append(addrs[index], addr)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for i := range links {
		links[i].Addrs = addrs[links[i].Index]
		slices.SortFunc(links[i].Addrs, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
	}
	slices.SortFunc(links, func(a, b cluster.Link) int { return cmp.Compare(a.Index, b.Index) })
	return &cluster.Host{Links: links}, nil
}

// decodeLink reads the payload of RTM_NEWLINK.
func decodeLink(payload []byte) (cluster.Link, error) {
	if len(payload) < unix.SizeofIfInfomsg {
		return cluster.Link{}, fmt.Errorf("link: %w", errShort)
	}
	header := nl.DeserializeIfInfomsg(payload)
	attrs, err := nl.ParseRouteAttr(payload[unix.SizeofIfInfomsg:])
	if err != nil {
		return cluster.Link{}, fmt.Errorf("link %d: attributes: %w", header.Index, err)
	}
	link := cluster.Link{
		Index:    int(header.Index),
		Up:       header.Flags&unix.IFF_UP != 0,
		Loopback: header.Flags&unix.IFF_LOOPBACK != 0,
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			link.Name = string(bytes.TrimRight(a.Value, "\x00"))
		}
	}
	return link, nil
}

// decodeAddr reads the payload of RTM_NEWADDR. An address that does not count is not valid.
func decodeAddr(payload []byte) (index int, addr netip.Prefix, err error) {
	if len(payload) < unix.SizeofIfAddrmsg {
		return 0, addr, fmt.Errorf("address: %w", errShort)
	}
	header := nl.DeserializeIfAddrmsg(payload)
	index = int(header.Index)
	attrs, err := nl.ParseRouteAttr(payload[unix.SizeofIfAddrmsg:])
	if err != nil {
		return index, addr, fmt.Errorf("address of link %d: attributes: %w", index, err)
	}
	flags := uint32(header.Flags)
	var local, address netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_FLAGS:
			flags = number(a.Value)
		}
	}
	switch {
	case flags&unix.IFA_F_DADFAILED != 0:
		return index, netip.Prefix{}, nil
	case local.IsValid() && local != address: // address is the peer's
		return index, netip.PrefixFrom(local, local.BitLen()), nil
	}
	return index, netip.PrefixFrom(address, int(header.Prefixlen)), nil
}
