package netfilter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// ErrNoBackend is found by errors.Is in the error of Detect and Cleanup on a host where no backend works. The error's
// text names what is missing.
var ErrNoBackend = errors.New("no usable iptables")

// Detect finds the backend to use. choice is Legacy, NFT or Auto.
//
// Auto takes the backend in which kubelet left its hint (KUBE-IPTABLES-HINT in mangle, or the older
// KUBE-KUBELET-CANARY), else the one with more rules, else the one that plain iptables is: mixing the two on a host
// works badly. When that one does not work at all, it takes the other. [Backend.Why] says what decided.
func Detect(ctx context.Context, choice string) (*Backend, error) {
	return newDetector().detect(ctx, choice)
}

// Inspect is Detect that changes nothing. Detect asks the backend for a table, which makes an empty one where there is none.
func Inspect(ctx context.Context, choice string) (*Backend, error) {
	d := newDetector()
	d.untouched = true
	return d.detect(ctx, choice)
}

// A detector looks at a host. Its functions are the seams for tests.
type detector struct {
	run      runner
	lookPath func(string) (string, error)
	// version returns what --version of a binary says, and whether its MASQUERADE has --random-fully.
	version func(f cluster.Family, path string) (v [3]int, randomFully bool, err error)
	hasIPv6 func() bool
	// own are the programs that run has started; nil in tests.
	own *children
	// untouched keeps it from asking for a table by name, which may make it.
	untouched bool
}

func newDetector() *detector {
	own := new(children)
	return &detector{run: own.run, own: own, lookPath: exec.LookPath, version: versionOf, hasIPv6: kernelHasIPv6}
}

func versionOf(f cluster.Family, path string) (v [3]int, randomFully bool, err error) {
	protocol := goiptables.ProtocolIPv4
	if f == cluster.IPv6 {
		protocol = goiptables.ProtocolIPv6
	}
	ipt, err := goiptables.New(goiptables.IPFamily(protocol), goiptables.Path(path))
	if err != nil {
		return v, false, err
	}
	v[0], v[1], v[2] = ipt.GetIptablesVersion()
	return v, ipt.HasRandomFully(), nil
}

