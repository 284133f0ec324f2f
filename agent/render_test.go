package agent

import (
	"strings"
	"testing"
)

// TestRenderHealthChecks: people and programs see which health check node ports there are and what they say.
func TestRenderHealthChecks(t *testing.T) {
	s := aSnapshot("10.0.0.1")
	for format, want := range map[string]string{
		"text": "health check node port 32000  → 0 ready on this node\n",
		"json": "\"healthChecks\": [\n    {\n      \"service\": \"default/web\",\n      \"family\": \"IPv4\",\n      \"port\": 32000,\n      \"localEndpoints\": 0\n    }\n  ]",
	} {
		for _, port := range []uint16{0, 32000} {
			s.Services[0].HealthCheckNodePort = port
			var out strings.Builder
			if err := MakePlan(s, Config{NodeName: "a"}, Offline, nil).Write(&out, format); err != nil {
				t.Fatal(err)
			}
			if shown := strings.Contains(out.String(), want); shown != (port != 0) {
				t.Errorf("with port %d, %s has it: %v\n%s", port, format, shown, &out)
			}
		}
	}
}
