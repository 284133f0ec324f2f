package agent

import (
	"context"
	"reflect"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/rtnl"
)

// retryWatch is the pause before a failed watch on the kernel is tried again.
const retryWatch = time.Second

// watchHost follows what others change on this machine: links and addresses, which lead to a new Plan, and routes of
// ours, which are put back.
func watchHost(ctx context.Context, conn *rtnl.Conn, l *loop) error {
	w := hostWatcher{conn: conn, loop: l}
	for ctx.Err() == nil {
		if err := w.watch(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Links, addresses and routes can't be followed, what was known of them stays", "retryIn", retryWatch)
			sleep(ctx, retryWatch)
		}
	}
	return nil
}

// A hostWatcher turns the kernel's events into Hosts and kicks.
type hostWatcher struct {
	conn *rtnl.Conn
	loop *loop
	host *cluster.Host
}

// watch follows until the context ends, or something fails. A Host that could not be read would be missed until the next
// event, so that is a failure, too: a new watch begins with reading it.
func (w *hostWatcher) watch(ctx context.Context) error {
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err := w.conn.Watch(watching, func(e rtnl.Event) {
		if err := w.changed(watching, e); err != nil {
			stop(err)
		}
	})
	if err != nil {
		return err
	}
	return context.Cause(watching)
}

func (w *hostWatcher) changed(ctx context.Context, e rtnl.Event) error {
	if e&(rtnl.HostChanged|rtnl.Overrun) != 0 {
		h, err := w.conn.Host(ctx)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(h, w.host) {
			w.host = h
			w.loop.setHost(h)
		}
	}
	w.loop.kick(routesName)
	return nil
}
