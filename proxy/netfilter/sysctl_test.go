package netfilter

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A machine is the files of one, by their names below the root.
type machine map[string]string

const (
	established  = conntrackSysctls + "nf_conntrack_tcp_timeout_established"
	closeWait    = conntrackSysctls + "nf_conntrack_tcp_timeout_close_wait"
	beLiberal    = conntrackSysctls + "nf_conntrack_tcp_be_liberal"
	udpTimeout   = conntrackSysctls + "nf_conntrack_udp_timeout"
	udpStream    = conntrackSysctls + "nf_conntrack_udp_timeout_stream"
	routeLocal   = "proc/sys/net/ipv4/conf/all/route_localnet"
	kernelsValue = "65536"
)

// fresh is a machine of two CPUs as it booted.
func fresh() machine {
	return machine{onlineCPUs: "0-1", conntrackMax: kernelsValue, conntrackBuckets: kernelsValue, established: "432000", closeWait: "60",
		beLiberal: "0", udpTimeout: "30", udpStream: "120", routeLocal: "0"}
}

// with is the machine with changes; "" takes a file away.
func (m machine) with(changes machine) machine {
	out := maps.Clone(m)
	maps.Copy(out, changes)
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out
}

func (m machine) write(t *testing.T) sysctls {
	t.Helper()
	root := t.TempDir()
	for name, value := range m {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return sysctls{root: root, load: func() error { return errors.ErrUnsupported }}
}

func (m machine) compare(t *testing.T, s sysctls) {
	t.Helper()
	for name, want := range m {
		if have, err := s.read(name); err != nil || have != want {
			t.Errorf("%s is %q, %v, want %s", name, have, err, want)
		}
	}
}

func TestConntrackSettings(t *testing.T) {
	for _, c := range []struct {
		name     string
		machine  machine
		settings ConntrackSettings
		changed  machine
	}{
		{"defaults", fresh(), DefaultConntrackSettings, machine{conntrackMax: "131072", established: "86400", closeWait: "3600"}},
		{"more CPUs", fresh().with(machine{onlineCPUs: "0-3,5-7,9"}), DefaultConntrackSettings,
			machine{conntrackMax: "262144", established: "86400", closeWait: "3600"}},
		{"so many that the buckets don't do", fresh().with(machine{onlineCPUs: "0-15"}), ConntrackSettings{MaxPerCore: 32768},
			machine{conntrackMax: "524288", conntrackBuckets: "131072"}},
		{"very many CPUs", fresh().with(machine{onlineCPUs: "0-63"}), ConntrackSettings{MaxPerCore: 32768, Min: 2 << 20},
			machine{conntrackMax: "1048576", conntrackBuckets: "262144"}},
		{"the minimum above that", fresh(), ConntrackSettings{MaxPerCore: 1, Min: 2 << 20}, machine{conntrackMax: "2097152", conntrackBuckets: "524288"}},
		{"no minimum", fresh(), ConntrackSettings{MaxPerCore: 1000}, machine{conntrackMax: "2000"}},
		{"left alone", fresh(), ConntrackSettings{Min: 1 << 20}, nil},
		{"everything", fresh(), ConntrackSettings{TCPEstablishedTimeout: time.Minute, TCPCloseWaitTimeout: 90 * time.Second, TCPBeLiberal: true,
			UDPTimeout: 7 * time.Second, UDPStreamTimeout: 8500 * time.Millisecond},
			machine{established: "60", closeWait: "90", beLiberal: "1", udpTimeout: "7", udpStream: "8"}},
		{"liberal stays", fresh().with(machine{beLiberal: "1"}), ConntrackSettings{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.machine.write(t)
			for range 2 {
				if refused := s.conntrack(c.settings); refused != nil {
					t.Error(refused)
				}
				c.machine.with(c.changed).compare(t, s)
			}
		})
	}
}

// What is right is not written, and what can't be written is named with both values, and holds up nothing else.
func TestConntrackSettingsRefused(t *testing.T) {
	s := fresh().write(t)
	// A file that takes a value and does not keep it, as one that something else sets.
	if err := errors.Join(os.Remove(s.path(established)), os.Symlink("/dev/null", s.path(established)), os.Remove(s.path(closeWait))); err != nil {
		t.Fatal(err)
	}
	refused := s.conntrack(DefaultConntrackSettings)
	if len(refused) != 2 {
		t.Fatalf("refused: %v", refused)
	}
	if e := refused[0].Error(); !strings.Contains(e, established+" can't be read, right would be 86400") {
		t.Error(e)
	}
	if e := refused[1].Error(); !strings.Contains(e, closeWait+" can't be read, right would be 3600") || !errors.Is(refused[1], fs.ErrNotExist) {
		t.Error(e)
	}
	machine{conntrackMax: "131072"}.compare(t, s)

	have := SysctlError{File: "/proc/sys/x", Want: "1", Have: "0", Err: syscall.EROFS}
	if want := "/proc/sys/x is 0, right would be 1 (read-only file system)"; have.Error() != want || !errors.Is(&have, syscall.EROFS) {
		t.Errorf("error %q, want %q", have.Error(), want)
	}
}

// The sysctls are there once conntrack is loaded.
func TestConntrackIsLoaded(t *testing.T) {
	s := machine{onlineCPUs: "0-1"}.write(t)
	if refused := s.conntrack(DefaultConntrackSettings); len(refused) != 3 || !errors.Is(refused[0], fs.ErrNotExist) {
		t.Errorf("refused: %v", refused)
	}
	s.load = func() error {
		for name, value := range fresh() {
			file := s.path(name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value), 0o644)); err != nil {
				return err
			}
		}
		return nil
	}
	if refused := s.conntrack(DefaultConntrackSettings); refused != nil {
		t.Errorf("refused: %v", refused)
	}
	machine{conntrackMax: "131072", established: "86400"}.compare(t, s)
}

// In a network namespace the real sysctls are set but for the size of the table, which stays the machine's.
func TestConntrackOfANamespace(t *testing.T) {
	inNamespace(t)
	real := sysctls{root: "/proc/thread-self/root", load: loadConntrack}
	if err := loadConntrack(); err != nil {
		t.Fatal(err)
	}
	before := machine{}
	for _, name := range []string{conntrackMax, conntrackBuckets} {
		before[name], _ = real.read(name)
	}
	c := DefaultConntrackSettings
	c.TCPBeLiberal, c.UDPTimeout, c.UDPStreamTimeout = true, 31*time.Second, 121*time.Second
	c.MaxPerCore++ // certainly not what it is
	c.Min = 0
	if refused := ApplyConntrack(c); refused != nil {
		t.Error(refused)
	}
	before.with(machine{established: "86400", closeWait: "3600", beLiberal: "1", udpTimeout: "31", udpStream: "121"}).compare(t, real)
	if liberal, err := TCPLiberal(); !liberal || err != nil {
		t.Errorf("liberal: %v, %v", liberal, err)
	}
	for range 2 {
		if err := EnableRouteLocalnet(); err != nil {
			t.Error(err)
		}
		machine{routeLocal: "1"}.compare(t, real)
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,8": 5, "0,2-3,7": 4, "": 0, "x": 0, "3-1": 0} {
		if n := countCPUs(list); n != want {
			t.Errorf("%q are %d CPUs, want %d", list, n, want)
		}
	}
	if n := (sysctls{root: t.TempDir()}).cpus(); n != runtime.NumCPU() {
		t.Errorf("%d CPUs when the kernel does not tell", n)
	}
}
