package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/proxy/iptables"
)

// Numbers of linux/netfilter/nfnetlink.h and linux/netfilter/nfnetlink_acct.h.
const (
	subsystemAccounting = 7 // NFNL_SUBSYS_ACCT

	accountingNew = 0 // NFNL_MSG_ACCT_NEW
	accountingGet = 1 // NFNL_MSG_ACCT_GET

	nfacctName    = 1
	nfacctPackets = 2
)

// counters are the kernel's counters that rules can add to with the match nfacct. They belong to the network namespace, and go
// on counting while rules are replaced.
var counters = [...]string{iptables.InvalidCounter, iptables.LocalhostCounter}

// EnsureCounters makes the counters that there are none of yet. Only then will iptables take rules that name them. errors.Is
// finds ErrNoKernelSupport where the kernel has no such thing, and fs.ErrPermission without NET_ADMIN.
func EnsureCounters() error {
	return withAccounting("make", func(n *nfnetlink) error {
		for _, name := range counters {
			m := message{kind: accountingNew, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ACK, attrs: attr(nil, nfacctName, []byte(name+"\x00"))}
			// EBUSY is "already there" (net/netfilter/nfnetlink_acct.c, nfnl_acct_new).
			if err := n.execute(m, func([]byte) {}); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
}

// ReadCounters returns how many packets the counters have counted, those of EnsureCounters that exist.
func ReadCounters() (map[string]uint64, error) {
	packets := map[string]uint64{}
	err := withAccounting("read", func(n *nfnetlink) error {
		for _, name := range counters {
			m := message{kind: accountingGet, flags: unix.NLM_F_ACK, attrs: attr(nil, nfacctName, []byte(name+"\x00"))}
			err := n.execute(m, func(attrs []byte) {
				if is, count, ok := decodeCounter(attrs); ok && is == name {
					packets[name] = count
				}
			})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	return packets, err
}

func withAccounting(verb string, do func(*nfnetlink) error) error {
	n, err := openNfnetlink(subsystemAccounting)
	if err == nil {
		defer n.close()
		err = do(n)
	}
	if err != nil {
		return fmt.Errorf("%s packet counters: %w", verb, explain(err, "nfacct (CONFIG_NETFILTER_NETLINK_ACCT)"))
	}
	return nil
}

func decodeCounter(attrs []byte) (name string, packets uint64, ok bool) {
	for kind, b := range attributes(attrs) {
		switch {
		case kind == nfacctName:
			name = string(bytes.TrimRight(b, "\x00"))
		case kind == nfacctPackets && len(b) == 8:
			packets, ok = binary.BigEndian.Uint64(b), true
		}
	}
	return name, packets, ok
}
