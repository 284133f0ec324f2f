package source

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// parseAddr reads an address as the API server reads it: decimal octets may have leading zeros (10.0.0.041 is 10.0.0.41;
// clusters older than Kubernetes 1.33 hold such objects), an IPv4-mapped IPv6 address is the IPv4 address, and a zone is
// not allowed.
func parseAddr(s string) (netip.Addr, bool) {
	a, ok := parseSpelled(s)
	return a.Unmap(), ok
}

func parseSpelled(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(withoutLeadingZeros(s))
	}
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a, true
}

// parsePrefix reads a CIDR with the same leniency, and masks it. An IPv4-mapped one is refused.
func parsePrefix(s string) (netip.Prefix, bool) {
	left, right, ok := strings.Cut(s, "/")
	if !ok {
		return netip.Prefix{}, false
	}
	a, ok := parseSpelled(left)
	bits, err := strconv.ParseUint(right, 10, 8)
	if !ok || a.Is4In6() || err != nil {
		return netip.Prefix{}, false
	}
	p, err := a.Prefix(int(bits))
	return p, err == nil
}

// withoutLeadingZeros rewrites the dotted part of an address.
func withoutLeadingZeros(s string) string {
	at := strings.LastIndexByte(s, ':') + 1
	octets := strings.Split(s[at:], ".")
	if len(octets) != 4 {
		return s
	}
	for i, o := range octets {
		if t := strings.TrimLeft(o, "0"); t != o {
			octets[i] = t
			if t == "" {
				octets[i] = "0"
			}
		}
	}
	return s[:at] + strings.Join(octets, ".")
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8") // RFC 791 §3.2: "this network"
	broadcast   = netip.MustParseAddr("255.255.255.255")
)

// special tells why an address cannot be that of a pod, a node or a Service, or "" when it can. Rules that send traffic
// to such an address would reach the node itself, its neighbours, or a cloud's metadata service (169.254.169.254),
// past whatever policy guards them.
func special(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "a loopback address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsUnspecified():
		return "the unspecified address"
	case thisNetwork.Contains(a):
		return "an address of 0.0.0.0/8"
	case a == broadcast:
		return "the broadcast address"
	}
	return ""
}

// addr reads one address of a field for which a special address makes no sense.
func (r *remarks) addr(field, s string) (netip.Addr, bool) {
	a, ok := parseAddr(s)
	if !ok {
		r.invalid("%s is %s, which is not an IP address such as 192.0.2.1 or 2001:db8::1", field, quoted(s))
		return netip.Addr{}, false
	}
	if why := special(a); why != "" {
		r.invalid("%s is %s, %s; an address of the cluster's own network is wanted", field, a, why)
		return netip.Addr{}, false
	}
	return a, true
}

// prefix reads one CIDR of a field.
func (r *remarks) prefix(field, s string) (netip.Prefix, bool) {
	p, ok := parsePrefix(s)
	if !ok {
		r.invalid("%s is %s, which is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64", field, quoted(s))
	}
	return p, ok
}

// port reads a port number. Zero is refused as well.
func (r *remarks) port(field string, n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		r.invalid("%s is %d; a port is a number from 1 to 65535", field, n)
		return 0, false
	}
	return uint16(n), true
}

// protocol reads a protocol; empty means TCP, the API's default.
func (r *remarks) protocol(field, s string) (cluster.Protocol, bool) {
	switch s {
	case "", "TCP":
		return cluster.TCP, true
	case "UDP":
		return cluster.UDP, true
	case "SCTP":
		return cluster.SCTP, true
	}
	r.invalid("%s is %s; TCP, UDP and SCTP are supported", field, quoted(s))
	return 0, false
}

// uid reads an object's UID.
func (r *remarks) uid(s string) string {
	if !isUID(s) {
		r.invalid("metadata.uid is %s, which is not a UID", quoted(s))
		return ""
	}
	return s
}
