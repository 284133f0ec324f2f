package source

import (
	"fmt"

	"github.com/fairway-net/fairway/agent/cluster"
)

// A Census counts what a cluster has. Lists are compared by it: one that would delete more than half of everything is rather a
// list that is wrong (an API server with an empty or stale store, a folder that is being written) than a cluster that shrank,
// and deserves a second look before it is believed. Events that delete one object after the other do not.
type Census struct {
	Nodes, Services, Endpoints int
}

// minCensus is how many of a kind there must have been for half of them to mean anything. That none are left always does: the lists of
// a small cluster's Nodes and Services come one after the other, and the first of them alone takes all routes away.
const minCensus = 10

// Count counts a Snapshot; nothing for nil.
func Count(s *cluster.Snapshot) (c Census) {
	if s == nil {
		return c
	}
	c.Nodes, c.Services = len(s.Nodes), len(s.Services)
	for _, svc := range s.Services {
		for _, slice := range svc.Slices {
			c.Endpoints += len(slice.Endpoints)
		}
	}
	return c
}

// Shrunk says what a next census has lost more than half of; "" for nothing.
func (c Census) Shrunk(next Census) string {
	for _, kind := range [...]struct {
		name    string
		was, is int
	}{{"Nodes", c.Nodes, next.Nodes}, {"Services", c.Services, next.Services}, {"endpoints", c.Endpoints, next.Endpoints}} {
		if kind.was > 0 && kind.is == 0 || kind.was >= minCensus && 2*kind.is < kind.was {
			return fmt.Sprintf("%d of %d %s are left", kind.is, kind.was, kind.name)
		}
	}
	return ""
}