// kernelHasIPv6 tells whether IPv6 was not turned off at boot (ipv6.disable=1). disable_ipv6 of an interface is no
// reason to leave it without rules: they do no harm, and it may be turned on later.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// programs names the command of a family, without the backend.
func programs(f cluster.Family) string {
	if f == cluster.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

func (d *detector) detect(ctx context.Context, choice string) (*Backend, error) {
	switch choice {
	case Legacy, NFT:
		b := d.find(ctx, choice)
		b.Why = "it was asked for"
		d.probe(ctx, b)
		if len(b.Binaries) == 0 {
			return nil, noBackend(b)
		}
		other := d.find(ctx, map[string]string{Legacy: NFT, NFT: Legacy}[choice])
		b.warn(other, d.look(ctx, other))
		return b, nil
	case Auto, "":
		return d.auto(ctx)
	}
	return nil, fmt.Errorf("iptables backend %q: must be %s, %s or %s", choice, Auto, Legacy, NFT)
}

func (d *detector) auto(ctx context.Context) (*Backend, error) {
	legacy, nft := d.find(ctx, Legacy), d.find(ctx, NFT)
	seenLegacy, seenNFT := d.look(ctx, legacy), d.look(ctx, nft)
	first, second, other := nft, legacy, seenLegacy
	name, why := choose(seenLegacy, seenNFT, d.plain(ctx))
	if name == Legacy {
		first, second, other = legacy, nft, seenNFT
	}
	first.Why = why
	d.probe(ctx, first)
	if len(first.Binaries) > 0 {
		first.warn(second, other)
		if other.unread != nil {
			first.Warnings = append(first.Warnings, fmt.Sprintf(
				"iptables-%s has tables that can't be read, so what is in them did not count: %v; if this host uses it, give the agent the capabilities NET_ADMIN and NET_RAW",
				second.Name, other.unread))
		}
		return first, nil
	}
	d.probe(ctx, second)
	if len(second.Binaries) == 0 {
		return nil, noBackend(legacy, nft)
	}
	second.Why = fmt.Sprintf("iptables-%s would be the one to use (%s), but does not work: %s", first.Name, why, missing(first))
	return second, nil
}

// warn warns of what was seen in the other backend that acts beside this one.
func (b *Backend) warn(other *Backend, seen evidence) {
	if seen.chains > 0 {
		b.Warnings = append(b.Warnings, fmt.Sprintf(
			"iptables-%s holds %d chains of Services; those rules, probably of an earlier kube-proxy, still act: remove them by fairway takeover when no kube-proxy runs",
			other.Name, seen.chains))
	}
}

func noBackend(tried ...*Backend) error {
	var what []string
	for _, b := range tried {
		what = append(what, fmt.Sprintf("%s: %s", b.Name, missing(b)))
	}
	return fmt.Errorf("%w: %s", ErrNoBackend, strings.Join(what, "; "))
}

func missing(b *Backend) string {
	var what []string
	for _, f := range cluster.Families {
		if m := b.Missing[f]; m != "" {
			what = append(what, fmt.Sprintf("%s: %s", f, m))
		}
	}
	return strings.Join(what, ", ")
}

// choose picks a backend by what was seen in both, and says why. plain is the backend that the plain iptables command
// is, or "".
func choose(legacy, nft evidence, plain string) (name, why string) {
	switch {
	case legacy.hint != "" && nft.hint == "":
		return Legacy, fmt.Sprintf("kubelet's chain %s is in iptables-legacy", legacy.hint)
	case nft.hint != "" && legacy.hint == "":
		return NFT, fmt.Sprintf("kubelet's chain %s is in iptables-nft", nft.hint)
	case legacy.rules > nft.rules:
		return Legacy, fmt.Sprintf("iptables-legacy holds %d rules, iptables-nft %d", legacy.rules, nft.rules)
	case nft.rules > legacy.rules:
		return NFT, fmt.Sprintf("iptables-nft holds %d rules, iptables-legacy %d", nft.rules, legacy.rules)
	case plain != "":
		return plain, fmt.Sprintf("neither backend says more than the other (%d rules in each), and the plain iptables command is iptables-%s", nft.rules, plain)
	}
	return NFT, fmt.Sprintf("neither backend says more than the other (%d rules in each), and there is no plain iptables command", nft.rules)
}

// find looks for a backend's binaries: those that carry its name, else the plain ones if they are this backend.
func (d *detector) find(ctx context.Context, name string) *Backend {
	b := &Backend{Name: name, Binaries: map[cluster.Family]Binaries{}, Missing: map[cluster.Family]string{}, run: d.run, own: d.own, writes: new(ownWrites)}
	for _, f := range cluster.Families {
		command := programs(f) + "-" + name
		if _, err := d.lookPath(command); err != nil && d.modeOf(ctx, programs(f)) == name {
			command = programs(f)
		}
		bin, err := d.binaries(command)
		if err != nil {
			b.Missing[f] = err.Error()
			continue
		}
		b.Binaries[f] = bin
	}
	return b
}

func (d *detector) binaries(command string) (bin Binaries, err error) {
	for _, p := range []struct {
		name string
		path *string
	}{{command, &bin.Command}, {command + "-save", &bin.Save}, {command + "-restore", &bin.Restore}} {
		if *p.path, err = d.lookPath(p.name); err != nil {
			return bin, fmt.Errorf("%s is not in PATH", p.name)
		}
	}
	return bin, nil
}

// plain tells which backend the iptables command is, "" when there is none.
func (d *detector) plain(ctx context.Context) string { return d.modeOf(ctx, programs(cluster.IPv4)) }

// modeOf tells which backend a command is. Before 1.8 there was only one, and --version did not say.
func (d *detector) modeOf(ctx context.Context, name string) string {
	path, err := d.lookPath(name)
	if err != nil {
		return ""
	}
	out, err := d.run(ctx, command{path: path, args: []string{"--version"}})
	switch {
	case err != nil:
		return ""
	case strings.Contains(out, "(nf_tables)"):
		return NFT
	}
	return Legacy
}

// probe drops the families that do not work, with the reason.
func (d *detector) probe(ctx context.Context, b *Backend) {
	for _, f := range b.Families() {
		if reason := d.defect(ctx, b, f); reason != "" {
			b.Missing[f] = reason
			delete(b.Binaries, f)
		}
	}
}

// defect says what is wrong with a family of a backend, or "".
func (d *detector) defect(ctx context.Context, b *Backend, f cluster.Family) string {
	if f == cluster.IPv6 && !d.hasIPv6() {
		return "the kernel runs without IPv6 (/proc/sys/net/ipv6 is missing)"
	}
	path := b.Binaries[f].Command
	v, randomFully, err := d.version(f, path)
	if err != nil {
		return fmt.Sprintf("%s does not tell its version: %v", path, err)
	}
	version := fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
	// Since 1.6.2 iptables-restore has -w, and MASQUERADE --random-fully.
	if !randomFully {
		return fmt.Sprintf("%s is version %s, 1.6.2 is the oldest that does", path, version)
	}
	// That somebody holds the lock right now means that the family works, and is no reason to do without. The wait has
	// to be given: iptables-legacy 1.8.9 waits for ever without.
	probe := command{path: path, args: []string{"-w", "1", "-t", iptables.NAT, "-S", "POSTROUTING"}}
	if d.untouched {
		probe = command{path: b.Binaries[f].Save}
	}
	if _, err := d.run(ctx, probe); err != nil && !lockedOut(err) {
		return unusable(err)
	}
	b.Version, b.RandomFully = version, randomFully
	return ""
}

func lockedOut(err error) bool {
	var exit *exitError
	return errors.As(err, &exit) && strings.Contains(exit.stderr, lockMessage)
}

// unusable words the failure of a probe.
func unusable(err error) string {
	var exit *exitError
	switch {
	case !errors.As(err, &exit):
		return err.Error()
	case strings.Contains(exit.stderr, "ermission denied") || strings.Contains(exit.stderr, "you must be root"):
		return fmt.Sprintf("not permitted; the capability NET_ADMIN is needed, for legacy also a writable %s (%s)", lockFile(), summary(exit.stderr))
	}
	return fmt.Sprintf("the kernel refuses it (%s)", summary(exit.stderr))
}
