package rtnl

import (
	"bytes"
	"context"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridges returns the names of the links that are bridges.
func (c *Conn) Bridges(ctx context.Context) (names []string, err error) {
	err = c.dump(ctx, unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), func() { names = nil }, func(payload []byte) error {
		link, err := decodeLink(payload)
		if err == nil && linkKind(payload[unix.SizeofIfInfomsg:]) == "bridge" {
			names = append(names, link.Name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	return names, nil
}

// linkKind returns IFLA_INFO_KIND of the attributes of a link that decodeLink has read; "" for a link of hardware.
func linkKind(attributes []byte) string {
	attrs, err := nl.ParseRouteAttr(attributes)
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type != unix.IFLA_LINKINFO {
			continue
		}
		infos, err := nl.ParseRouteAttr(a.Value)
		if err != nil {
			return ""
		}
		for _, i := range infos {
			if i.Attr.Type == nl.IFLA_INFO_KIND {
				return string(bytes.TrimRight(i.Value, "\x00"))
			}
		}
	}
	return ""
}
