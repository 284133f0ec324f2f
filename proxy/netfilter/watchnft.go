package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// Of linux/netfilter/nf_tables.h and nfnetlink.h; more of them are in nftables.go.
const (
	subsystemNFTables = 10 // NFNL_SUBSYS_NFTABLES
	groupNFTables     = 7  // NFNLGRP_NFTABLES

	nftNewTable = 0
	nftNewChain = 3
	nftDelChain = 5
	nftNewRule  = 6
	nftDelRule  = 8
	nftNewGen   = 15

	nftaChainTable  = 1 // NFTA_CHAIN_TABLE
	nftaChainName   = 3 // NFTA_CHAIN_NAME
	nftaRuleTable   = 1 // NFTA_RULE_TABLE
	nftaRuleChain   = 2 // NFTA_RULE_CHAIN
	nftaGenProcPid  = 2 // NFTA_GEN_PROC_PID
	nftaGenProcName = 3 // NFTA_GEN_PROC_NAME
)

// nftBuffer is the size of the receive buffer in bytes. A rule takes up to 1 KiB of it; what does not fit is lost, and then
// everything is read back, as it is after a change of so many rules anyway.
var nftBuffer = 1 << 20

func (b *Backend) openNFTWatch() (*Watch, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, groupNFTables)
	if err != nil {
		return nil, fmt.Errorf("watch rules: subscribe: %w", err)
	}
	if s.SetReceiveBufferSize(nftBuffer, true) != nil {
		err = s.SetReceiveBufferSize(nftBuffer, false)
	}
	second := unix.NsecToTimeval(quietEvery.Nanoseconds())
	if err := errors.Join(err, s.SetReceiveTimeout(&second)); err != nil {
		s.Close()
		return nil, fmt.Errorf("watch rules: set up socket: %w", err)
	}
	w := &nftWatch{backend: b, socket: s}
	b.own.watch(w.passOver)
	return &Watch{backend: b, run: w.run, close: func() {
		b.own.watch(nil)
		s.Close()
	}}, nil
}

// passOver makes the kernel keep to itself what these processes do. Telling of a first load would take tens of MiB, overflow the
// buffer, and what others do meanwhile would be lost. What comes through before is passed over by commit.
func (w *nftWatch) passOver(pids []int) {
	const portOffset = 12 // of nlmsg_pid in struct nlmsghdr
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset}}
	for _, pid := range pids[:min(len(pids), 1000)] {
		// The filter loads in network byte order what is in the machine's.
		var port [4]byte
		binary.NativeEndian.PutUint32(port[:], uint32(pid))
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: binary.BigEndian.Uint32(port[:])},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)})
	// Without it the watch works all the same.
	_ = unix.SetsockoptSockFprog(w.socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// An nftWatch follows the kernel's notifications. Those of one transaction come in one piece and end with that of the new
// generation of the rules, which says who committed it.
type nftWatch struct {
	backend *Backend
	socket  *nl.NetlinkSocket
	// touched is what the transaction of which messages are coming has touched so far.
	touched map[cluster.Family]*touched
}

// touched is a part of a Change.
type touched struct {
	anything bool
	chains   []iptables.ChainName
}

func (w *nftWatch) run(ctx context.Context, o Observer) error {
	var last time.Time
	for {
		at := time.Now()
		messages, from, err := w.socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			w.touched = nil
			w.backend.anything(o, "")
			continue
		case errors.Is(err, unix.EAGAIN): // nothing came for a while
			at = time.Now()
			w.tell(o, "") // the end of a transaction was among messages that were lost
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("watch rules: receive: %w", err)
		case from.Pid != nl.PidKernel:
			continue
		}
		for i := range messages {
			w.message(o, &messages[i])
		}
		// What the kernel sent before the call that returned this has been read; the rest of a transaction may be on its way.
		if len(w.touched) == 0 && time.Since(last) >= quietEvery {
			last = at
			w.backend.quiet(o, at)
		}
	}
}

