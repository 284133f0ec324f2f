package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// Numbers of linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
const (
	nftGetTable = 1 // NFT_MSG_GETTABLE
	nftDelTable = 2 // NFT_MSG_DELTABLE

	nftTableName = 1 // NFTA_TABLE_NAME

	batchBegin = 0x10 // NFNL_MSG_BATCH_BEGIN
	batchEnd   = 0x11 // NFNL_MSG_BATCH_END
)

// kubeProxyTable is the nftables table, one of ip and one of ip6, that a kube-proxy in nftables mode keeps.
const kubeProxyTable = "kube-proxy"

// kubeProxyTables returns the families in which there is a table of a kube-proxy in nftables mode. Without nf_tables in the
// kernel there is none.
func kubeProxyTables() (families []cluster.Family, err error) {
	n, err := openNfnetlink(unix.NFNL_SUBSYS_NFTABLES)
	if err != nil {
		return nil, unlessUnsupported(fmt.Errorf("list nftables tables: %w", err))
	}
	defer n.close()
	for _, f := range cluster.Families {
		err := n.execute(message{kind: nftGetTable, flags: unix.NLM_F_DUMP, family: afOf(f)}, func(attrs []byte) {
			for kind, b := range attributes(attrs) {
				if kind == nftTableName && string(bytes.TrimRight(b, "\x00")) == kubeProxyTable && !slices.Contains(families, f) {
					families = append(families, f)
				}
			}
		})
		if err != nil {
			return nil, unlessUnsupported(fmt.Errorf("list nftables tables of %s: %w", f, explain(err, "nftables (CONFIG_NF_TABLES)")))
		}
	}
	return families, nil
}

func unlessUnsupported(err error) error {
	if errors.Is(err, ErrNoKernelSupport) {
		return nil
	}
	return err
}

// deleteKubeProxyTable deletes the table of a kube-proxy in nftables mode with all that is in it, at once for every packet. One
// that is not there is a success.
func deleteKubeProxyTable(f cluster.Family) error {
	n, err := openNfnetlink(unix.NFNL_SUBSYS_NFTABLES)
	if err == nil {
		defer n.close()
		err = n.transact(message{kind: nftDelTable, family: afOf(f), attrs: attr(nil, nftTableName, []byte(kubeProxyTable+"\x00"))})
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s %s: %w", nftFamily(f), kubeProxyTable, explain(err, "nftables (CONFIG_NF_TABLES)"))
	}
	return nil
}

// nftFamily is what nft calls a family.
func nftFamily(f cluster.Family) string {
	if f == cluster.IPv6 {
		return "ip6"
	}
	return "ip"
}

// transact sends a message in a transaction of its own, which is how nf_tables takes changes, and waits for its result.
func (n *nfnetlink) transact(m message) error {
	const begin, change, end = 1, 2, 3
	var batch []byte
	batch = appendMessage(batch, batchBegin, unix.NLM_F_REQUEST, begin, unix.AF_UNSPEC, uint16(n.subsystem), nil)
	batch = appendMessage(batch, uint16(n.subsystem)<<8|uint16(m.kind), unix.NLM_F_REQUEST|unix.NLM_F_ACK|m.flags, change, m.family, 0, m.attrs)
	batch = appendMessage(batch, batchEnd, unix.NLM_F_REQUEST, end, unix.AF_UNSPEC, uint16(n.subsystem), nil)
	if err := unix.Sendto(n.socket.Socket.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		answers, _, err := n.socket.Socket.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			// A transaction that was refused as a whole is answered for its first message.
			if a.Header.Type == unix.NLMSG_ERROR && len(a.Data) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(a.Data)); code != 0 {
					return syscall.Errno(-code)
				}
				if a.Header.Seq == change {
					return nil
				}
			}
		}
	}
}

// appendMessage appends a message of nfnetlink: struct nlmsghdr, struct nfgenmsg, attributes.
func appendMessage(to []byte, kind uint16, flags int, seq uint32, family uint8, resource uint16, attrs []byte) []byte {
	to = binary.NativeEndian.AppendUint32(to, uint32(unix.SizeofNlMsghdr+4+len(attrs)))
	to = binary.NativeEndian.AppendUint16(to, kind)
	to = binary.NativeEndian.AppendUint16(to, uint16(flags))
	to = binary.NativeEndian.AppendUint32(to, seq)
	to = binary.NativeEndian.AppendUint32(to, 0)
	to = append(to, family, unix.NFNETLINK_V0)
	to = binary.BigEndian.AppendUint16(to, resource)
	return append(to, attrs...)
}
