package agent

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/routes"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// TestRepairLog: what others changed is counted by part and kind; what stays as it is is not; the times that are kept are bounded.
func TestRepairLog(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var l repairLog
	drifts := finding{By: "pid 4 (iptables)", Drifts: []iptables.Drift{{Table: "nat", Kind: iptables.JumpMissing}, {Table: "filter", Kind: iptables.JumpMissing},
		{Table: "filter", Kind: iptables.JumpDisplaced, Left: true}}}
	l.add(outcome{part: "rules-IPv4", end: at, report: Report{Drift: 2, Found: drifts}})
	l.add(outcome{part: "rules-IPv4", end: at})
	for i := range 20 {
		l.add(outcome{part: "routes", end: at.Add(time.Duration(i) * time.Minute), report: Report{Drift: 3}})
	}
	list := l.list()
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	if want := (doctor.Repair{Part: "rules-IPv4", Kind: "jump-missing", Changes: 2, Occasions: 1, Times: []time.Time{at}, By: "pid 4 (iptables)"}); !reflect.DeepEqual(list[1], want) {
		t.Errorf("%+v, want %+v", list[1], want)
	}
	r := list[0]
	if r.Kind != doctor.KindRoutes || r.Changes != 60 || r.Occasions != 20 || len(r.Times) != doctor.MaxTimes || !r.Times[len(r.Times)-1].Equal(at.Add(19*time.Minute)) {
		t.Errorf("%+v", r)
	}
}

// TestRoutesLost: routes that go because the host changed are counted; those that go with their nodes are not.
func TestRoutesLost(t *testing.T) {
	nodes := []*cluster.Node{{Name: "a"}, {Name: "b"}}
	plan := func(h *cluster.Host, nodes []*cluster.Node, dsts ...string) *Plan {
		p := &Plan{Snapshot: &cluster.Snapshot{Host: h, Nodes: nodes}, Routes: &routes.Table{}}
		for _, d := range dsts {
			p.Routes.Routes = append(p.Routes.Routes, routes.Route{Dst: netip.MustParsePrefix(d)})
		}
		return p
	}
	up, down := &cluster.Host{}, &cluster.Host{}
	all := plan(up, nodes, "10.244.1.0/24", "10.244.2.0/24")
	for name, c := range map[string]struct {
		before, after *Plan
		lost          int
	}{
		"the first":    {nil, all, 0},
		"a link":       {all, plan(down, nodes), 2},
		"and back":     {plan(down, nodes), all, 0},
		"a node":       {all, plan(up, nodes[:1], "10.244.1.0/24"), 0},
		"both":         {all, plan(down, nodes[:1]), 0},
		"another link": {all, plan(down, nodes, "10.244.1.0/24", "10.244.2.0/24"), 0},
	} {
		var l repairLog
		l.lost(c.before, c.after, time.Now())
		n := 0
		for _, r := range l {
			n += r.Changes
		}
		if n != c.lost {
			t.Errorf("%s: %d routes lost, want %d", name, n, c.lost)
		}
	}
}

