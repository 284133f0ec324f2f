package report

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairway-net/fairway/agent/cluster"
)

const (
	controller = "fairway"
	action     = "Sync"
	// The API server's limits on events.k8s.io/v1: note and reportingInstance.
	maxNote     = 1024
	maxInstance = 128
)

// seenFrom are the reasons of Notes that hold as seen from one node; all other Notes are alike on every node.
var seenFrom = map[string]bool{
	cluster.ReasonNextHopUnreachable: true,
	cluster.ReasonRouteConflict:      true,
	cluster.ReasonQuarantined:        true,
	cluster.ReasonHealthCheckFailed:  true,
}

func (r *Reporter) noteEvent(now time.Time, n cluster.Note) *eventsv1.Event {
	e := r.event(now, n.Object, corev1.EventTypeWarning, n.Reason, n.Detail)
	identity := []string{n.Object.Kind, n.Object.Namespace, n.Object.Name, n.Object.UID, n.Reason, n.Detail, stamp(now.Truncate(window))}
	if seenFrom[n.Reason] {
		identity = append(identity, r.node)
	}
	e.Name = name(identity...)
	return e
}

func (r *Reporter) event(now time.Time, about cluster.Ref, eventType, reason, message string) *eventsv1.Event {
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where Events of Nodes belong
	}
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: name(about.String(), reason, message, r.node, stamp(now))},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: controller,
		ReportingInstance:   cut(r.node, maxInstance),
		Action:              action,
		Reason:              reason,
		Regarding: corev1.ObjectReference{
			APIVersion: apiVersion(about.Kind), Kind: about.Kind, Namespace: about.Namespace, Name: about.Name, UID: types.UID(about.UID),
		},
		Note: cut(message, maxNote),
		Type: eventType,
	}
}

// apiVersion returns the version of the API that has a kind of object.
func apiVersion(kind string) string {
	if kind == "ServiceCIDR" {
		return "networking.k8s.io/v1"
	}
	return "v1"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// name makes the name of an Event from everything that makes it different from others.
func name(identity ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(identity, "\x00")))
	return controller + "." + hex.EncodeToString(sum[:8])
}

// cut shortens s to at most n bytes of whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
