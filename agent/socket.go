package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
)

// DefaultControlSocket is where a running agent is asked and told things by fairway's other commands.
const DefaultControlSocket = "/run/fairway/agent.sock"

// A controlSocket answers HTTP at a unix socket that only its owner may use, which is root. To have it answer more, add a handler
// in controlHandler, and a function that calls ask.
type controlSocket struct {
	path    string
	handler http.Handler
	// again is the pause before a socket that can't be made is tried again.
	again time.Duration
	// failed is told why there is no socket, and nil when there is one again.
	failed func(error)
}

// controlHandler returns what the control socket answers.
func controlHandler(p *bgpPart, kick func(part string)) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+leavePath, leaveHandler(p, kick, (*bgpPart).leave))
	mux.Handle("POST "+undoPath, leaveHandler(p, kick, (*bgpPart).stay))
	mux.HandleFunc("GET "+bgpPath, p.serveStatus)
	mux.HandleFunc("GET "+bgpRoutesPath, p.serveRoutes)
	return mux
}

// run serves until the context ends, and tries again for as long when that fails, which is no reason to end: an agent that can't
// be asked keeps routes and rules all the same. The socket is removed at the end.
func (s *controlSocket) run(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		err := s.serve(ctx, func() {
			if told {
				s.failed(nil)
			}
			told = false
		})
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !told {
			s.failed(err)
		}
		told = true
		sleep(ctx, s.again)
	}
	return nil
}

// serve makes the socket and serves; up is called in between.
func (s *controlSocket) serve(ctx context.Context, up func()) error {
	l, err := listenUnix(s.path)
	if err != nil {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	made, err := os.Lstat(s.path)
	if err == nil {
		up()
		err = (&server{what: "the control socket", handler: s.handler, listener: l}).serve(ctx)
	}
	// What another agent has put in its place is not removed.
	if now, statErr := os.Lstat(s.path); made != nil && statErr == nil && os.SameFile(made, now) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return errors.Join(err, ignoreClosed(l.Close()))
}

// listenUnix listens at a unix socket with mode 0600, in place of one that is there. It is bound in a folder that nobody else may
// enter, and moved when it is complete: at no moment can another user connect, or is there none where there was one.
func listenUnix(path string) (_ *net.UnixListener, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Unix sockets' paths are short (107 bytes), so this one's is.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	temporary := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: temporary})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would be by the temporary name
	if err := errors.Join(os.Chmod(temporary, 0o600), refuseOther(path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// refuseOther is an error when something is there that is no socket, which a wrong path would overwrite.
func refuseOther(path string) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// socketNotes are the Notes on a node for why the control socket can't be served; none for nil. The log is told, too.
func socketNotes(node, path string, err error) []cluster.Note {
	if err == nil {
		klog.InfoS("The control socket is served at last", "path", path)
		return nil
	}
	klog.ErrorS(err, "The agent can't be asked by fairway's other commands", "path", path)
	return []cluster.Note{{Object: cluster.Ref{Kind: "Node", Name: node, UID: node}, Reason: cluster.ReasonSocketFailed,
		Detail: fmt.Sprintf("%v; right would be a controlSocket in a folder that can be written to, or none", err)}}
}

// A refusal is what the control socket answers instead of what was asked for.
type refusal struct {
	Error string `json:"error"`
}

// ErrNoAgent is the error of commands that need a running agent, when none answers.
var ErrNoAgent = errors.New("no agent answers")

// ask sends a request to the agent at a control socket, and decodes its answer, unless that is nil. An error that the agent
// answers with is returned in its words; without an agent the error is ErrNoAgent.
func ask(ctx context.Context, socket, method, path string, into any) error {
	answer, err := send(ctx, socket, method, path)
	if err != nil {
		return err
	}
	defer answer.Close()
	body, err := io.ReadAll(answer)
	if err != nil {
		return fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the answer of the agent at %s: %w", socket, err)
	}
	return nil
}

// send is ask for an answer that comes bit by bit. The caller closes it.
func send(ctx context.Context, socket, method, path string) (io.ReadCloser, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return nil, fmt.Errorf("%w at %s (%w); expected one that runs on this host, with this controlSocket, and root to ask it", ErrNoAgent, socket, op.Err)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return nil, fmt.Errorf("ask the agent at %s: %w", socket, err)
		}
		var r refusal
		if json.Unmarshal(body, &r) != nil || r.Error == "" {
			return nil, fmt.Errorf("the agent at %s does not know %s (%s), as one of another version: %s", socket, path, res.Status, strings.TrimSpace(string(body)))
		}
		return nil, errors.New(r.Error)
	}
	return res.Body, nil
}
