package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/fairway-net/fairway/proxy"
)

// hash is kube-proxy's: the first 16 characters of the base32 of a SHA-256.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// portHash is the hash that all chains of a service port share.
func portHash(p *proxy.Port) string { return hash(p.Name.String() + p.Protocol.String()) }

func endpointChain(p *proxy.Port, endpoint string) string {
	return "KUBE-SEP-" + hash(p.Name.String()+p.Protocol.String()+endpoint)
}

// ClientLists returns the names of the lists in which xt_recent remembers the clients of a port's endpoints; none for a port
// without session affinity.
func ClientLists(p *proxy.Port) (names []string) {
	if p.Affinity == 0 {
		return nil
	}
	for _, b := range slices.Concat(p.Cluster, p.Local) {
		names = append(names, endpointChain(p, b.Addr.String()))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// maxChainName is the longest name of a chain, XT_EXTENSION_MAXNAMELEN-1 (linux/netfilter/x_tables.h).
const maxChainName = 28

// prefixChain names the part of a dispatcher that is for the addresses of a prefix, by how the names of its parts begin. An IPv6 prefix that is too long
// for a name is replaced by its hash; the rule that jumps there shows the prefix.
func prefixChain(begin string, p netip.Prefix) string {
	if name := begin + p.String(); len(name) <= maxChainName {
		return name
	}
	return begin + hash(p.String())
}

// rangeChain names the part of the node port dispatcher that is for a range of ports of a protocol.
func rangeChain(protocol string, first, last uint16) string {
	return "KUBE-EXT-" + protocol + "-" + strconv.Itoa(int(first)) + "-" + strconv.Itoa(int(last))
}

// groupChain names the chain of a group of backends, after the chain that picks it.
func groupChain(chain string, group int) string { return chain + fmt.Sprintf("-%02x", group) }