func (w *nftWatch) message(o Observer, m *syscall.NetlinkMessage) {
	if m.Header.Type>>8 != subsystemNFTables || len(m.Data) < nl.SizeofNfgenmsg {
		return
	}
	kind, af, attrs := m.Header.Type&0xff, m.Data[0], m.Data[nl.SizeofNfgenmsg:]
	if kind == nftNewGen {
		w.commit(o, int(m.Header.Pid), attrs)
		return
	}
	f, ok := familyOf(af)
	if !ok {
		return
	}
	table, chain, ok := subject(kind, attrs)
	if !ok || !slices.Contains(iptables.Tables[:], table) {
		return
	}
	switch {
	case kind == nftNewTable:
		// One that is new has nothing yet; one that is changed may be dormant.
		w.touch(f).anything = w.touch(f).anything || m.Header.Flags&unix.NLM_F_CREATE == 0
	case kind == nftDelTable:
		w.touch(f).anything = true
	case kind == nftNewChain && m.Header.Flags&(unix.NLM_F_CREATE|unix.NLM_F_EXCL) == 0:
		// Renamed perhaps, and only the new name is told. (Old kernels set neither flag, also for new chains.)
		w.touch(f).anything = true
	case concerns(table, chain):
		w.touch(f).add(iptables.ChainName{Table: table, Chain: chain})
	}
}

func (w *nftWatch) touch(f cluster.Family) *touched {
	if w.touched == nil {
		w.touched = map[cluster.Family]*touched{}
	}
	if w.touched[f] == nil {
		w.touched[f] = &touched{}
	}
	return w.touched[f]
}

func (t *touched) add(c iptables.ChainName) {
	switch {
	case t.anything || len(t.chains) > 0 && t.chains[len(t.chains)-1] == c || slices.Contains(t.chains, c):
	case len(t.chains) == maxDoubts || c.Chain == sharedChain:
		t.anything = true
	default:
		t.chains = append(t.chains, c)
	}
}

// commit ends a transaction. The port of the socket that it came through is the pid of its process, as that sees it itself
// (netlink(7)): unlike the pid in the message, which is the machine's, it can be compared with those of our children also in a
// container.
func (w *nftWatch) commit(o Observer, port int, attrs []byte) {
	if len(w.touched) == 0 || w.backend.own.has(port) {
		w.touched = nil
		return
	}
	pid, name := 0, ""
	for kind, value := range attributes(attrs) {
		switch {
		case kind == nftaGenProcPid && len(value) == 4:
			pid = int(binary.BigEndian.Uint32(value))
		case kind == nftaGenProcName:
			name = string(value)
		}
	}
	w.tell(o, who(pid, name))
}

// tell tells what has been touched so far.
func (w *nftWatch) tell(o Observer, by string) {
	done := w.touched
	w.touched = nil
	for f, t := range done {
		switch {
		case t.anything:
			o.Changed(Change{Family: f, By: by})
		case len(t.chains) > 0:
			o.Changed(Change{Family: f, Chains: t.chains, By: by})
		}
	}
}

// subject returns the table and the chain, if any, that a message is about; ok is false for messages about neither.
func subject(kind uint16, attrs []byte) (table, chain string, ok bool) {
	var tableAttr, chainAttr uint16
	switch kind {
	case nftNewTable, nftDelTable:
		tableAttr = nftTableName
	case nftNewChain, nftDelChain:
		tableAttr, chainAttr = nftaChainTable, nftaChainName
	case nftNewRule, nftDelRule:
		tableAttr, chainAttr = nftaRuleTable, nftaRuleChain
	default:
		return "", "", false
	}
	for kind, value := range attributes(attrs) {
		switch {
		case kind == tableAttr:
			table = unix.ByteSliceToString(value)
		case kind == chainAttr && chainAttr != 0:
			chain = unix.ByteSliceToString(value)
		}
	}
	return table, chain, true
}

func familyOf(af uint8) (cluster.Family, bool) {
	for _, f := range cluster.Families {
		if afOf(f) == af {
			return f, true
		}
	}
	return 0, false
}
