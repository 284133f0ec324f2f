package agent

import (
	"context"
	"testing"
)

// TestRunStopped: an agent that is told to stop while it starts has not failed.
func TestRunStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c, err := (&AgentConfiguration{NodeName: "a", ControlSocket: nowhere}).Config()
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(ctx, Options{Config: c, ClusterDir: t.TempDir()}); err != nil {
		t.Error(err)
	}
}
