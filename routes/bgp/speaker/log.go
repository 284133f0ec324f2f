package speaker

import (
	"fmt"
	"sync"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"k8s.io/klog/v2"
)

// A logger writes what gobgp says to the log, and remembers the last error of each peer, which gobgp tells nowhere else.
// Of the fields of a message only those are passed on that can hold no secret and no whole table.
type logger struct {
	mu   sync.Mutex             // guards last
	last map[string]peerFailure // by the peer's address as text
}

// A peerFailure is what went wrong last.
type peerFailure struct {
	text string
	// notified tells that it is a NOTIFICATION of the session that is up, or that has just ended.
	notified bool
}

var _ log.Logger = (*logger)(nil)

func newLogger() *logger { return &logger{last: map[string]peerFailure{}} }

// noMD5 begins what gobgp says when a listening socket does not take a password.
const noMD5 = "failed to set md5"

// shown are the fields that are passed on.
var shown = [...]string{"Key", "State", "Reason", "Error", "Err", "Communicated-Reason"}

// Panic ends the process: gobgp found a contradiction in itself, and does not go on from there. Rules and routes stay.
func (l *logger) Panic(msg string, fields log.Fields) { l.end(msg, fields) }

// Fatal ends the process, too.
func (l *logger) Fatal(msg string, fields log.Fields) { l.end(msg, fields) }

func (l *logger) end(msg string, fields log.Fields) {
	panic(fmt.Sprintf("speaker: gobgp gave up: %s %v", msg, pairs(fields)))
}

func (l *logger) Error(msg string, fields log.Fields) {
	l.remember(msg, fields)
	klog.InfoS("BGP error", append(pairs(fields), "detail", msg)...)
}

func (l *logger) Warn(msg string, fields log.Fields) {
	l.remember(msg, fields)
	klog.InfoS("BGP warning", append(pairs(fields), "detail", msg)...)
}

func (l *logger) Info(msg string, fields log.Fields) {
	switch msg {
	case "Peer Down":
		l.ended(msg, fields)
	case "Peer Up":
		l.begun(fields)
	}
	if klog.V(2).Enabled() {
		klog.InfoS("BGP", append(pairs(fields), "detail", msg)...)
	}
}

func (l *logger) Debug(msg string, fields log.Fields) {
	if msg == "failed to connect" {
		l.remember(msg, fields)
	}
	if klog.V(5).Enabled() {
		klog.InfoS("BGP", append(pairs(fields), "detail", msg)...)
	}
}

// SetLevel does nothing: klog has the verbosity.
func (l *logger) SetLevel(log.LogLevel) {}

// GetLevel asks for everything: a failed connect is a debug message.
func (l *logger) GetLevel() log.LogLevel { return log.DebugLevel }

func pairs(fields log.Fields) (list []any) {
	for _, name := range shown {
		if value, ok := fields[name]; ok {
			list = append(list, name, fmt.Sprint(value))
		}
	}
	if what := notification(fields); what != "" {
		list = append(list, "notification", what)
	}
	return list
}

// notification words the code of a NOTIFICATION.
func notification(fields log.Fields) string {
	code, hasCode := fields["Code"].(uint8)
	subcode, hasSubcode := fields["Subcode"].(uint8)
	if !hasCode || !hasSubcode {
		return ""
	}
	return bgp.NewNotificationErrorCode(code, subcode).String()
}

// remember keeps what a message says as the last error of its peer.
func (l *logger) remember(msg string, fields log.Fields) {
	key, ok := fields["Key"].(string)
	if !ok {
		return
	}
	words := notification(fields)
	failure := peerFailure{text: msg, notified: words != ""}
	for _, detail := range []any{words, fields["Error"], fields["Err"], fields["Reason"]} {
		if text := fmt.Sprint(detail); detail != nil && text != "" {
			failure.text += ": " + text
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last[key] = failure
}

// ended remembers the end of a session, unless a NOTIFICATION has said why: gobgp may see first that the connection is closed.
func (l *logger) ended(msg string, fields log.Fields) {
	l.mu.Lock()
	key, _ := fields["Key"].(string)
	known := l.last[key].notified
	l.mu.Unlock()
	if !known {
		l.remember(msg, fields)
	}
}

// begun takes note that a session is up: what was said before is not about it.
func (l *logger) begun(fields log.Fields) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, _ := fields["Key"].(string)
	if failure, ok := l.last[key]; ok {
		l.last[key] = peerFailure{text: failure.text}
	}
}

// lastError is the last error of a peer; empty when there was none since it was added.
func (l *logger) lastError(peer string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[peer].text
}

func (l *logger) forget(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last, peer)
}
