package source

import (
	"context"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Source publishes the state of a cluster.
type Source interface {
	// Run publishes Snapshots until ctx ends, and then returns nil, or until it meets an error that waiting does not
	// heal. publish is called from one goroutine, with the first Snapshot once lists of all kinds are complete and
	// with a new one after every change; changes that come together may share a Snapshot. Snapshots are immutable,
	// their Host is nil, and what did not change keeps its pointer from one to the next. publish must return
	// quickly: it stores the Snapshot and signals.
	Run(ctx context.Context, publish func(*cluster.Snapshot)) error
}
