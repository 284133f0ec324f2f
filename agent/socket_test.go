package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A servedSocket is a control socket that is served until it is stopped.
type servedSocket struct {
	*testing.T
	path   string
	failed chan error
	stop   func()
}

func serveSocket(t *testing.T, path string, handler http.Handler) *servedSocket {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &servedSocket{T: t, path: path, failed: make(chan error, 100)}
	ended := make(chan error)
	socket := &controlSocket{path: path, handler: handler, again: 10 * time.Millisecond, failed: func(err error) { s.failed <- err }}
	go func() { ended <- socket.run(ctx) }()
	s.stop = func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	return s
}

// answers waits until the socket's server has a name.
func (s *servedSocket) answers(name string) {
	s.Helper()
	eventually(s.T, name+" answers", func() bool {
		var got string
		return ask(s.Context(), s.path, http.MethodGet, "/name", &got) == nil && got == name
	})
}

func named(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /name", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, name) })
	mux.HandleFunc("POST /leave", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusConflict, refusal{"not now"})
	})
	return mux
}

// TestControlSocket: it is root's alone, in a folder of its own, and answers; what it refuses is an error in its words; and it is
// gone at the end.
func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	s := serveSocket(t, path, named("a"))
	s.answers("a")
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside it there are %v, %v", entries, err)
	}
	if err := ask(t.Context(), path, http.MethodPost, "/leave", nil); err == nil || err.Error() != "not now" {
		t.Errorf("a refusal is %v", err)
	}
	if err := ask(t.Context(), path, http.MethodGet, "/nothing", nil); err == nil || !strings.Contains(err.Error(), "does not know /nothing (404") {
		t.Errorf("an unknown path: %v", err)
	}
	if err := ask(t.Context(), path, http.MethodGet, "/name", new(int)); err == nil || errors.Is(err, ErrNoAgent) {
		t.Errorf("an answer of another type: %v", err)
	}
	s.stop()
	if err := ask(t.Context(), path, http.MethodGet, "/name", nil); !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), path) {
		t.Errorf("when the agent has ended: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("and it has left its socket: %v", err)
	}
}

// TestControlSocketReplaced: one that a killed agent left is replaced, and one of an agent that is about to end; that one's end
// does not take the new socket away. At no moment is there none.
func TestControlSocketReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(t.Context(), path, http.MethodGet, "/name", nil); !errors.Is(err, ErrNoAgent) {
		t.Errorf("a socket that nobody serves: %v", err)
	}
	missing := make(chan error, 1)
	watched, stop := context.WithCancel(t.Context())
	go func() {
		defer close(missing)
		for watched.Err() == nil {
			if _, err := os.Lstat(path); err != nil {
				missing <- err
				return
			}
		}
	}()
	first := serveSocket(t, path, named("first"))
	first.answers("first")
	second := serveSocket(t, path, named("second"))
	second.answers("second")
	first.stop()
	second.answers("second")
	stop()
	if err := <-missing; err != nil {
		t.Errorf("there was no socket for a moment: %v", err)
	}
	second.stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the second socket is left")
	}
}

// TestControlSocketFails: a folder that can't be made, or a file in the way, is told once and tried again, until it works; the file
// is not touched.
func TestControlSocketFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serveSocket(t, path, named("a"))
	if err := <-s.failed; err == nil || !strings.Contains(err.Error(), path+" is there and is no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	time.Sleep(50 * time.Millisecond) // some attempts
	if text, err := os.ReadFile(path); string(text) != "precious" || len(s.failed) > 0 {
		t.Errorf("the file has %q, %v; told again: %d", text, err, len(s.failed))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := <-s.failed; err != nil {
		t.Errorf("when it is gone: %v", err)
	}
	s.answers("a")
	s.stop()

	notes := socketNotes("n1", path, errors.New("no space"))
	if len(notes) != 1 || notes[0].Object.Name != "n1" || socketNotes("n1", path, nil) != nil {
		t.Errorf("the Notes are %v", notes)
	}
}
