package file
import ("testing";"fmt";"strings";"time";"runtime";"path/filepath")
func TestTmpBig(t *testing.T) {
 var b strings.Builder
 b.WriteString("apiVersion: v1\nitems:\n")
 for i := range 10000 {
  fmt.Fprintf(&b, "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: svc-%d\n    namespace: ns\n    uid: 5d9bd1b5-4b6d-4b7c-8e6c-3b8a3f2a%d\n  spec:\n    clusterIP: 10.32.%d.%d\n    ports:\n    - name: http\n      port: 80\n      protocol: TCP\n", i, i, i/250, 1+i%250)
  fmt.Fprintf(&b, "- addressType: IPv4\n  apiVersion: discovery.k8s.io/v1\n  kind: EndpointSlice\n  metadata:\n    name: svc-%d-x\n    namespace: ns\n    labels:\n      kubernetes.io/service-name: svc-%d\n  ports:\n  - name: http\n    port: 80\n  endpoints:\n", i, i)
  for j := range 5 { fmt.Fprintf(&b, "  - addresses:\n    - 10.%d.%d.%d\n    conditions:\n      ready: true\n    nodeName: node-%d\n", 100+j, i/250, 1+i%250, j) }
 }
 b.WriteString("kind: List\n")
 dir := write(t, "a.yaml", b.String())
 var m0, m1 runtime.MemStats
 n := b.Len(); b.Reset()
 runtime.GC(); runtime.ReadMemStats(&m0)
 start := time.Now()
 s, err := Load(filepath.Join(dir, "a.yaml"))
 if err != nil { t.Fatal(err) }
 d := time.Since(start)
 runtime.GC(); runtime.ReadMemStats(&m1)
 fmt.Println(n>>20, "MiB", d, len(s.Services), "snapshot retains", (int64(m1.HeapAlloc)-int64(m0.HeapAlloc))>>20, "MiB")
 runtime.KeepAlive(s)
}
