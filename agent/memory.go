package agent

import (
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"k8s.io/klog/v2"
)

// gcPercent is how much garbage may pile up before it is collected, in percent of what is in use; Go's own default is
// 100. Nearly all that a long-running agent has in use is the cluster and its rules, which hardly change, so collecting
// more often costs little: with 10,000 Services and 20 changes a second, half of Go's default costs 3 % of a core, for a fifth less memory, and a
// third instead of half costs one or two of the 36 ms of each change, for 8 MiB.
// While the agent starts, what is in use grows all the time, and each collection looks at all of it again: there it costs a
// fifth of a second, so Go's default counts until then.
const (
	gcPercent    = 33
	startPercent = 100
)

// readBackTime is about how long everything is read back after the start, which leaves as much garbage as there are rules.
const readBackTime = 2 * time.Second

// frugal sets how often garbage is collected, unless the operator has (GOGC). There is no limit (GOMEMLIMIT): near a limit
// an agent would spend its time collecting instead of following the cluster. started is to be called when the first Plan is
// programmed: what only the start needed goes back to the kernel then. It takes its time.
func frugal() (started func()) {
	if os.Getenv("GOGC") != "" {
		return debug.FreeOSMemory
	}
	debug.SetGCPercent(startPercent)
	return func() {
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory()
		time.Sleep(readBackTime)
		debug.FreeOSMemory()
	}
}

// oomScoreFile is where a process says how readily the kernel ends it when memory is short; see proc_pid_oom_score_adj(5).
const oomScoreFile = "/proc/self/oom_score_adj"

// adjustOOMScore makes the kernel spare the agent, and the iptables programs that it runs, as far as it may: to lower the value
// takes CAP_SYS_RESOURCE. In a pod the kubelet has set one already, so it is no fault when that is refused.
func adjustOOMScore(file string, score int) {
	if err := os.WriteFile(file, []byte(strconv.Itoa(score)), 0); err != nil {
		klog.V(2).InfoS("The kernel keeps its opinion of the agent's memory", "oomScoreAdj", score, "err", err)
	}
}
