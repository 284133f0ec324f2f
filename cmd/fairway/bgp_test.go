package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent"
)

// TestBGPCantAsk: what fairway bgp can't ask ends with the code 2, and says why.
func TestBGPCantAsk(t *testing.T) {
	socket := "--control-socket=" + filepath.Join(t.TempDir(), "agent.sock")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"bgp", socket}, "no agent answers at "},
		{[]string{"bgp", "routes", socket}, "no agent answers at "},
		{[]string{"bgp", socket, "-o", "yaml"}, `unknown format "yaml", expected one of text, json`},
		{[]string{"bgp", "routes", socket, "out"}, `unknown direction "out", expected sent, received, or none for both`},
		{[]string{"bgp", "routes", socket, "--peer=router"}, `"router" is no address of a peer`},
		{[]string{"bgp", "routes", "sent", "received"}, "accepts at most 1 arg"},
		{[]string{"bgp", "peers"}, `unknown command "peers"`},
		{[]string{"bgp", "--pear=192.0.2.1"}, "unknown flag: --pear"},
	} {
		out, _, err := run(t, "", c.args...)
		e := exitError{}
		if !errors.As(err, &e) || e.code != cantAsk || !strings.Contains(err.Error(), c.want) || out != "" {
			t.Errorf("%v: %v, expected %s with code %d; printed %q", c.args, err, c.want, cantAsk, out)
		}
		if strings.HasPrefix(c.want, "no agent") != errors.Is(err, agent.ErrNoAgent) {
			t.Errorf("%v: %v is agent.ErrNoAgent: %v", c.args, err, errors.Is(err, agent.ErrNoAgent))
		}
	}
}
