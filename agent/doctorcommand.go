package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/doctor"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/proxy/netfilter"
	"github.com/fairway-net/fairway/proxy/trace"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// DoctorFormats are the formats in which what was found is printed.
var DoctorFormats = [...]string{"text", "json"}

// ErrUnwell is the error of Doctor when something is wrong, and ErrUntold when it can't be told.
var (
	ErrUnwell = errors.New("this node is not all right")
	ErrUntold = errors.New("whether this node is all right can't be told")
)

// DoctorOptions say what to look at.
type DoctorOptions struct {
	// Socket is the agent's control socket, Format one of DoctorFormats.
	Socket, Format string
	// HostRoot is where the host's files are: / on the host, another folder in a container.
	HostRoot string
}

// answerWithin is how long the agent may take to answer.
const answerWithin = 5 * time.Second

// Doctor tells whether this node is all right: it asks the running agent, and looks at the kernel of this network namespace and at the host's
// files. It changes nothing and needs no API. What was found is printed; the error is ErrUnwell or ErrUntold when not all is well.
func Doctor(ctx context.Context, o DoctorOptions, out io.Writer) error {
	if !slices.Contains(DoctorFormats[:], o.Format) {
		return fmt.Errorf("unknown format %q, expected one of %s", o.Format, strings.Join(DoctorFormats[:], ", "))
	}
	r := doctor.Examine(o.facts(ctx))
	if err := o.write(out, r); err != nil {
		return err
	}
	switch r.ExitCode() {
	case 1:
		return fmt.Errorf("%w: %s", ErrUnwell, r.Counts())
	case 2:
		return fmt.Errorf("%w: %s", ErrUntold, r.Counts())
	}
	return nil
}

func (o DoctorOptions) write(out io.Writer, r doctor.Report) error {
	if o.Format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	return r.Write(out)
}

// facts gathers all that is judged.
func (o DoctorOptions) facts(ctx context.Context) *doctor.Facts {
	f := &doctor.Facts{}
	asking, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var a doctor.Agent
	switch err := ask(asking, o.Socket, http.MethodGet, doctorPath, &a); {
	case errors.Is(err, context.DeadlineExceeded):
		f.NoAgent = fmt.Sprintf("the agent at %s has not answered within %s: it hangs, or is stopped", o.Socket, answerWithin)
	case err != nil:
		f.NoAgent = err.Error()
	default:
		f.Agent = &a
	}
	f.Now = time.Now()
	f.Kernel = kernelFacts(ctx, "/proc", f.Agent)
	host := hostFiles{proc: "/proc", root: o.HostRoot}
	f.Networkd = host.networkd()
	f.Firewalld = host.runs("firewalld") != ""
	return f
}

// kernelFacts reads what the kernel tells; a is nil when nothing is known of the agent.
func kernelFacts(ctx context.Context, proc string, a *doctor.Agent) doctor.Kernel {
	k := procFacts(proc)
	observed, unread := netfilter.Observe(ctx)
	for _, err := range unread {
		k.Unread = append(k.Unread, err.Error())
	}
	for _, o := range observed {
		k.Rules = append(k.Rules, rulesFacts(o, a))
	}
	var err error
	if k.KubeProxyTables, err = netfilter.ObserveOtherModes(); err != nil {
		k.Unread = append(k.Unread, err.Error())
	}
	if a != nil {
		bridges, err := bridges(ctx)
		if err != nil {
			k.Unread = append(k.Unread, err.Error())
		}
		k.Bridges = slices.DeleteFunc(bridges, func(name string) bool { return !slices.Contains(a.PodLinks, name) })
	}
	return k
}

func bridges(ctx context.Context) ([]string, error) {
	conn, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Bridges(ctx)
}

// rulesFacts turns what was seen of rules into values, and follows the pods' connections through them.
func rulesFacts(o netfilter.Observation, a *doctor.Agent) doctor.Rules {
	r := doctor.Rules{Backend: o.Backend, Family: o.Family.String(), Command: o.Command, Chains: o.Chains, Policy: o.Policy, PolicyPackets: o.PolicyPackets,
		Above: countedRules(o.Above), Refusing: countedRules(o.Refusing)}
	if a != nil {
		r.Ways = ways(o.Family, o.Save, a)
	}
	return r
}

func countedRules(rules []netfilter.CountedRule) (list []doctor.Rule) {
	for _, r := range rules {
		list = append(list, doctor.Rule{Table: r.Table, Chain: r.Chain, Text: r.Rule, Refuses: r.Refuses, Packets: r.Packets})
	}
	return list
}

