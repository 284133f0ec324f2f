package main

import (
	"os"
	"runtime"
	"runtime/pprof"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/agent/source"
)

func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestScratchHeap(t *testing.T) {
	base := live()
	s := madeUp(10000, 5)
	a := source.NewAssembler()
	b0 := live()
	for _, svc := range s.Services {
		so := sliceObject(svc)
		so.Namespace = svc.Namespace
		so.UID = types.UID("0f0e0d0c-0000-0000-0000-0123456789ab")
		o, _ := source.Convert(so)
		a.Set(o)
		k := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Namespace: svc.Namespace, UID: types.UID("0f0e0d0c-0000-0000-0000-0123456789ac")}}
		k.Spec.ClusterIP = svc.ClusterIPs[0].String()
		k.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, NodePort: int32(svc.Ports[0].NodePort)}}
		o, _ = source.Convert(k)
		a.Set(o)
	}
	snap := a.Snapshot()
	b1 := live()
	t.Logf("synth %d KiB, assembler+snapshot %d KiB", (b0-base)>>10, (b1-b0)>>10)
	p := agent.MakePlan(snap, config(), agent.Offline, nil)
	b2 := live()
	t.Logf("plan %d KiB text %d KiB chains %d", (b2-b1)>>10, len(rulesOf(p).String())>>10, len(rulesOf(p).NAT.Chains))
	f, _ := os.Create("/tmp/heap.prof")
	pprof.WriteHeapProfile(f)
	f.Close()
	runtime.KeepAlive(s)
	runtime.KeepAlive(a)
	runtime.KeepAlive(p)
}
