package file

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkLoad reads one List of 1,000 Services with 5 endpoints each, as kubectl prints it. Twice the size should take
// twice the time.
func BenchmarkLoad(b *testing.B) {
	for _, services := range []int{1000, 2000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			var list strings.Builder
			list.WriteString("apiVersion: v1\nitems:\n")
			for i := range services {
				fmt.Fprintf(&list, "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: svc-%d\n  spec:\n    clusterIP: 10.32.%d.%d\n    ports:\n    - name: http\n      port: 80\n", i, i/250, 1+i%250)
				fmt.Fprintf(&list, "- addressType: IPv4\n  apiVersion: discovery.k8s.io/v1\n  kind: EndpointSlice\n  metadata:\n    name: svc-%d-x\n    labels:\n      kubernetes.io/service-name: svc-%d\n  ports:\n  - name: http\n    port: 80\n  endpoints:\n", i, i)
				for j := range 5 {
					fmt.Fprintf(&list, "  - addresses:\n    - 10.%d.%d.%d\n    nodeName: node-%d\n", 100+j, i/250, 1+i%250, j)
				}
			}
			list.WriteString("kind: List\n")
			path := filepath.Join(b.TempDir(), "a.yaml")
			put(b, path, list.String())
			b.SetBytes(int64(list.Len()))
			for b.Loop() {
				s, err := Load(path)
				if err != nil || len(s.Services) != services {
					b.Fatal(len(s.Services), err)
				}
			}
		})
	}
}
