package netfilter

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
)

// ipvsLink is the interface at which a kube-proxy in IPVS mode has the addresses of all Services.
const ipvsLink = "kube-ipvs0"

// ipvsSets are the ipsets of a kube-proxy in IPVS mode. Others have sets whose names begin with KUBE-, too: kube-router's network
// policies for example.
var ipvsSets = []string{"KUBE-LOOP-BACK", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-LOAD-BALANCER",
	"KUBE-LOAD-BALANCER-LOCAL", "KUBE-LOAD-BALANCER-FW", "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR",
	"KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-LOCAL-UDP", "KUBE-NODE-PORT-SCTP-HASH",
	"KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS"}

// maxSetName is the longest name of an ipset, IPSET_MAXNAMELEN-1 (linux/netfilter/ipset/ip_set.h).
const maxSetName = 31

// isIPVSSet tells whether an ipset is kube-proxy's. For IPv6 its name has a 6 in it, and is cut off.
func isIPVSSet(name string) bool {
	return slices.ContainsFunc(ipvsSets, func(s string) bool {
		six := "KUBE-6-" + strings.TrimPrefix(s, "KUBE-")
		return name == s || name == six[:min(len(six), maxSetName)]
	})
}

// A virtualService is a Service of IPVS.
type virtualService struct {
	protocol uint16 // IPPROTO_*
	at       netip.AddrPort
}

func (s virtualService) String() string {
	return fmt.Sprintf("%s/%s", s.at, map[uint16]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[s.protocol])
}

// An ipvsState is what there is of IPVS in this network namespace.
type ipvsState struct {
	// link tells that there is kube-proxy's interface, addrs are the addresses on it.
	link  bool
	addrs []netip.Addr
	// services are the virtual services at these addresses, others counts those elsewhere: node ports of kube-proxy, or somebody
	// else's.
	services []virtualService
	others   int
	// established counts the TCP connections that go through IPVS.
	established int
	sets        []string
}

// readIPVS reads what there is. proc is /proc/net.
func readIPVS(proc string) (s ipvsState, err error) {
	if s.addrs, s.link, err = ipvsAddrs(); err != nil {
		return s, err
	}
	all, err := readLines(filepath.Join(proc, "ip_vs"), parseVirtualService)
	if err != nil {
		return s, err
	}
	for _, v := range all {
		if slices.Contains(s.addrs, v.at.Addr()) {
			s.services = append(s.services, v)
		} else {
			s.others++
		}
	}
	connections, err := readLines(filepath.Join(proc, "ip_vs_conn"), func(line string) (struct{}, bool) {
		f := strings.Fields(line)
		return struct{}{}, len(f) > 7 && f[7] == "ESTABLISHED"
	})
	if err != nil {
		return s, err
	}
	s.established = len(connections)
	s.sets, err = ipvsSetsThere()
	return s, err
}

func ipvsAddrs() (addrs []netip.Addr, there bool, err error) {
	link, err := netlink.LinkByName(ipvsLink)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look for %s: %w", ipvsLink, err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, true, fmt.Errorf("addresses of %s: %w", ipvsLink, err)
	}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, true, nil
}

func ipvsSetsThere() (names []string, err error) {
	all, err := netlink.IpsetListAll()
	if errors.Is(explain(err, "ipset"), ErrNoKernelSupport) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	for _, s := range all {
		if isIPVSSet(s.SetName) {
			names = append(names, s.SetName)
		}
	}
	return names, nil
}

// readLines returns what parse makes of the lines of a file; nothing when there is no such file.
func readLines[T any](path string, parse func(line string) (T, bool)) (list []T, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := parse(lines.Text()); ok {
			list = append(list, v)
		}
	}
	return list, lines.Err()
}

// parseVirtualService reads a line of /proc/net/ip_vs (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show).
//
//	TCP  0A60000A:0050 rr
//	UDP  [fd00:0010:0096:0000:0000:0000:0000:000b]:0035 rr
func parseVirtualService(line string) (s virtualService, ok bool) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return s, false
	}
	s.protocol, ok = map[string]uint16{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP}[f[0]]
	i := strings.LastIndexByte(f[1], ':')
	if !ok || i < 0 {
		return s, false
	}
	port, err := strconv.ParseUint(f[1][i+1:], 16, 16)
	if err != nil {
		return s, false
	}
	var addr netip.Addr
	if six, isSix := strings.CutPrefix(f[1][:i], "["); isSix {
		addr, err = netip.ParseAddr(strings.TrimSuffix(six, "]"))
	} else {
		var b []byte
		b, err = hex.DecodeString(f[1][:i])
		addr, _ = netip.AddrFromSlice(b)
	}
	s.at = netip.AddrPortFrom(addr, uint16(port))
	return s, err == nil && s.at.IsValid()
}

// Numbers of linux/ip_vs.h.
const (
	ipvsDelService   = 3 // IPVS_CMD_DEL_SERVICE
	ipvsVersion      = 1 // IPVS_GENL_VERSION
	ipvsCmdService   = 1 // IPVS_CMD_ATTR_SERVICE
	ipvsAttrFamily   = 1 // IPVS_SVC_ATTR_AF
	ipvsAttrProtocol = 2 // IPVS_SVC_ATTR_PROTOCOL
	ipvsAttrAddr     = 3 // IPVS_SVC_ATTR_ADDR
	ipvsAttrPort     = 4 // IPVS_SVC_ATTR_PORT
)

// encode returns the attributes that name the service.
func (s virtualService) encode() []byte {
	u16 := func(n uint16) []byte { return binary.NativeEndian.AppendUint16(nil, n) }
	addr := make([]byte, 16) // union nf_inet_addr
	copy(addr, s.at.Addr().AsSlice())
	attrs := attr(nil, ipvsAttrFamily, u16(uint16(afOf(cluster.FamilyOf(s.at.Addr())))))
	attrs = attr(attrs, ipvsAttrProtocol, u16(s.protocol))
	attrs = attr(attrs, ipvsAttrAddr, addr)
	attrs = attr(attrs, ipvsAttrPort, binary.BigEndian.AppendUint16(nil, s.at.Port()))
	return nested(nil, ipvsCmdService, attrs)
}

func deleteVirtualServices(list []virtualService) error {
	family, err := netlink.GenlFamilyGet("IPVS")
	if err != nil {
		return fmt.Errorf("delete virtual services of IPVS: %w", err)
	}
	var errs []error
	for _, s := range list {
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		req.AddData(&nl.Genlmsg{Command: ipvsDelService, Version: ipvsVersion})
		req.AddRawData(s.encode())
		if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete virtual service %s of IPVS: %w", s, err))
		}
	}
	return errors.Join(errs...)
}

func deleteIPVSLink() error {
	link, err := netlink.LinkByName(ipvsLink)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("delete %s: %w", ipvsLink, err)
	}
	return nil
}

func destroySets(names []string) error {
	var errs []error
	for _, name := range names {
		if err := netlink.IpsetDestroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("destroy ipset %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
