package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// A wire is a conntrack entry to be made.
type wire struct {
	protocol              uint8
	client, dst, answers  netip.AddrPort
	zone, zoneOfDirection uint16
}

func udpFlow(client, dst, answers string) wire {
	return wire{protocol: unix.IPPROTO_UDP, client: netip.MustParseAddrPort(client), dst: netip.MustParseAddrPort(dst), answers: netip.MustParseAddrPort(answers)}
}

func (w wire) family() cluster.Family { return cluster.FamilyOf(w.dst.Addr()) }

// encode is the message that makes the entry.
func (w wire) encode() message {
	number := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	port := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	direction := func(src, dst netip.AddrPort) []byte {
		from, to := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
		if src.Addr().Is6() {
			from, to = ctaIPv6Src, ctaIPv6Dst
		}
		ip := attr(attr(nil, from, src.Addr().AsSlice()), to, dst.Addr().AsSlice())
		proto := attr(nil, ctaProtoNum, []byte{w.protocol})
		proto = attr(attr(proto, ctaProtoSrcPort, port(src.Port())), ctaProtoDstPort, port(dst.Port()))
		return nested(nested(nil, ctaTupleIP, ip), ctaTupleProto, proto)
	}
	orig := direction(w.client, w.dst)
	if w.zoneOfDirection != 0 {
		orig = attr(orig, ctaTupleZone, port(w.zoneOfDirection))
	}
	attrs := nested(nil, ctaTupleOrig, orig)
	attrs = nested(attrs, ctaTupleReply, direction(w.answers, w.client))
	const ctaTimeout = 7
	attrs = attr(attrs, ctaTimeout, number(600))
	if w.protocol == unix.IPPROTO_TCP {
		const ctaProtoinfo, tcp, state, established = 4, 1, 1, 3
		attrs = nested(attrs, ctaProtoinfo, nested(nil, tcp, attr(nil, state, []byte{established})))
	}
	if w.zone != 0 {
		attrs = attr(attrs, ctaZone, port(w.zone))
	}
	const conntrackNew = 0 // IPCTNL_MSG_CT_NEW
	return message{conntrackNew, unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ACK, afOf(w.family()), attrs}
}

// remember makes entries.
func remember(t testing.TB, list ...wire) {
	t.Helper()
	n, err := openNfnetlink(subsystemConntrack)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	for _, w := range list {
		if err := n.execute(w.encode(), func([]byte) {}); err != nil {
			t.Fatalf("make entry %v: %v", w, err)
		}
	}
}

