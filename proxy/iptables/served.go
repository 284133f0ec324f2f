package iptables

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Served returns where the rules, ours or kube-proxy's, translate a protocol: addresses with a port and, without an address, node
// ports.
func (r *Ruleset) Served(p cluster.Protocol) (places []netip.AddrPort) {
	protocol := " -p " + p.String() + " "
	for _, c := range r.NAT.Chains {
		for rule := range strings.Lines(c.Rules) {
			if !strings.Contains(rule, protocol) {
				continue
			}
			if place, ok := placeOf(rule); ok {
				places = append(places, place)
			}
		}
	}
	return places
}

// placeOf reads for what a rule leads to the chain of a service port; ok is false when it does something else.
func placeOf(rule string) (place netip.AddrPort, ok bool) {
	words := strings.Fields(rule)
	to := words[len(words)-1]
	if words[len(words)-2] != "-j" || !strings.HasPrefix(to, "KUBE-SVC-") && !strings.HasPrefix(to, "KUBE-SVL-") && !strings.HasPrefix(to, "KUBE-EXT-") && !strings.HasPrefix(to, "KUBE-FW-") {
		return place, false
	}
	var addr netip.Addr
	port := ""
	for i, w := range words[:len(words)-1] {
		switch w {
		case "-d":
			p, err := netip.ParsePrefix(words[i+1])
			if err != nil || !p.IsSingleIP() {
				return place, false
			}
			addr = p.Addr()
		case "--dport":
			port = words[i+1]
		}
	}
	n, err := strconv.ParseUint(port, 10, 16) // a range of ports leads to a part of the dispatcher
	return netip.AddrPortFrom(addr, uint16(n)), err == nil
}