// TestPatient: what the agent says of itself, at its control socket.
func TestPatient(t *testing.T) {
	good := &fakePart{name: "routes", notes: []cluster.Note{{Object: cluster.Ref{Kind: "Service", Namespace: "default", Name: "web"}, Reason: cluster.ReasonInvalidField, Detail: "x"}}}
	l, _ := startLoop(t, good)
	s := aSnapshot("10.96.0.10")
	s.Nodes[0].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	l.setHost(&cluster.Host{Links: []cluster.Link{{Index: 2, Name: "eth0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.0.1/24")}},
		{Index: 3, Name: "cni0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.244.1.1/24")}}}})
	l.publish(s)
	since := time.Now().Add(-time.Hour)
	var apiError error
	p := &patient{loop: l, version: "v1", lost: func() (time.Time, error) { return since, apiError }, sessions: func() ([]speaker.Session, error) { return nil, errNoBGP },
		absent: map[cluster.Family]string{cluster.IPv6: "no IPv6"}, dropsInvalid: true}
	socket := serveSocket(t, filepath.Join(t.TempDir(), "s"), withDoctor(p, named("one")))
	defer socket.stop()
	socket.answers("one") // what else it answers
	var a doctor.Agent
	eventually(t, "ready", func() bool {
		a = doctor.Agent{}
		return ask(t.Context(), socket.path, http.MethodGet, doctorPath, &a) == nil && a.Ready
	})
	if a.Node != "a" || a.Version != "v1" || a.Revision != 1 || len(a.Parts) != 1 || a.Parts[0].Programmed != 1 || a.Parts[0].Verified.IsZero() || !a.DropsInvalid {
		t.Errorf("%+v", a)
	}
	if want := []doctor.Note{{Object: "Service default/web", Reason: "InvalidField", Detail: "x"}}; len(a.Notes) == 0 || !reflect.DeepEqual(a.Notes[len(a.Notes)-1:], want) {
		t.Errorf("notes %+v", a.Notes)
	}
	if !reflect.DeepEqual(a.PodLinks, []string{"cni0"}) || len(a.PodCIDRs) != 1 || len(a.Absent) != 1 || a.Absent[0].Family != "IPv6" {
		t.Errorf("%+v", a)
	}
	if a.API == nil || !a.API.Lost.IsZero() || a.BGP.Configured {
		t.Errorf("API %+v, BGP %+v", a.API, a.BGP)
	}
	apiError, p.sessions = errors.New("connection refused"), func() ([]speaker.Session, error) { return nil, errBGPWaiting }
	if a = p.tell(); !a.API.Lost.Equal(since) || a.API.Error != "connection refused" || !a.BGP.Configured || a.BGP.Waiting == "" {
		t.Errorf("API %+v, BGP %+v", a.API, a.BGP)
	}
	good.set(errors.New("the lock is held"))
	l.publish(aSnapshot("10.96.0.11"))
	eventually(t, "the error", func() bool { a = p.tell(); return a.Parts[0].Error == "the lock is held" })
	if a.Ready || a.Parts[0].Programmed == a.Revision {
		t.Errorf("%+v", a)
	}
}

