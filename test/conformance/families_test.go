package conformance_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// On a host that has the iptables of one family only, that family is served, and the log says what the other lacks.
func TestOneFamily(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		for i, f := range cluster.Families {
			s.cluster.SetService(web(10))
			s.cluster.SetEndpoints(web(10), lab.Ready(s.p1))
			// The agent's whole PATH is a folder with this family's programs.
			bin := filepath.Join(s.Dir, "only-"+f.String())
			ok(t, os.Mkdir(bin, 0o755))
			for _, verb := range []string{"", "-save", "-restore"} {
				name := lab.Tool(s.backend, f, verb)
				path, err := exec.LookPath(name)
				ok(t, err)
				ok(t, os.Symlink(path, filepath.Join(bin, name)))
			}
			s.startOn(t, lab.AgentOptions{Flags: forwarding, Env: []string{"PATH=" + bin}}, s.n1)
			comesToSee(t, s.p2.Namespace, tcp(vip(f, 10), 80), saw(s.p2.Addr(f), "p1"))
			other := cluster.Families[1-i]
			s.leavesAlone(t, s.p2.Namespace, tcp(vip(other, 10), 80))
			if said := s.agent.Output(); !strings.Contains(said, "An address family is left out") || !strings.Contains(said, lab.Tool(s.backend, other, "")) {
				t.Errorf("the agent does not say what %s lacks:\n%s", other, said)
			}
			ok(t, s.agent.Stop(soon))
			out, err := s.n1.Run(mustFairway(t), "cleanup", "--iptables-backend", string(s.backend))
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	})
}

// Without any iptables the agent is not ready, and says what is missing.
func TestNoFamily(t *testing.T) {
	s := newStage(t, lab.NFT)
	s.write(t)
	p, err := s.n1.Start(lab.Command{Path: mustFairway(t), Args: []string{"agent", "--node-name=n1", "--cluster-dir=" + s.cluster.Dir, "--control-socket=none"},
		Env: []string{"PATH=" + t.TempDir()}})
	ok(t, err)
	defer func() { ok(t, p.Stop(soon)) }()
	ok(t, lab.Eventually(soon, func() error {
		status, said, err := s.n1.Get("http://127.0.0.1:10256/readyz", soon)
		if err != nil {
			return err
		}
		for _, want := range []string{"iptables-legacy is not in PATH", "ip6tables-nft is not in PATH"} {
			if status == 200 || !strings.Contains(said, want) {
				return fmt.Errorf("/readyz answers %d %s, expected it to name %s", status, said, want)
			}
		}
		return nil
	}))
}

func mustFairway(t *testing.T) string {
	t.Helper()
	path, err := lab.AgentBinary()
	ok(t, err)
	return path
}
