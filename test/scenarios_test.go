package test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source/file"
	"github.com/fairway-net/fairway/proxy/trace"
	"github.com/fairway-net/fairway/routes/bgp"
)

var update = flag.Bool("update", false, "rewrite the expectations of the scenarios; the diff is the review")

// A scenario is a cluster and what an agent makes of it.
type scenario struct {
	name    string
	path    string
	archive *txtar.Archive
}

// inputs are the files of a scenario that are not expectations. packets has a line for each packet to trace: the
// interface that it comes in on (or "self" when this node sends it), its source, its destination. kube-proxy.yaml is what
// --kube-proxy-config names; then the expectations have what is remarked on it. agent.yaml is what --config names. received has a line
// for each path that a BGP peer announces: the peer, the prefix, its next hop, the autonomous systems of its AS_PATH.
var inputs = []string{"flags", "agent.yaml", "kube-proxy.yaml", "cluster.yaml", "packets", "received"}

func scenarios(t *testing.T) (all []scenario) {
	t.Helper()
	paths, err := filepath.Glob("scenarios/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, scenario{strings.TrimSuffix(filepath.Base(p), ".txtar"), p, a})
	}
	return all
}

func (s scenario) file(name string) string {
	for _, f := range s.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// write writes a file of the scenario into a folder, and returns its path; "" when there is none of the name.
func (s scenario) write(t *testing.T, name string) string {
	t.Helper()
	text := s.file(name)
	if text == "" {
		return ""
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load returns the scenario's cluster and configuration.
func (s scenario) load(t *testing.T) (*cluster.Snapshot, agent.Config) {
	t.Helper()
	snapshot, err := file.Load(s.write(t, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config, _ := s.configure(t)
	return snapshot, config
}

// configure returns the scenario's configuration, and the remarks on kube-proxy's.
func (s scenario) configure(t *testing.T) (agent.Config, []agent.Remark) {
	t.Helper()
	config, remarks, err := agent.Configure(agent.Files{Agent: s.write(t, "agent.yaml"), KubeProxy: s.write(t, "kube-proxy.yaml")}, func(c *agent.AgentConfiguration) { s.setFlags(t, c) })
	if err != nil {
		t.Fatal(err)
	}
	return config, remarks
}

// setFlags sets what the scenario's flags say.
func (s scenario) setFlags(t *testing.T, configuration *agent.AgentConfiguration) {
	t.Helper()
	for _, f := range strings.Fields(s.file("flags")) {
		name, value, _ := strings.Cut(f, "=")
		switch name {
		case "--node-name":
			configuration.NodeName = value
		case "--cluster-cidrs":
			configuration.ClusterCIDRs = strings.Split(value, ",")
		case "--service-cidrs":
			configuration.ServiceCIDRs = strings.Split(value, ",")
		case "--detect-local-mode":
			configuration.DetectLocal.Mode = value
		case "--pod-bridge-interface":
			configuration.DetectLocal.BridgeInterface = value
		case "--pod-interface-name-prefix":
			configuration.DetectLocal.InterfaceNamePrefix = value
		case "--external-ip-ranges":
			configuration.ExternalIPs.Ranges = strings.Split(value, ",")
		case "--masquerade-all":
			configuration.MasqueradeAll = true
		default:
			t.Fatalf("scenario %s: unknown flag %s", s.name, f)
		}
	}
}

// expectations renders a plan in the files of a scenario: what is empty has none.
func expectations(p *agent.Plan) []txtar.File {
	var files []txtar.File
	add := func(name, text string) {
		if text != "" {
			files = append(files, txtar.File{Name: name, Data: []byte(text)})
		}
	}
	add("routes", p.Routes.Lines())
	add("announcements", p.BGP.Lines())
	for _, s := range p.Services {
		if len(s.Table.Ports) > 0 {
			add("rules-"+s.Family.String(), s.Rules.String())
		}
	}
	var notes strings.Builder
	for _, n := range p.Notes {
		notes.WriteString(n.String() + "\n")
	}
	add("notes", notes.String())
	return files
}

func TestScenarios(t *testing.T) {
	for _, s := range scenarios(t) {
		t.Run(s.name, func(t *testing.T) {
			snapshot, config := s.load(t)
			plan := agent.MakePlan(snapshot, config, agent.Offline, nil)
			got := expectations(plan)
			if _, remarks := s.configure(t); len(remarks) > 0 {
				var text strings.Builder
				for _, r := range remarks {
					text.WriteString(r.String() + "\n")
				}
				got = append(got, txtar.File{Name: "remarks", Data: []byte(text.String())})
			}
			if packets := s.file("packets"); packets != "" {
				got = append(got, txtar.File{Name: "traces", Data: []byte(traces(t, plan, packets))})
			}
			if text := s.file("received"); text != "" {
				got = append(got, learned(t, plan, text)...)
			}
			if *update {
				a := &txtar.Archive{Comment: s.archive.Comment}
				for _, f := range s.archive.Files {
					if slices.Contains(inputs, f.Name) {
						a.Files = append(a.Files, f)
					}
				}
				a.Files = append(a.Files, got...)
				if err := os.WriteFile(s.path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			var want []txtar.File
			for _, f := range s.archive.Files {
				if !slices.Contains(inputs, f.Name) {
					want = append(want, f)
				}
			}
			compareFiles(t, got, want)
		})
	}
}

// learned returns what a plan makes of what BGP peers announce.
func learned(t *testing.T, p *agent.Plan, text string) []txtar.File {
	t.Helper()
	var received []bgp.Received
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		r := bgp.Received{Peer: netip.MustParseAddr(words[0]), Prefix: netip.MustParsePrefix(words[1]), NextHop: netip.MustParseAddr(words[2]),
			LocalPref: bgp.DefaultLocalPref, PathLength: len(words) - 3}
		for _, w := range words[3:] {
			n, err := strconv.ParseUint(w, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			r.ASPath = append(r.ASPath, uint32(n))
		}
		received = append(received, r)
	}
	table, notes := p.Learned(received)
	var b strings.Builder
	for _, n := range notes {
		b.WriteString(n.String() + "\n")
	}
	return []txtar.File{{Name: "learned-routes", Data: []byte(table.Lines())}, {Name: "learned-notes", Data: []byte(b.String())}}
}

// traces follows packets through the plan's rules.
func traces(t *testing.T, p *agent.Plan, packets string) string {
	t.Helper()
	local := func(a netip.Addr) bool {
		if a.IsLoopback() {
			return true
		}
		for _, l := range p.Snapshot.Host.Links {
			if slices.ContainsFunc(l.Addrs, func(n netip.Prefix) bool { return n.Addr() == a }) {
				return true
			}
		}
		return false
	}
	var b strings.Builder
	for line := range strings.Lines(packets) {
		words := strings.Fields(line)
		if len(words) != 3 || p.Snapshot.Host == nil {
			t.Fatalf("packet %q: expected an interface, a source and a destination, and the scenario needs a Host", line)
		}
		packet := trace.Packet{Src: netip.AddrPortFrom(netip.MustParseAddr(words[1]), 40000), In: words[0]}
		if packet.In == "self" {
			packet.In = ""
		}
		to, protocol, _ := strings.Cut(words[2], "/")
		packet.Dst = netip.MustParseAddrPort(to)
		packet.Protocol = map[string]cluster.Protocol{"tcp": cluster.TCP, "udp": cluster.UDP, "sctp": cluster.SCTP}[protocol]
		i := slices.Index(cluster.Families[:], cluster.FamilyOf(packet.Dst.Addr()))
		rules, err := trace.Parse(cluster.Families[i], p.Services[i].Rules.String())
		if err != nil {
			t.Fatal(err)
		}
		outcomes, err := rules.Trace(packet, trace.Node{Local: local})
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.Join(words, " ") + "\n")
		for _, o := range outcomes {
			b.WriteString("  " + o.String() + "\n")
		}
	}
	return b.String()
}

func compareFiles(t *testing.T, got, want []txtar.File) {
	t.Helper()
	text := func(files []txtar.File, name string) ([]byte, bool) {
		for _, f := range files {
			if f.Name == name {
				return f.Data, true
			}
		}
		return nil, false
	}
	for _, f := range got {
		if w, ok := text(want, f.Name); !ok || !bytes.Equal(f.Data, w) {
			t.Errorf("%s is\n%s\nexpected\n%s", f.Name, f.Data, w)
		}
	}
	for _, f := range want {
		if _, ok := text(got, f.Name); !ok {
			t.Errorf("%s is missing, expected\n%s", f.Name, f.Data)
		}
	}
}
