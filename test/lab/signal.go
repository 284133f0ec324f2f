package lab

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// signals closes the Labs that asked for it when the process is interrupted. It is the one thing that Labs of a process
// share: the process may end only when the last of them is closed.
var signals = signalCloser{labs: map[*Lab]struct{}{}}

type signalCloser struct {
	mu   sync.Mutex // guards labs
	labs map[*Lab]struct{}
	once sync.Once
}

func (s *signalCloser) add(l *Lab) {
	s.once.Do(func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGINT, unix.SIGTERM)
		go s.wait(c)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.labs[l] = struct{}{}
}

func (s *signalCloser) remove(l *Lab) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.labs, l)
}

// wait closes the Labs after a signal and then lets the signal do what it does by default.
func (s *signalCloser) wait(c <-chan os.Signal) {
	sig := <-c
	s.mu.Lock()
	var labs []*Lab
	for l := range s.labs {
		labs = append(labs, l)
	}
	s.mu.Unlock()
	for _, l := range labs {
		// Nobody is left to tell an error to; the next run sweeps.
		_ = l.Close()
	}
	signal.Reset(sig)
	_ = unix.Kill(os.Getpid(), sig.(syscall.Signal))
}