// ways tells what becomes of connections between pods of this node and of another, in both directions.
func ways(f cluster.Family, save string, a *doctor.Agent) (list []doctor.Way) {
	own := slices.IndexFunc(a.PodCIDRs, func(p netip.Prefix) bool { return cluster.FamilyOf(p.Addr()) == f })
	other := slices.IndexFunc(a.Others, func(o doctor.Others) bool { return cluster.FamilyOf(o.Pods.Addr()) == f })
	if own < 0 || other < 0 || len(a.PodLinks) == 0 {
		return nil
	}
	here, there := aPod(a.PodCIDRs[own]), aPod(a.Others[other].Pods)
	madeUp := true
	if i := slices.IndexFunc(a.Pods, func(p netip.Addr) bool { return cluster.FamilyOf(p) == f }); i >= 0 {
		here, madeUp = a.Pods[i], false
	}
	if pod := a.Others[other].Pod; pod.IsValid() {
		there = pod
	}
	rules, err := trace.Parse(f, save)
	for _, w := range []struct {
		from, to netip.Addr
		in, out  string
	}{{here, there, a.PodLinks[0], a.Others[other].Link}, {there, here, a.Others[other].Link, a.PodLinks[0]}} {
		way := doctor.Way{From: w.from, To: w.to, MadeUp: madeUp}
		var outcomes []trace.Outcome
		if err == nil {
			const port = 8080 // no rule of ours asks for it
			outcomes, err = rules.Trace(trace.Packet{Protocol: cluster.TCP, Src: netip.AddrPortFrom(w.from, 50000), Dst: netip.AddrPortFrom(w.to, port), In: w.in, Out: w.out},
				trace.Node{Local: func(netip.Addr) bool { return false }})
		}
		if err != nil {
			way.Why = err.Error()
		} else if len(outcomes) > 0 {
			way.Verdict = string(outcomes[0].Verdict)
			if last := outcomes[0].Rules; outcomes[0].Verdict != trace.Accept && len(last) > 0 && iptables.Refuses(last[len(last)-1]) {
				way.Rule = last[len(last)-1]
			}
		}
		list = append(list, way)
	}
	return list
}

// aPod is an address such as a pod of a range has: the first is the bridge's.
func aPod(p netip.Prefix) netip.Addr { return p.Addr().Next().Next() }

// procFacts reads files below /proc, or what is mounted like it.
func procFacts(proc string) doctor.Kernel {
	k := doctor.Kernel{Sysctls: map[string]string{}}
	read := func(name string) (string, bool) {
		text, err := os.ReadFile(filepath.Join(proc, name))
		return strings.TrimSpace(string(text)), err == nil
	}
	for _, name := range []string{doctor.SysctlIPForward, doctor.SysctlForwarding6, doctor.SysctlBridgeNF, doctor.SysctlBridgeNF6, doctor.SysctlTCPBeLiberal} {
		if v, ok := read("sys/" + name); ok {
			k.Sysctls[name] = v
		}
	}
	number := func(name string) uint64 {
		v, _ := read(name)
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	k.Conntrack.Count, k.Conntrack.Max = number("sys/net/netfilter/nf_conntrack_count"), number("sys/net/netfilter/nf_conntrack_max")
	stat, _ := read("net/stat/nf_conntrack")
	sums := sumColumns(stat)
	k.Conntrack.InsertFailed, k.Conntrack.Drop, k.Conntrack.EarlyDrop = sums["insert_failed"], sums["drop"], sums["early_drop"]
	netstat, _ := read("net/netstat")
	k.ReversePathDrops = counter(netstat, "TcpExt", "IPReversePathFilter")
	k.Strict = strictLinks(filepath.Join(proc, "sys/net/ipv4/conf"), number)
	return k
}

// strictLinks are the links with a strict reverse path filter: the larger value of the link's and that of all counts
// (Documentation/networking/ip-sysctl.rst).
func strictLinks(dir string, number func(string) uint64) (links []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	value := func(link string) uint64 { return number("sys/net/ipv4/conf/" + link + "/rp_filter") }
	all := value("all")
	for _, e := range entries {
		if name := e.Name(); name != "all" && name != "default" && name != "lo" && max(all, value(name)) == 1 {
			links = append(links, name)
		}
	}
	return links
}

// sumColumns adds up the hexadecimal columns of /proc/net/stat/nf_conntrack, one line for each CPU below their names.
func sumColumns(text string) map[string]uint64 {
	sums := map[string]uint64{}
	var names []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if names == nil {
			names = words
			continue
		}
		for i, w := range words[:min(len(words), len(names))] {
			if n, err := strconv.ParseUint(w, 16, 64); err == nil {
				sums[names[i]] += n
			}
		}
	}
	return sums
}

// counter reads a number of /proc/net/netstat, whose lines come in pairs: names, and their values.
func counter(text, protocol, name string) uint64 {
	var names []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		if i := slices.Index(names, name); i >= 0 && i < len(words) {
			n, err := strconv.ParseUint(words[i], 10, 64)
			if err == nil {
				return n
			}
		}
		names = nil
	}
	return 0
}
