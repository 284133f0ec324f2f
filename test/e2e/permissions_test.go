package e2e

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lostContact is what an agent logs when the API server does not answer any more.
const lostContact = "Kubernetes API lost"

// A permission is a verb on a resource of a group.
type permission struct{ verb, group, resource string }

func (p permission) String() string { return p.verb + " " + p.resource + "." + p.group }

// An auditEvent is what this test reads of a line of the audit log.
type auditEvent struct {
	Verb       string
	RequestURI string
	User       struct{ Username string }
	ObjectRef  *struct{ Resource, Subresource, APIGroup string }
	// Annotations has the authorizer's decision.
	Annotations              map[string]string
	RequestReceivedTimestamp metav1.MicroTime
}

// checkPermissions compares what the ServiceAccount was granted with what the agents asked for in the whole test,
// joining, failing and restarting included.
func (w *world) checkPermissions(t *testing.T) {
	used := map[permission]bool{}
	text, err := os.ReadFile(w.cp.Path("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var e auditEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("audit log: %v: %s", err, line)
		}
		if e.User.Username != "system:serviceaccount:kube-system:fairway" {
			continue
		}
		if w.cp.starting(e.RequestReceivedTimestamp.Time) {
			continue
		}
		if decision := e.Annotations["authorization.k8s.io/decision"]; decision != "allow" {
			t.Errorf("%s %s: %s", e.Verb, e.RequestURI, decision)
		}
		if e.ObjectRef == nil {
			t.Errorf("%s %s is about no object", e.Verb, e.RequestURI)
			continue
		}
		used[permission{e.Verb, e.ObjectRef.APIGroup, strings.TrimSuffix(e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")}] = true
	}
	granted := w.granted(t)
	for p := range granted {
		if !used[p] {
			t.Errorf("%s is granted and was never used", p)
		}
	}
	for p := range used {
		if !granted[p] {
			t.Errorf("%s was used and is not granted by the ClusterRole fairway", p)
		}
	}
	if len(used) == 0 {
		t.Error("the audit log knows nothing of the agents")
	}
}

// granted reads the ClusterRole that the manifests bind to the ServiceAccount.
func (w *world) granted(t *testing.T) map[permission]bool {
	role, err := w.cp.Client.RbacV1().ClusterRoles().Get(context.Background(), "fairway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[permission]bool{}
	for _, rule := range role.Rules {
		if len(rule.NonResourceURLs) > 0 || slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") {
			t.Errorf("rule is wider than a list of verbs on resources: %+v", rule)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					out[permission{verb, group, resource}] = true
				}
			}
		}
	}
	return out
}