// TestDoctorErrors: a format that there is not is refused before anything is looked at.
func TestDoctorErrors(t *testing.T) {
	var out strings.Builder
	err := Doctor(context.Background(), DoctorOptions{Format: "xml"}, &out)
	if err == nil || !strings.Contains(err.Error(), "text, json") || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

func writeFiles(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(path, []byte(text), 0o644)
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = errors.Join(os.Remove(path), os.Symlink(target, path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestProcFacts: what is read below /proc.
func TestProcFacts(t *testing.T) {
	proc := t.TempDir()
	writeFiles(t, proc, map[string]string{
		"sys/net/ipv4/ip_forward":                "1\n",
		"sys/net/netfilter/nf_conntrack_count":   "17\n",
		"sys/net/netfilter/nf_conntrack_max":     "131072\n",
		"sys/net/ipv4/conf/all/rp_filter":        "0\n",
		"sys/net/ipv4/conf/default/rp_filter":    "1\n",
		"sys/net/ipv4/conf/eth0/rp_filter":       "1\n",
		"sys/net/ipv4/conf/eth1/rp_filter":       "2\n",
		"sys/net/ipv4/conf/eth2/rp_filter":       "0\n",
		"net/stat/nf_conntrack":                  "entries  searched insert_failed drop early_drop\n00000011  00000000 0000000a 00000001 00000000\n00000011  00000000 00000002 00000000 00000003\n",
		"net/netstat":                            "TcpExt: SyncookiesSent IPReversePathFilter Other\nTcpExt: 1 42 3\nIpExt: InNoRoutes IPReversePathFilter\nIpExt: 5 6\n",
		"sys/net/bridge/bridge-nf-call-iptables": "0\n",
	})
	k := procFacts(proc)
	want := doctor.Kernel{Sysctls: map[string]string{doctor.SysctlIPForward: "1", doctor.SysctlBridgeNF: "0"}, Strict: []string{"eth0"}, ReversePathDrops: 42,
		Conntrack: doctor.Conntrack{Count: 17, Max: 131072, InsertFailed: 12, Drop: 1, EarlyDrop: 3}}
	if !reflect.DeepEqual(k, want) {
		t.Errorf("%+v\nwant %+v", k, want)
	}
	if k := procFacts(filepath.Join(proc, "none")); k.Conntrack.Max != 0 || len(k.Sysctls) != 0 {
		t.Errorf("of nothing: %+v", k)
	}
}

// configFolders are files of networkd's as they may be on a host; "-> x" is a link to x.
var configFolders = map[string]map[string]string{
	"nothing":            {},
	"the main file":      {"etc/systemd/networkd.conf": "# main\n"},
	"a vendor's":         {"usr/lib/systemd/networkd.conf": "# vendor\n", "run/systemd/networkd.conf": "# run\n"},
	"drop-ins by name":   {"etc/systemd/networkd.conf": "# main\n", "usr/lib/systemd/networkd.conf.d/20-b.conf": "# b\n", "run/systemd/networkd.conf.d/30-c.conf": "# c\n", "etc/systemd/networkd.conf.d/10-a.conf": "# a\n"},
	"hidden by another":  {"usr/lib/systemd/networkd.conf.d/10-a.conf": "# vendor\n", "usr/local/lib/systemd/networkd.conf.d/10-a.conf": "# local\n", "run/systemd/networkd.conf.d/10-a.conf": "# run\n", "etc/systemd/networkd.conf.d/10-a.conf": "# etc\n"},
	"hidden altogether":  {"usr/lib/systemd/networkd.conf.d/10-a.conf": "# vendor\n", "etc/systemd/networkd.conf.d/10-a.conf": "-> /dev/null"},
	"what is no drop-in": {"etc/systemd/networkd.conf.d/README": "# no\n", "etc/systemd/networkd.conf.d/10-a.conf": "# a\n"},
}

// TestSystemdConfig: files count in the order in which systemd itself lists them.
func TestSystemdConfig(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Getenv("FAIRWAY_LAB") == "require" {
		t.Fatal("systemd-analyze, of Debian's package systemd, is not here")
	}
	if err != nil {
		t.Skip("it needs systemd-analyze, of Debian's package systemd")
	}
	for name, files := range configFolders {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			writeFiles(t, root, files)
			// It fails when there is nothing to list.
			out, _ := exec.Command(analyze, "cat-config", "--no-pager", "--root="+root, "systemd/networkd.conf").Output()
			var want []string
			for line := range strings.Lines(string(out)) {
				if path, ok := strings.CutPrefix(strings.TrimSpace(line), "# "+root); ok {
					want = append(want, path)
				}
			}
			var got []string
			for _, f := range systemdConfig(root, "networkd.conf") {
				got = append(got, f.Name)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%q, systemd-analyze lists %q", got, want)
			}
		})
	}
}

// TestNetworkd: what is seen of it from the host, and from a container.
func TestNetworkd(t *testing.T) {
	const no = "[Network]\nManageForeignRoutes=no\n"
	host := map[string]string{"etc/systemd/networkd.conf": "[Network]\n", "run/systemd/netif/state": "OPER_STATE=routable\n", "etc/systemd/networkd.conf.d/a.conf": no}
	proc := func(t *testing.T, pids string, with map[string]string) string {
		dir := t.TempDir()
		files := map[string]string{"self/ns/net": "-> net:[1]", "self/ns/pid": "-> " + pids, "uptime": "1000.00 1.00\n"}
		for name, text := range with {
			files[name] = text
		}
		writeFiles(t, dir, files)
		return dir
	}
	const stat = "7 (systemd-network) S 1 7 7 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 "
	process := func(root, started string) map[string]string {
		return map[string]string{"7/cmdline": "/usr/lib/systemd/systemd-networkd\x00", "7/ns/net": "-> net:[1]", "7/root": "-> " + root, "7/stat": stat + started + " 0 0\n"}
	}
	t.Run("not there", func(t *testing.T) {
		if n := (hostFiles{proc(t, hostPIDs, nil), "/"}).networkd(); n != (doctor.Networkd{Seen: true}) {
			t.Errorf("%+v", n)
		}
	})
	t.Run("a process, which started before", func(t *testing.T) {
		root := t.TempDir()
		writeFiles(t, root, host)
		// A hundredth of a second after the boot, a thousand seconds ago.
		n := (hostFiles{proc(t, hostPIDs, process(root, "1")), "/"}).networkd()
		if want := (doctor.Networkd{Seen: true, Runs: true, File: "/etc/systemd/networkd.conf.d/a.conf", Newer: true}); n != want {
			t.Errorf("%+v, want %+v", n, want)
		}
	})
	t.Run("a process, which started after", func(t *testing.T) {
		root := t.TempDir()
		writeFiles(t, root, host)
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(root, "etc/systemd/networkd.conf.d/a.conf"), old, old); err != nil {
			t.Fatal(err)
		}
		n := (hostFiles{proc(t, hostPIDs, process(root, "1")), "/"}).networkd()
		if want := (doctor.Networkd{Seen: true, Runs: true, File: "/etc/systemd/networkd.conf.d/a.conf"}); n != want {
			t.Errorf("%+v, want %+v", n, want)
		}
	})
	t.Run("one of another namespace", func(t *testing.T) {
		p := process("/", "1")
		p["7/ns/net"] = "-> net:[2]"
		if n := (hostFiles{proc(t, hostPIDs, p), "/"}).networkd(); n.Runs {
			t.Errorf("%+v", n)
		}
	})
	t.Run("a container", func(t *testing.T) {
		if n := (hostFiles{proc(t, "pid:[3]", nil), "/"}).networkd(); n.Seen || n.Unseen == "" {
			t.Errorf("%+v", n)
		}
	})
	t.Run("a container with the host's files", func(t *testing.T) {
		root := t.TempDir()
		writeFiles(t, root, host)
		n := (hostFiles{proc(t, "pid:[3]", nil), root}).networkd()
		if want := (doctor.Networkd{Seen: true, Runs: true, File: "/etc/systemd/networkd.conf.d/a.conf"}); n != want {
			t.Errorf("%+v, want %+v", n, want)
		}
		if err := os.Remove(filepath.Join(root, "run/systemd/netif/state")); err != nil {
			t.Fatal(err)
		}
		if n := (hostFiles{proc(t, "pid:[3]", nil), root}).networkd(); !n.Seen || n.Runs {
			t.Errorf("it has not run: %+v", n)
		}
	})
	t.Run("a container with another folder", func(t *testing.T) {
		if n := (hostFiles{proc(t, "pid:[3]", nil), t.TempDir()}).networkd(); n.Seen || n.Unseen == "" {
			t.Errorf("%+v", n)
		}
	})
	t.Run("a link of the host's", func(t *testing.T) {
		root := t.TempDir()
		writeFiles(t, root, map[string]string{"etc/systemd/networkd.conf": "-> /opt/networkd.conf", "opt/networkd.conf": no, "run/systemd/netif/state": ""})
		if n := (hostFiles{proc(t, "pid:[3]", nil), root}).networkd(); n.ManageForeignRoutes || n.File != "/etc/systemd/networkd.conf" {
			t.Errorf("%+v", n)
		}
	})
}

// TestEndpoints: of the endpoints of Services, one of this node's pods and one of others.
func TestEndpoints(t *testing.T) {
	at := func(addrs ...string) (list []proxy.Backend) {
		for _, a := range addrs {
			list = append(list, proxy.Backend{Addr: netip.MustParseAddrPort(a)})
		}
		return list
	}
	own := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	for _, c := range []struct {
		ports           []*proxy.Port
		inside, outside string
	}{
		{nil, "invalid IP", "invalid IP"},
		{[]*proxy.Port{{Cluster: at("10.244.2.5:80")}, {Cluster: at("10.244.3.5:80"), Local: at("10.244.1.7:80")}}, "10.244.1.7", "10.244.2.5"},
		{[]*proxy.Port{{Cluster: at("10.244.1.7:80", "10.244.1.8:80")}}, "10.244.1.7", "invalid IP"},
	} {
		inside, outside := endpoints(&proxy.Table{Ports: c.ports}, own)
		if inside.String() != c.inside || outside.String() != c.outside {
			t.Errorf("%s and %s, want %s and %s", inside, outside, c.inside, c.outside)
		}
	}
	if inside, outside := endpoints(nil, own); inside.IsValid() || outside.IsValid() {
		t.Errorf("without a table: %s and %s", inside, outside)
	}
}
