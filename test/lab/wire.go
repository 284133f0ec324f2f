package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// A WireEnd is one end of a [Wire].
type WireEnd struct {
	*Namespace
	// Link is the name of the new interface.
	Link string
	// Addr is its address, with the length of the subnet.
	Addr netip.Prefix
}

// Wire connects two namespaces, of the same Lab or of two, with a link of their own. The link goes when one of them is removed.
func Wire(a, b WireEnd) error {
	there, err := os.Open(filepath.Join(netnsDir, b.name))
	if err != nil {
		return err
	}
	defer there.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Link
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Link, PeerNamespace: netlink.NsFd(there.Fd())}
	if err := a.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("wire %s in %s to %s in %s: %w", a.Link, a.name, b.Link, b.name, err)
	}
	for _, end := range []WireEnd{a, b} {
		if err := end.addAddrs(end.Link, []netip.Addr{end.Addr.Addr()}, []netip.Prefix{end.Addr.Masked()}); err != nil {
			return err
		}
		if err := end.up(end.Link); err != nil {
			return err
		}
	}
	return nil
}
