package rtnl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
)

func TestEnsureForwarding(t *testing.T) {
	newNamespace(t)
	const v4, v6 = "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"
	for _, file := range []string{v4, v6} {
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := EnsureForwarding(cluster.Families[:]...); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{v4, v6} {
			if is, err := readValue(file); is != "1" || err != nil {
				t.Errorf("%s is %q, %v", file, is, err)
			}
		}
	}
}

// TestForwardingKeepsTheUplink gives the kernel a default route such as it makes from router advertisements.
func TestForwardingKeepsTheUplink(t *testing.T) {
	const (
		advertised = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n"
		byHand     = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
		prefix     = "fd000240000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00440001     eth0\n"
	)
	for _, c := range []struct{ name, routes, acceptRA, forwarding, want string }{
		{"advertised, would be lost", prefix + advertised, "1", "0", "eth0/accept_ra is 1, right would be 2"},
		{"advertised, would be kept", advertised, "2", "0", ""},
		{"handled outside of the kernel", advertised, "0", "0", ""},
		{"by hand", prefix + byHand, "1", "0", ""},
		{"none", "", "1", "0", ""},
		{"forwards already", advertised, "1", "1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			forwarding := filepath.Join(proc, "sys/net/ipv6/conf/all/forwarding")
			for file, content := range map[string]string{
				forwarding: c.forwarding,
				filepath.Join(proc, "sys/net/ipv6/conf/eth0/accept_ra"): c.acceptRA,
				filepath.Join(proc, "thread-self/net/ipv6_route"):       c.routes,
			} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content+"\n"), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			err := ensureForwarding(proc, []cluster.Family{cluster.IPv6})
			is, _ := readValue(forwarding)
			switch {
			case c.want == "" && (err != nil || is != "1"):
				t.Errorf("forwarding is %s, error %v", is, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || is != "0"):
				t.Errorf("forwarding is %s, error %v, want %s", is, err, c.want)
			}
		})
	}
}

func TestForwardingErrorNamesTheFile(t *testing.T) {
	err := ensureForwarding(t.TempDir(), cluster.Families[:])
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "net/ipv4/ip_forward") ||
		!strings.Contains(err.Error(), "net/ipv6/conf/all/forwarding") {
		t.Errorf("error %v", err)
	}
	// A file that takes the value and does not keep it, as one that something else sets.
	proc := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(proc, "sys/net/ipv4"), 0o755),
		os.Symlink("/dev/null", filepath.Join(proc, "sys/net/ipv4/ip_forward"))); err != nil {
		t.Fatal(err)
	}
	if err := ensureForwarding(proc, cluster.Families[:1]); err == nil || !strings.Contains(err.Error(), "after 1 was written") {
		t.Errorf("error %v", err)
	}
}
