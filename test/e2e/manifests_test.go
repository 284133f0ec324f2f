package e2e

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/fairway-net/fairway/agent"
)

// TestManifestConfiguration holds the ConfigMap's file to what it says of itself: the agent takes it, it has every field,
// and but for detectLocal.mode and stateDir its values are the defaults.
func TestManifestConfiguration(t *testing.T) {
	path := manifests(t, "base", "agent-configuration.yaml")
	read, err := agent.ReadConfiguration(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read.Config()
	if err != nil {
		t.Fatal(err)
	}
	defaults := agent.AgentConfiguration{DetectLocal: agent.DetectLocal{Mode: "NodeCIDR"}, StateDir: "/var/lib/fairway"}
	want, err := defaults.Config()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the file means %+v, want the defaults with mode NodeCIDR: %+v", got, want)
	}
	set, err := os.ReadFile(manifests(t, "base", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, written := range []string{got.StateDir, filepath.Dir(got.ControlSocket)} { // the rest of the container is read-only
		if !strings.Contains(string(set), "mountPath: "+written+"}") || !strings.Contains(string(set), "hostPath: {path: "+written+", ") {
			t.Errorf("the DaemonSet does not mount %s from the host", written)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := yaml.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, missing := range missingFields(reflect.TypeFor[agent.AgentConfiguration](), fields, "") {
		t.Errorf("the file lacks %s", missing)
	}
}

// TestOverlayConfiguration: the kubeadm overlay's file says nothing of its own, so that kube-proxy's counts; and its examples are
// good.
func TestOverlayConfiguration(t *testing.T) {
	path := manifests(t, "overlays", "kubeadm", "agent-configuration.yaml")
	got, err := agent.ReadConfiguration(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := (agent.AgentConfiguration{APIVersion: agent.ConfigAPIVersion, Kind: agent.ConfigKind}); !reflect.DeepEqual(*got, want) {
		t.Errorf("the file says %+v", *got)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	examples := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(examples, []byte(regexp.MustCompile(`(?m)^# (\w+: [\[{])`).ReplaceAllString(string(text), "$1")), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = agent.ReadConfiguration(examples); err != nil || got.ServiceCIDRs == nil || got.ExternalIPs.Ranges == nil {
		t.Errorf("with its examples it says %+v, %v", got, err)
	}
}

// missingFields returns the paths of a struct's fields that decoded YAML does not have.
func missingFields(typ reflect.Type, have map[string]any, path string) []string {
	var out []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		value, ok := have[name]
		if !ok {
			out = append(out, path+name)
			continue
		}
		if typ.Field(i).Type.Kind() == reflect.Struct {
			inner, _ := value.(map[string]any)
			out = append(out, missingFields(typ.Field(i).Type, inner, path+name+".")...)
		}
	}
	return out
}
