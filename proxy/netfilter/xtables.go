package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// Legacy iptables' tables as the kernel gives them out: linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h and
// linux/netfilter/x_tables.h, with the layout of 64-bit machines.
const (
	getInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	xtHooks      = 5  // NF_INET_NUMHOOKS
	entriesStart = 40 // of struct ipt_get_entries
	targetHeader = 32 // sizeof(struct xt_entry_target)
	errorTarget  = "ERROR"
)

// tableInfo is struct ipt_getinfo.
type tableInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [xtHooks]uint32
	underflow  [xtHooks]uint32
	entries    uint32
	size       uint32
}

// An entryLayout tells where in an entry the parts are that depend on the family.
type entryLayout struct {
	af, level int
	// match is the size of what comes first, the addresses and interfaces; behind it is a number of the kernel's own.
	match int
	// offsets is where target_offset and next_offset are, elements where the matches begin; in between are counters.
	offsets, elements int
}

var layouts = map[cluster.Family]entryLayout{
	cluster.IPv4: {unix.AF_INET, unix.SOL_IP, 84, 88, 112},
	cluster.IPv6: {unix.AF_INET6, unix.SOL_IPV6, 136, 140, 168},
}

// An xtTable reads one table. It is for one goroutine.
type xtTable struct {
	layout entryLayout
	table  string
	socket int
	// chains has a hash of the name of the chain whose rules begin at an offset.
	chains map[uint32]uint64
}

// A print is what is compared of a chain: a hash of its rules without their counters, and their number.
type print struct {
	hash  uint64
	rules int
}

var (
	printSeed = maphash.MakeSeed()
	errMoved  = errors.New("the table changed while it was read")
)

// chainKey stands for the name of a chain of a table.
func chainKey(table string, chain string) uint64 {
	return maphash.String(printSeed, table+"/"+chain)
}

// openSocket opens what sockopts are asked through, in the network namespace of the calling thread.
func openSocket(f cluster.Family) (int, error) {
	fd, err := unix.Socket(layouts[f].af, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("watch %s rules: open raw socket: %w", f, err)
	}
	return fd, nil
}

func (t *xtTable) info() (tableInfo, error) {
	var info tableInfo
	copy(info.name[:], t.table)
	size := uint32(unsafe.Sizeof(info))
	err := getsockopt(t.socket, t.layout.level, getInfo, unsafe.Pointer(&info), &size)
	if err != nil {
		return info, fmt.Errorf("table %s: size: %w", t.table, err)
	}
	return info, nil
}

func getsockopt(fd, level, name int, value unsafe.Pointer, size *uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), uintptr(unsafe.Pointer(size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// prints returns those of the chains that concern us, by chainKey. The error is errMoved when the table changed meanwhile; then
// try again.
func (t *xtTable) prints(info tableInfo) (map[uint64]print, error) {
	size := entriesStart + int(info.size)
	// The rules of a large cluster are tens of MiB, which should be nobody's for longer than this.
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("table %s: memory: %w", t.table, err)
	}
	defer func() { _ = unix.Munmap(b) }()
	copy(b, t.table)
	binary.NativeEndian.PutUint32(b[32:], info.size)
	length := uint32(size)
	err = getsockopt(t.socket, t.layout.level, getEntries, unsafe.Pointer(&b[0]), &length)
	switch {
	case errors.Is(err, unix.EAGAIN): // it has another size by now
		return nil, errMoved
	case err != nil:
		return nil, fmt.Errorf("table %s: entries: %w", t.table, err)
	}
	return t.walk(b[entriesStart:], info)
}

// walk goes through the entries twice: for where chains begin, which jumps refer to, and for what is in them.
func (t *xtTable) walk(b []byte, info tableInfo) (map[uint64]print, error) {
	begin := map[uint32]string{}
	hooks := hookNames[t.table]
	for hook, name := range hooks {
		if info.validHooks&(1<<hook) != 0 {
			begin[info.hookEntry[hook]] = name
		}
	}
	t.chains = make(map[uint32]uint64, len(t.chains))
	err := t.each(b, func(at, next uint32, e xtEntry) {
		if chain, ok := e.head(); ok {
			t.chains[next] = maphash.Bytes(printSeed, chain)
		}
	})
	if err != nil {
		return nil, err
	}
	prints := make(map[uint64]print, len(t.chains))
	var key uint64
	var p print
	ours := false
	finish := func() {
		if ours {
			p.rules-- // the last entry is the chain's policy, or the return to where it was called
			prints[key] = p
		}
		ours, p = false, print{}
	}
	err = t.each(b, func(at, next uint32, e xtEntry) {
		if chain, ok := e.head(); ok {
			finish()
			name := string(chain)
			if ours = concerns(t.table, name); ours {
				key = chainKey(t.table, name)
			}
			return
		}
		if name, ok := begin[at]; ok {
			finish()
			ours, key = true, chainKey(t.table, name)
		}
		if ours {
			p.rules++
			p.hash = p.hash*1099511628211 ^ t.hash(e)
		}
	})
	// What follows the last chain is the table's end, which looks like the head of a chain.
	return prints, err
}

// hookNames are the built-in chains by hook, enum nf_inet_hooks of linux/netfilter.h.
var hookNames = map[string]map[int]string{
	iptables.Filter: {1: "INPUT", 2: "FORWARD", 3: "OUTPUT"},
	iptables.NAT:    {0: "PREROUTING", 1: "INPUT", 3: "OUTPUT", 4: "POSTROUTING"},
}

// An xtEntry is a rule.
type xtEntry struct {
	match, matches, target []byte
}

// head returns the name of the chain that the entry is the head of; ok is false when it is a rule.
func (e xtEntry) head() (chain []byte, ok bool) {
	if string(e.target[2:2+len(errorTarget)+1]) != errorTarget+"\x00" {
		return nil, false
	}
	name := e.target[targetHeader:]
	for i, c := range name {
		if c == 0 {
			return name[:i], true
		}
	}
	return name, true
}

// each walks the entries, and fails when they are not laid out as expected.
func (t *xtTable) each(b []byte, visit func(at, next uint32, e xtEntry)) error {
	l := t.layout
	for at := 0; at < len(b); {
		if len(b)-at < l.elements {
			return fmt.Errorf("table %s: the entry at %d is cut off", t.table, at)
		}
		target := int(binary.NativeEndian.Uint16(b[at+l.offsets:]))
		next := int(binary.NativeEndian.Uint16(b[at+l.offsets+2:]))
		if target < l.elements || next < target+targetHeader+4 || at+next > len(b) {
			return fmt.Errorf("table %s: the entry at %d is not understood", t.table, at)
		}
		e := b[at : at+next]
		visit(uint32(at), uint32(at+next), xtEntry{e[:l.match], e[l.elements:target], e[target:]})
		at += next
	}
	return nil
}

// hash is that of a rule. A jump's target is an offset, which changes with rules elsewhere; the chain that begins there counts.
func (t *xtTable) hash(e xtEntry) uint64 {
	h := maphash.Bytes(printSeed, e.match)
	if len(e.matches) > 0 {
		h = h*31 ^ maphash.Bytes(printSeed, e.matches)
	}
	if standard := e.target[2] == 0; standard {
		if chain, ok := t.chains[binary.NativeEndian.Uint32(e.target[targetHeader:])]; ok {
			return h*31 ^ chain
		}
	}
	return h*31 ^ maphash.Bytes(printSeed, e.target)
}
