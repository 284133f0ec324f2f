// Command wallclock runs a program whose clock on the wall is ahead of everybody else's, or behind, by as many seconds as a file says, now
// and whenever it is asked:
//
//	wallclock FILE PROGRAM [ARGUMENT]...
//
// The kernel has one such clock for all (time namespaces move the monotonic ones alone), so the program is traced, and what
// clock_gettime answers is changed; copies of itself that it starts are traced, too. The vDSO, which answers without a system call, is hidden from
// it. Rejected: to build the program with another package time, which would be another program.
//
// It refuses to move the monotonic clock: nobody can set that. It shifts what is asked for, not what the kernel writes by itself, such as
// the times of files.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: wallclock FILE PROGRAM [ARGUMENT]...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