// remembered lists the entries of all protocols of a family: "udp 10.0.0.1:1 10.96.0.1:53 10.244.0.1:53".
func remembered(t testing.TB, f cluster.Family) (list []string) {
	t.Helper()
	n, err := openNfnetlink(subsystemConntrack)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	err = n.execute(message{conntrackGet, unix.NLM_F_DUMP, afOf(f), nil}, func(attrs []byte) {
		var orig, reply tuple
		for kind, b := range attributes(attrs) {
			switch kind {
			case ctaTupleOrig:
				orig = decodeTuple(b)
			case ctaTupleReply:
				reply = decodeTuple(b)
			}
		}
		list = append(list, fmt.Sprint(cluster.Protocol(orig.protocol), " ", orig.src, " ", orig.dst, " ", reply.src))
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// Entries are deleted that are stale, and no other: not those of other protocols, families or zones with the same tuple.
func TestCleanFlows(t *testing.T) {
	inNamespace(t)
	const client, vip, pod = "192.0.2.1:4000", "10.96.0.10:53", "10.244.0.2:53"
	const client6, vip6, pod6 = "[2001:db8::1]:4000", "[fd00:96::10]:53", "[fd00:244::2]:53"
	tcp := udpFlow(client, vip, pod)
	tcp.protocol = unix.IPPROTO_TCP
	zoned := udpFlow(client, vip, vip)
	zoned.zone = 7
	oneWay := udpFlow(client, vip, vip)
	oneWay.zoneOfDirection = 8
	remember(t, udpFlow(client, vip, pod), udpFlow("192.0.2.2:4000", vip, pod), tcp, zoned, oneWay, udpFlow(client6, vip6, pod6), udpFlow("[2001:db8::2]:4000", vip6, vip6))

	var flows []string
	report, err := CleanFlows(cluster.IPv4, func(f proxy.Flow) bool {
		flows = append(flows, fmt.Sprint(f.Dst, " ", f.Answers, " ", f.Zoned))
		return false
	})
	slices.Sort(flows)
	want := []string{vip + " " + pod + " false", vip + " " + pod + " false", vip + " " + vip + " true", vip + " " + vip + " true"}
	slices.Sort(want)
	if err != nil || !slices.Equal(flows, want) || report.Seen != 4 || report.Deleted != 0 || report.Duration <= 0 {
		t.Errorf("flows %v, report %+v, %v; want %v", flows, report, err, want)
	}
	if n := len(remembered(t, cluster.IPv4)); n != 5 {
		t.Errorf("%d IPv4 entries are left, want 5", n)
	}

	report, err = CleanFlows(cluster.IPv4, func(f proxy.Flow) bool { return f.Answers == netip.MustParseAddrPort(pod) })
	if err != nil || report.Deleted != 2 {
		t.Errorf("report %+v, %v, want 2 deleted", report, err)
	}
	left := remembered(t, cluster.IPv4)
	want = []string{"tcp " + client + " " + vip + " " + pod, "udp " + client + " " + vip + " " + vip, "udp " + client + " " + vip + " " + vip}
	if !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}

	// Zones, whole and of one direction, are part of what is deleted.
	report, err = CleanFlows(cluster.IPv4, func(f proxy.Flow) bool { return true })
	if err != nil || report.Seen != 2 || report.Deleted != 2 {
		t.Errorf("report %+v, %v, want 2 deleted", report, err)
	}
	if left := remembered(t, cluster.IPv4); !slices.Equal(left, want[:1]) {
		t.Errorf("left are %v, want %v", left, want[:1])
	}

	report, err = CleanFlows(cluster.IPv6, func(f proxy.Flow) bool { return f.Answers == netip.MustParseAddrPort(pod6) })
	if err != nil || report.Seen != 2 || report.Deleted != 1 {
		t.Errorf("report %+v, %v, want 1 of 2 deleted", report, err)
	}
	if left, want := remembered(t, cluster.IPv6), []string{"udp [2001:db8::2]:4000 " + vip6 + " " + vip6}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

// The kernel sends UDP entries only, where it can.
func TestOnlyUDP(t *testing.T) {
	inNamespace(t)
	tcp := udpFlow("192.0.2.1:4000", "10.96.0.10:53", "10.244.0.2:53")
	tcp.protocol = unix.IPPROTO_TCP
	remember(t, tcp, udpFlow("192.0.2.1:4001", "10.96.0.10:53", "10.244.0.2:53"))
	n, err := openNfnetlink(subsystemConntrack)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	var protocols []uint8
	err = n.execute(message{conntrackGet, unix.NLM_F_DUMP, unix.AF_INET, onlyUDP()}, func(attrs []byte) {
		for kind, b := range attributes(attrs) {
			if kind == ctaTupleOrig {
				protocols = append(protocols, decodeTuple(b).protocol)
			}
		}
	})
	if err != nil || !slices.Equal(protocols, []uint8{unix.IPPROTO_UDP}) {
		t.Errorf("the kernel sent entries of the protocols %v, %v", protocols, err)
	}
}

// An entry that has taken the place of a stale one, with the same tuple, stays.
func TestCleanFlowsSparesTheSuccessor(t *testing.T) {
	inNamespace(t)
	remember(t, udpFlow("192.0.2.1:4000", "10.96.0.10:53", "10.244.0.2:53"))
	n, err := openNfnetlink(subsystemConntrack)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	replaced := false
	c := conntrack{cluster.IPv4, func(m message, each func([]byte)) error {
		if m.kind == conntrackDelete && !replaced {
			replaced = true
			if report, err := CleanFlows(cluster.IPv4, func(proxy.Flow) bool { return true }); err != nil || report.Deleted != 1 {
				t.Errorf("report %+v, %v", report, err)
			}
			remember(t, udpFlow("192.0.2.1:4000", "10.96.0.10:53", "10.244.0.3:53"))
		}
		return n.execute(m, each)
	}}
	report, err := c.clean(func(proxy.Flow) bool { return true })
	if err != nil || report.Deleted != 0 {
		t.Errorf("report %+v, %v, want nothing deleted", report, err)
	}
	if left := remembered(t, cluster.IPv4); !slices.Equal(left, []string{"udp 192.0.2.1:4000 10.96.0.10:53 10.244.0.3:53"}) {
		t.Errorf("left are %v", left)
	}
}

// TestCleanFlowsOfATroubledKernel breaks off dumps and refuses deletions.
func TestCleanFlowsOfATroubledKernel(t *testing.T) {
	shown := udpFlow("192.0.2.1:4000", "10.96.0.10:53", "10.244.0.2:53").encode().attrs
	for _, c := range []struct {
		name           string
		dumps, deletes []error // of each call, the last one from then on
		want           FlowsReport
		err            string
		is             error
	}{
		{"well", []error{nil}, []error{nil}, FlowsReport{Seen: 1, Deleted: 1}, "", nil},
		{"interrupted twice", []error{unix.EINTR, unix.ENOBUFS, nil}, []error{nil, unix.ENOENT}, FlowsReport{Seen: 1, Deleted: 1}, "", nil},
		{"interrupted always", []error{unix.EINTR}, []error{nil}, FlowsReport{Seen: 1, Deleted: 5}, "5 attempts", unix.EINTR},
		{"no support", []error{unix.EINVAL}, nil, FlowsReport{Seen: 1, Deleted: 1}, "CONFIG_NF_CT_NETLINK", ErrNoKernelSupport},
		{"not permitted", []error{unix.EPERM}, nil, FlowsReport{Seen: 1, Deleted: 1}, "NET_ADMIN is needed", fs.ErrPermission},
		{"offloaded", []error{nil}, []error{unix.EBUSY}, FlowsReport{Seen: 1, Offloaded: 1}, "", nil},
		{"deletion refused", []error{nil}, []error{unix.EPERM}, FlowsReport{Seen: 1}, "delete", fs.ErrPermission},
	} {
		t.Run(c.name, func(t *testing.T) {
			next := func(list *[]error) (err error) {
				if len(*list) > 0 {
					err = (*list)[0]
				}
				if len(*list) > 1 {
					*list = (*list)[1:]
				}
				return err
			}
			table := conntrack{cluster.IPv4, func(m message, each func([]byte)) error {
				if m.kind == conntrackDelete {
					return next(&c.deletes)
				}
				each(shown)
				return next(&c.dumps)
			}}
			report, err := table.clean(func(proxy.Flow) bool { return true })
			if report != c.want {
				t.Errorf("report %+v, want %+v", report, c.want)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, c.is)) {
				t.Errorf("error %v, want %s", err, c.err)
			}
		})
	}
}

// Without the privilege the error says what is missing.
func TestCleanFlowsNotPermitted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to drop it")
	}
	runtime.LockOSThread() // and the thread ends with its capabilities
	if err := dropNetAdmin(); err != nil {
		t.Fatal(err)
	}
	_, err := CleanFlows(cluster.IPv4, func(proxy.Flow) bool { return false })
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("error %v", err)
	}
	if err := EnsureCounters(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("counters: error %v", err)
	}
}

func dropNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	data[0].Permitted &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &data[0])
}

// What is cut off or from another kernel is no flow, and no panic.
func FuzzDecodeFlow(f *testing.F) {
	f.Add(udpFlow("192.0.2.1:4000", "10.96.0.10:53", "10.244.0.2:53").encode().attrs)
	f.Add(udpFlow("[2001:db8::1]:4000", "[fd00:96::10]:53", "[fd00:244::2]:53").encode().attrs)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, flow, ok := decodeFlow(b)
		if ok && (!flow.Dst.Addr().IsValid() || !flow.Answers.Addr().IsValid()) {
			t.Errorf("%v is no flow", flow)
		}
		decodeCounter(b)
	})
}

// remembers100k fills a namespace with entries, of which a tenth is answered by stale.
func remembers100k(b *testing.B) (again func()) {
	if os.Geteuid() != 0 {
		b.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	var fresh, old []wire
	for i := range benchmarked {
		client := fmt.Sprintf("192.0.%d.%d:%d", i/256%256, i%256, 1024+i/65536)
		if i%10 == 0 {
			old = append(old, udpFlow(client, "10.96.0.10:53", benchmarkStale.String()))
		} else {
			fresh = append(fresh, udpFlow(client, "10.96.0.10:53", "10.244.0.3:53"))
		}
	}
	remember(b, fresh...)
	remember(b, old...)
	return func() { remember(b, old...) }
}

const benchmarked = 100_000

var benchmarkStale = netip.MustParseAddrPort("10.244.0.2:53")

// BenchmarkReviewFlows looks through 100,000 entries.
func BenchmarkReviewFlows(b *testing.B) {
	remembers100k(b)
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		if report, err := CleanFlows(cluster.IPv4, func(proxy.Flow) bool { return false }); err != nil || report.Seen != benchmarked {
			b.Fatalf("report %+v, %v", report, err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// cpuTime is what the process has spent, the kernel's part included.
func cpuTime(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkCleanFlows looks through 100,000 entries and deletes 10,000.
func BenchmarkCleanFlows(b *testing.B) {
	again := remembers100k(b)
	b.ReportAllocs()
	for b.Loop() {
		report, err := CleanFlows(cluster.IPv4, func(f proxy.Flow) bool { return f.Answers == benchmarkStale })
		if err != nil || report.Deleted != benchmarked/10 {
			b.Fatalf("report %+v, %v", report, err)
		}
		b.StopTimer()
		again()
		b.StartTimer()
	}
}
