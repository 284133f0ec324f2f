package main

import (
	"testing"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/test/synth"
)

// BenchmarkPlan is for profiles: go test -run '^$' -bench Plan -cpuprofile cpu.out ./test/bench
func BenchmarkPlan(b *testing.B) {
	s := madeUp(10_000, 5)
	b.Run("nothing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			agent.MakePlan(s, config(), agent.Offline, nil)
		}
	})
	b.Run("change", func(b *testing.B) {
		b.ReportAllocs()
		plan := agent.MakePlan(s, config(), agent.Offline, nil)
		for i := 0; b.Loop(); i++ {
			s = synth.Changed(s, i%len(s.Services), i%200)
			plan = agent.MakePlan(s, config(), agent.Offline, plan)
		}
	})
}
