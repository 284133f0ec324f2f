package netfilter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// tcpLiberal is documented in the kernel's Documentation/networking/nf_conntrack-sysctl.rst.
const tcpLiberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"

// TCPLiberal tells whether conntrack accepts TCP segments that are out of window; then none of them is INVALID, and a
// rule that drops INVALID packets is not wanted. It is false when conntrack is not loaded yet, as in a new network
// namespace: its default is to be strict.
func TCPLiberal() (bool, error) {
	value, err := os.ReadFile(tcpLiberal)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read whether conntrack is liberal: %w", err)
	}
	return strings.TrimSpace(string(value)) != "0", nil
}
