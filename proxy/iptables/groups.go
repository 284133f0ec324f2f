package iptables

import (
	"crypto/sha256"

	"github.com/fairway-net/fairway/proxy"
)

const (
	// flatBackends is up to how many backends the chain of a port picks one itself. A new connection passes half of them on
	// average; kube-proxy's chains have no bound.
	flatBackends = 64
	// mostGroups is what two hexadecimal digits can name, and a byte can choose.
	mostGroups = 256
)

// groups divides backends into about as many groups as one has members, so that a new connection passes about √n rules instead
// of n/2. Some may be empty. A backend's address alone decides which group it is in, so that a backend more or less rewrites one
// group, and the chain that picks the groups. (Groups of equal size would need no odds of their own, but one backend more
// would move the members of all of them.) The number of groups is a power of two, so that it seldom changes.
func groups(backends []proxy.Backend) [][]proxy.Backend {
	n := 1
	for n*n < len(backends) && n < mostGroups {
		n *= 2
	}
	list := make([][]proxy.Backend, n)
	for _, b := range backends {
		// Addresses of pods lie close together, and a quick hash would leave many groups empty.
		sum := sha256.Sum256(b.Addr.AppendTo(nil))
		group := &list[int(sum[0])&(n-1)]
		*group = append(*group, b)
	}
	return list
}
