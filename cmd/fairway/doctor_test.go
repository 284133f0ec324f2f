package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// TestDoctorCantAsk: what fairway doctor does not understand ends with the code 2, as what it can't tell does.
func TestDoctorCantAsk(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"doctor", "-o", "yaml"}, `unknown format "yaml", expected one of text, json`},
		{[]string{"doctor", "node1"}, "unknown command"},
		{[]string{"doctor", "--root=/host"}, "unknown flag: --root"},
	} {
		out, _, err := run(t, "", append(c.args, "--control-socket="+filepath.Join(t.TempDir(), "agent.sock"))...)
		e := exitError{}
		if !errors.As(err, &e) || e.code != cantAsk || !strings.Contains(err.Error(), c.want) || out != "" {
			t.Errorf("%v: %v, expected %s with code %d; printed %q", c.args, err, c.want, cantAsk, out)
		}
	}
}
