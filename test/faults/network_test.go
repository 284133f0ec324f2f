package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/test/lab"
)

const networkd = "/usr/lib/systemd/systemd-networkd"

// networkdFiles makes a folder that systemd-networkd is to have for /etc/systemd, which tells it of the link eth0 of a node.
func (r *rig) networkdFiles(n *lab.Node) string {
	r.Helper()
	if _, err := os.Stat(networkd); err != nil {
		if os.Getenv(lab.RequireEnv) == "require" {
			r.Fatalf("%s, of Debian's package systemd, is not here", networkd)
		}
		r.Skipf("it needs %s, of Debian's package systemd", networkd)
	}
	dir, err := os.MkdirTemp("", "networkd") // not TempDir: it runs as a user of its own
	r.ok(err)
	r.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			r.Error(err)
		}
	})
	r.ok(os.Chmod(dir, 0o755))
	network := "[Match]\nName=eth0\n[Network]\nIPv6AcceptRA=no\nGateway=10.240.0.1\nGateway=fd00:240::1\n"
	for _, f := range cluster.Families {
		network += fmt.Sprintf("Address=%s/%d\n", n.Addr(f), map[cluster.Family]int{cluster.IPv4: 16, cluster.IPv6: 64}[f])
	}
	r.ok(os.Mkdir(filepath.Join(dir, "network"), 0o755))
	r.ok(os.WriteFile(filepath.Join(dir, "network", "10-eth0.network"), []byte(network), 0o644))
	// Its default; said for whoever reads this.
	r.ok(os.WriteFile(filepath.Join(dir, "networkd.conf"), []byte("[Network]\nManageForeignRoutes=yes\n"), 0o644))
	return dir
}

// startNetworkd starts systemd-networkd for the link eth0 of a node, which it finds configured. It has files and a folder of state of
// its own, and a /sys that is read-only, without which it waits for udev.
func (r *rig) startNetworkd(n *lab.Node, dir string) *lab.Process {
	r.Helper()
	const script = `set -e
mount --make-rprivate /
mount -t tmpfs none /run/systemd
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network: /run/systemd/netif
mount --bind "$0" /etc/systemd
umount -l /sys
mount -t sysfs -o ro sysfs /sys
exec ` + networkd
	p, err := n.Start(lab.Command{Path: "unshare", Args: []string{"--mount", "sh", "-c", script, dir}})
	r.ok(err)
	r.Cleanup(func() {
		if r.Failed() {
			r.Logf("systemd-networkd (%s):\n%s", p.State(), p.Output())
		}
	})
	r.eventually(startBound, func() error {
		if !strings.Contains(p.Output(), "eth0: Configuring with") {
			return errors.New("systemd-networkd has not taken eth0: " + p.Output())
		}
		return nil
	})
	return p
}

// Fault 19: systemd-networkd starts on a link that is configured, and then the link's carrier goes. Told to manage foreign routes, as it is by
// default, it takes them and the addresses from the link; when the carrier is back it sets the addresses. fairway doctor names the setting,
// until it is another.
func TestFault19NetworkdPurges(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	m, flows := r.monitor(r.n1), r.traffic()
	dir := r.networkdFiles(r.n1)
	running := r.startNetworkd(r.n1, dir)
	r.eventually(eventBound, func() error { return r.exact(r.n1) })
	for range 2 {
		_, err := r.lab.Switch().Run("ip", "link", "set", "n1", "down")
		r.ok(err)
		r.eventually(eventBound, func() error {
			if left := r.owned(r.n1); len(left) != 0 {
				return fmt.Errorf("systemd-networkd has left %s", left)
			}
			return nil
		})
		began := time.Now()
		_, err = r.lab.Switch().Run("ip", "link", "set", "n1", "up")
		r.ok(err)
		repaired := m.repair(began)
		addressed := m.first(began, "[ADDR]")
		r.Logf("networkd set the first address %d ms after the carrier was back", addressed.Sub(began).Milliseconds())
		r.measured("carrier back, since the first address", repaired-addressed.Sub(began), time.Second)
	}
	flows.works(podTCP, podTCP6, podUDP, otherTCP)
	e := r.doctor(r.n1)
	r.ok(e.found(doctor.Fail, "route-owner", "ManageForeignRoutes=yes (/etc/systemd/networkd.conf)", "taken away", "networkd.conf.d/50-fairway.conf"))
	if e.code != 1 {
		t.Errorf("fairway doctor ends with %d, want 1:\n%s", e.code, e.text)
	}
	// The drop-in that it names counts when networkd has read it.
	r.ok(os.Mkdir(filepath.Join(dir, "networkd.conf.d"), 0o755))
	r.ok(os.WriteFile(filepath.Join(dir, "networkd.conf.d", "50-fairway.conf"), []byte("[Network]\nManageForeignRoutes=no\n"), 0o644))
	r.ok(r.doctor(r.n1).found(doctor.Warn, "route-owner", "has not read", "systemctl restart systemd-networkd"))
	r.ok(running.Stop(startBound))
	r.startNetworkd(r.n1, dir)
	r.eventually(eventBound, func() error { return r.exact(r.n1) })
	r.ok(r.doctor(r.n1).found(doctor.OK, "route-owner", "ManageForeignRoutes=no (/etc/systemd/networkd.conf.d/50-fairway.conf)"))
	r.getsWell(r.n1)
	flows.stop(nobody)
}

