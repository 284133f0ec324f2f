package netfilter

import (
	"context"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/proxy/iptables"
	"github.com/fairway-net/fairway/test/synth"
)

// BenchmarkWatch measures what the watch costs at 10,000 Services with 5 endpoints: idle, the processor time in a second of a
// watch that has nothing to tell; and the parts that it consists of.
func BenchmarkWatch(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("network namespaces need root")
	}
	table, _ := proxy.Plan(synth.Even(100, 10000, 5), cluster.IPv4, proxy.Config{NodeName: synth.NodeName}, nil)
	rules := iptables.Render(table, iptables.Options{MasqueradeBit: 14, RandomFully: true, Large: true}, nil)
	for _, name := range []string{Legacy, NFT} {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			b.Setenv("XTABLES_LOCKFILE", b.TempDir()+"/xtables.lock")
			backend, err := Detect(context.Background(), name)
			if err != nil {
				b.Fatal(err)
			}
			if err := backend.Apply(context.Background(), cluster.IPv4, iptables.Diff(&iptables.Ruleset{}, rules)); err != nil {
				b.Fatal(err)
			}
			if name == Legacy {
				benchmarkLegacy(b, backend)
			} else {
				benchmarkNFT(b, backend, rules)
			}
			benchmarkIdle(b, backend)
		})
	}
}

// measure runs something that should have a benchmark of its own, but in the namespace of this thread.
func measure(b *testing.B, what string, f func() error) {
	const times = 10
	before := processorTime(b)
	start := time.Now()
	for range times {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/1000/times, "ms/"+what)
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/times, "ms-cpu/"+what)
}

// processorTime is that of this process and the programs that it ran.
func processorTime(b *testing.B) (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d
}

func benchmarkLegacy(b *testing.B, backend *Backend) {
	socket, err := openSocket(cluster.IPv4)
	if err != nil {
		b.Fatal(err)
	}
	defer syscall.Close(socket)
	v := newLegacyView(cluster.IPv4, socket)
	measure(b, "hash", func() error { _, err := v.look(backend, false); return err })
	measure(b, "size", func() error { _, err := v.resized(backend); return err })
	size := 0
	for _, info := range v.infos {
		size += int(info.size)
	}
	b.ReportMetric(float64(size)/(1<<20), "MiB")
}

func benchmarkNFT(b *testing.B, backend *Backend, rules *iptables.Ruleset) {
	chain := []iptables.ChainName{{Table: iptables.NAT, Chain: serviceChain(rules)}}
	measure(b, "chain-read", func() error {
		_, err := backend.ReadChains(context.Background(), cluster.IPv4, chain)
		return err
	})
}

func benchmarkIdle(b *testing.B, backend *Backend) {
	w, err := backend.OpenWatch()
	if err != nil {
		b.Fatal(err)
	}
	const span = 20 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), span)
	defer cancel()
	before := processorTime(b)
	if err := w.Run(ctx, Observer{Changed: func(Change) {}, Quiet: func(cluster.Family, time.Time) {}}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/span.Seconds(), "ms-cpu/s-idle")
}
