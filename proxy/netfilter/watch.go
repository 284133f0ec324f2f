package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// A Change is what somebody else may have done to a family's tables.
type Change struct {
	Family cluster.Family
	// Chains are the chains that were touched, of those that concern us; nil when it may be any.
	Chains []iptables.ChainName
	// By is who did it, "pid 4711 (iptables)"; empty when that is not known. The number is the machine's, not that of a
	// container.
	By string
}

// An Observer is told what a Watch sees. Its functions are called one at a time, and must not block.
type Observer struct {
	// Changed is told a change by others.
	Changed func(Change)
	// Quiet is told that whatever others did to a family before a moment has been told; about once a second.
	Quiet func(cluster.Family, time.Time)
}

// quietEvery is how often Quiet is called; tests shorten it.
var quietEvery = time.Second

// A Watch notices what others do to the tables of a Backend. Writes of the Backend itself are not told.
type Watch struct {
	backend *Backend
	run     func(context.Context, Observer) error
	close   func()
}

// OpenWatch begins to watch, in the network namespace of the calling thread.
//
// With iptables-nft the kernel tells of every change, and who made it, in milliseconds. With iptables-legacy it does not: every
// legacy command uses the xtables lock, whose file is watched, and then a hash of the rules is compared; that is also done from
// time to time, for who does without the lock.
func (b *Backend) OpenWatch() (*Watch, error) {
	if b.Name == NFT {
		return b.openNFTWatch()
	}
	return b.openLegacyWatch()
}

// Run tells the Observer until the context ends, and then returns nil. First it tells of each family that anything may have
// changed: before the Watch, nobody looked. After an error, open another one. Run closes the Watch, and is called once.
func (w *Watch) Run(ctx context.Context, o Observer) error {
	stop := context.AfterFunc(ctx, w.close)
	defer func() {
		if stop() { // not run, and it never will be
			w.close()
		}
	}()
	w.backend.anything(o, "")
	err := w.run(ctx, o)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// anything tells that anything may have changed.
func (b *Backend) anything(o Observer, by string) {
	for _, f := range b.Families() {
		o.Changed(Change{Family: f, By: by})
	}
}

// quiet tells of all families.
func (b *Backend) quiet(o Observer, at time.Time) {
	for _, f := range b.Families() {
		o.Quiet(f, at)
	}
}

// builtins are the chains of our tables that the kernel calls by itself.
var builtins = map[string][]string{
	iptables.Filter: {"INPUT", "FORWARD", "OUTPUT"},
	iptables.NAT:    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
}

// sharedChain is where we have rules beside others'; see iptables.Shared.
const sharedChain = "KUBE-FIREWALL"

// concerns tells whether a chain is one that we have rules in.
func concerns(table, chain string) bool {
	return slices.Contains(builtins[table], chain) || iptables.Owned(table, chain) || table == iptables.Filter && chain == sharedChain
}

// who words a process.
func who(pid int, name string) string {
	name = strings.TrimRight(name, "\x00")
	switch {
	case pid == 0:
		return ""
	case name == "":
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("pid %d (%s)", pid, name)
}
