// A listening socket is one of MPTCP where the kernel has it, unless that is switched off. MPTCP has no TCP-MD5, which BGP
// peers may ask for.
//
//go:debug multipathtcp=0

// Command fairway is the node agent: see the README. This package turns flags into one call; it decides nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fairway:", err)
		stop()
		code := 1
		if e := (exitError{}); errors.As(err, &e) {
			code = e.code
		}
		os.Exit(code)
	}
}
