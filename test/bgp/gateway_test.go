package bgp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/test/lab"
)

// A gateway is a router's daemons in a namespace.
type gateway struct {
	*testing.T
	ns  *lab.Namespace
	dir string
	// show is the command that prints the daemon's routes.
	show  []string
	procs []*lab.Process
}

// need skips the test without a program of Debian's, or fails it where nothing may be skipped.
func need(t *testing.T, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv(lab.RequireEnv) == "require" {
		t.Fatalf("%s, of Debian's package %s, is not here", program, pkg)
	}
	t.Skipf("it needs %s, of Debian's package %s", program, pkg)
}

func (g *gateway) start(path string, args ...string) {
	g.Helper()
	p, err := g.ns.Start(lab.Command{Path: path, Args: args})
	if err != nil {
		g.Fatal(err)
	}
	g.procs = append(g.procs, p)
	g.Cleanup(func() {
		if g.Failed() {
			g.Logf("%s (%s):\n%s", path, p.State(), p.Output())
		}
	})
}

func newGateway(t *testing.T, ns *lab.Namespace) *gateway {
	t.Helper()
	// Not t.TempDir: nobody but root may pass through its parent.
	dir, err := os.MkdirTemp("", "gateway")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &gateway{T: t, ns: ns, dir: dir}
}

// belongsTo gives the gateway's folder to a user.
func (g *gateway) belongsTo(name string) {
	g.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		g.Fatal(err)
	}
	uid, errUID := strconv.Atoi(u.Uid)
	gid, errGID := strconv.Atoi(u.Gid)
	if err := errors.Join(errUID, errGID, os.Chown(g.dir, uid, gid)); err != nil {
		g.Fatal(err)
	}
}

func (g *gateway) write(name, text string) string {
	g.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		g.Fatal(err)
	}
	return path
}

// startBIRD starts BIRD with a configuration.
func startBIRD(t *testing.T, ns *lab.Namespace, config string) *gateway {
	t.Helper()
	return startBIRDWith(t, ns, config)
}

// startBIRDWith is startBIRD with flags.
func startBIRDWith(t *testing.T, ns *lab.Namespace, config string, flags ...string) *gateway {
	t.Helper()
	need(t, "bird", "bird2")
	g := newGateway(t, ns)
	config = strings.Replace(config, "log syslog all;", "log stderr all;", 1)
	socket := filepath.Join(g.dir, "bird.ctl")
	g.start("bird", append(flags, "-f", "-c", g.write("bird.conf", config), "-s", socket, "-P", filepath.Join(g.dir, "bird.pid"))...)
	g.show = []string{"birdc", "-s", socket, "show", "route", "all"}
	return g
}

// startFRR starts FRR's zebra and bgpd with a configuration.
func startFRR(t *testing.T, ns *lab.Namespace, config string) *gateway {
	t.Helper()
	need(t, "/usr/lib/frr/bgpd", "frr")
	g := newGateway(t, ns)
	g.belongsTo("frr") // as whom the daemons run
	zserv := filepath.Join(g.dir, "zserv.api")
	common := []string{"-z", zserv, "--vty_socket", g.dir, "--log", "stdout"}
	empty := g.write("zebra.conf", "\n")
	g.start("/usr/lib/frr/zebra", append(common, "-f", empty, "-i", filepath.Join(g.dir, "zebra.pid"), "-P", "0")...)
	g.start("/usr/lib/frr/bgpd", append(common, "-f", g.write("bgpd.conf", config), "-i", filepath.Join(g.dir, "bgpd.pid"), "-P", "0", "-p", "179")...)
	// The communities are shown of one prefix at a time; that is docs/bgp.md's service range.
	g.show = []string{"vtysh", "--vty_socket", g.dir, "-c", "show bgp ipv4 unicast", "-c", "show bgp ipv6 unicast", "-c", "show bgp ipv4 unicast 10.96.0.0/16"}
	return g
}

// startGoBGP starts gobgpd with a configuration. It writes nothing to the kernel.
func startGoBGP(t *testing.T, ns *lab.Namespace, config string) *gateway {
	t.Helper()
	need(t, "gobgpd", "gobgpd")
	g := newGateway(t, ns)
	g.start("gobgpd", "-f", g.write("gobgpd.toml", config), "--api-hosts", "127.0.0.1:50051")
	g.show = []string{"bash", "-c", "gobgp global rib -a ipv4; gobgp global rib -a ipv6"}
	return g
}

// routes is what the daemon knows.
func (g *gateway) routes() (string, error) {
	return g.ns.Run(g.show[0], g.show[1:]...)
}

// learned is nil when the daemon knows all of what it should, and nothing of what it should not.
func (g *gateway) learned(texts ...string) error {
	out, err := g.routes()
	if err != nil {
		return err
	}
	var errs []error
	for _, text := range texts {
		not := strings.HasPrefix(text, "!")
		if text = strings.TrimPrefix(text, "!"); strings.Contains(out, text) == not {
			errs = append(errs, fmt.Errorf("the gateway's routes: %q is there: %v", text, not))
		}
	}
	if errs != nil {
		return errors.Join(append(errs, errors.New(out))...)
	}
	return nil
}

// example returns the code block of a language in docs/bgp.md.
func example(t *testing.T, language string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/bgp.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "```"+language+"\n")
	block, _, ended := strings.Cut(after, "```")
	if !found || !ended {
		t.Fatalf("docs/bgp.md has no block of %s", language)
	}
	return block
}