// Fault 20: while the agent can't listen, more changes than its socket holds; the kernel drops notifications. It compares everything,
// and nothing that was deleted is missed.
func TestFault20SocketOverflows(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	for i := range 1000 {
		r.setNode(nodeSpec(fmt.Sprintf("far%d", i), 100+i))
	}
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	r.ready(r.n1)
	flows := r.traffic()
	r.ok(r.agents["n1"].Signal(unix.SIGSTOP))
	var storm strings.Builder
	for i := range 10_000 {
		p := fmt.Sprintf("10.210.%d.%d/32", i/250, i%250)
		fmt.Fprintf(&storm, "route add %s via 10.240.0.12 proto static\nroute del %s proto static\n", p, p)
	}
	for i := range 100 {
		fmt.Fprintf(&storm, "route del %s proto 102\n", nodeSpec("", 100+10*i).PodCIDRs[0])
	}
	_, err := r.n1.RunInput(storm.String(), "ip", "-batch", "-")
	r.ok(err)
	dropped, err := r.netlinkDrops()
	r.ok(err)
	if dropped == 0 {
		t.Error("the agent's socket has lost no notification; the storm is too small")
	}
	m := r.monitor(r.n1)
	began := time.Now()
	r.ok(r.agents["n1"].Signal(unix.SIGCONT))
	r.measured(fmt.Sprintf("%d notifications lost, 100 routes deleted, since SIGCONT", dropped), m.repair(began), time.Second)
	for _, e := range m.events() {
		if e.deleted() {
			t.Errorf("deleted: %s", e.text)
		}
	}
	flows.stop()
}

// netlinkDrops is how many notifications the sockets of n1's agent have lost, by /proc/net/netlink: the process's number is the
// address of its first socket there, and others of one process can't be told by it; so it is the sum for all of the node.
func (r *rig) netlinkDrops() (sum int, err error) {
	out, err := r.n1.Run("cat", "/proc/net/netlink")
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		n := 0
		if len(f) == 10 {
			if _, err := fmt.Sscan(f[8], &n); err != nil {
				continue // the heading
			}
		}
		sum += n
	}
	return sum, err
}

// Fault 21: somebody changes 10,000 routes over and over, so that the kernel's lists are interrupted, while ours are flushed. They
// come back, and nothing is deleted that should not be.
func TestFault21InterruptedDumps(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	for i := range 100 {
		r.setNode(nodeSpec(fmt.Sprintf("far%d", i), 100+i))
	}
	r.write()
	r.eventually(startBound, func() error { return r.exact(r.n1) })
	r.ready(r.n1)
	var fill, churn strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&fill, "route add 10.210.%d.%d/32 via 10.240.0.12 proto static\n", i/250, i%250)
	}
	_, err := r.n1.RunInput(fill.String(), "ip", "-batch", "-")
	r.ok(err)
	for i := range 10_000 {
		p := fmt.Sprintf("10.211.%d.%d/32", i/250, i%250)
		fmt.Fprintf(&churn, "route add %s via 10.240.0.12 proto static\nroute del %s proto static\n", p, p)
	}
	flows := r.traffic()
	file := filepath.Join(t.TempDir(), "churn")
	r.ok(os.WriteFile(file, []byte(churn.String()), 0o600))
	p, err := r.n1.Start(lab.Command{Path: "sh", Args: []string{"-c", `while ip -batch "$0"; do :; done`, file}})
	r.ok(err)
	for i := range 5 {
		route := nodeSpec("", 100+i).PodCIDRs[0].String()
		began := time.Now()
		r.ip(r.n1, "route del "+route+" proto 102")
		r.measured("a route deleted beside the churn", r.took(began, func() error { return r.exact(r.n1) }), time.Second)
	}
	select {
	case <-p.Exited():
		t.Errorf("the churn has ended: %s", p.Output())
	default:
		p.Kill()
	}
	out, err := r.n1.Run("ip", "-4", "route", "show", "proto", "static")
	r.ok(err)
	if n := strings.Count(out, "10.210."); n != 10_000 {
		t.Errorf("%d of the other's 10,000 routes are left", n)
	}
	r.eventually(eventBound, func() error { return r.exact(r.n1) })
	flows.stop()
}

// Fault 28: a link comes that has a part of the service range, and another one that has a part of another node's pod range. Both
// are told at once; Services go on, and so do the routes to the other pods.
func TestFault28LinkOverlaps(t *testing.T) {
	r := newRig(t, lab.NFT, topology())
	flows := r.traffic()
	began := time.Now()
	r.ip(r.n1, "link add svc0 type bridge", "addr add 10.96.7.1/24 dev svc0", "addr add fd00:96::701/120 dev svc0 nodad", "link set svc0 up")
	told := func(detail string) func() error {
		return func() error { return r.said(r.n1, 0, note{"Node n1", cluster.ReasonServiceCIDROnLink, detail}) }
	}
	r.measured("a link in the service range, until it is told", r.took(began, told("svc0 has the network 10.96.7.0/24")), 10*time.Second)
	r.eventually(eventBound, told("svc0 has the network fd00:96::700/120"))
	r.put(service("beside", 20, 0), lab.Ready(r.p3))
	r.write()
	r.eventually(eventBound, func() error { return r.serves(20, r.p3) })

	began = time.Now()
	r.ip(r.n1, "link add pod0 type bridge", "addr add 10.200.3.128/25 dev pod0", "link set pod0 up")
	r.measured("a link in a node's pod range, until it is told", r.took(began, func() error {
		return r.said(r.n1, 0, note{"Node n3", cluster.ReasonPodCIDRRefused, "the link pod0"})
	}), 10*time.Second)
	r.ip(r.n1, "link del pod0", "link del svc0")
	r.eventually(eventBound, func() error { return errors.Join(r.quiet(r.n1, cluster.ReasonServiceCIDROnLink), r.exact(r.n1)) })
	flows.works(otherTCP)
	flows.stop(podTCP, podTCP6, podUDP, serviceTCP, serviceUDP)
}
