package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// The administrator's bearer token. It is valid inside one test's namespaces only.
const adminToken = "administrator-of-the-test"

// auditPolicy records who asked for what, without contents. RequestReceived is left out: the decision of the
// authorizer is known only afterwards.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// A controlPlane is an etcd and a kube-apiserver in a network namespace.
type controlPlane struct {
	bin    binaries
	logs   *logs
	ns     *lab.Namespace
	addr   netip.Addr     // in the namespace
	ranges []netip.Prefix // of ClusterIPs
	dir    string

	apiserver  *lab.Process
	config     *rest.Config // of the administrator, dialing from inside the namespace
	client     *kubernetes.Clientset
	kubeconfig string // the administrator's, for kubectl in the namespace
	starts     []span // of the API server
}

// A span is the time from the start of something until it was ready.
type span struct{ from, to time.Time }

// starting tells whether the API server was not ready yet at a time. It answers then already, but refuses everybody
// until it has read the roles.
func (cp *controlPlane) starting(at time.Time) bool {
	return slices.ContainsFunc(cp.starts, func(s span) bool { return at.After(s.from) && at.Before(s.to) })
}

// startControlPlane starts etcd and kube-apiserver on a machine; it returns when the API is ready.
func startControlPlane(tb testing.TB, logs *logs, on *lab.Client, serviceCIDRs []netip.Prefix) *controlPlane {
	tb.Helper()
	cp := &controlPlane{
		bin: buildControlPlane(tb), logs: logs, ns: on.Namespace, addr: on.Addr(cluster.IPv4), ranges: serviceCIDRs, dir: tb.TempDir(),
	}
	cp.write(tb, "tokens.csv", fmt.Sprintf("%s,administrator,1,system:masters\n", adminToken))
	cp.write(tb, "audit-policy.yaml", auditPolicy)
	cp.write(tb, "service-account.key", newECKey(tb))
	logs.start(tb, "etcd", cp.ns, nil, cp.bin.etcd,
		"--data-dir="+cp.path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		// Nothing here needs to survive a power cut.
		"--unsafe-no-fsync", "--log-level=warn")
	cp.startAPIServer(tb)
	return cp
}

// startAPIServer starts kube-apiserver, the first time or again, and waits until it is ready.
func (cp *controlPlane) startAPIServer(tb testing.TB) {
	tb.Helper()
	args := []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address=" + cp.addr.String(), "--secure-port=6443",
		// The server signs a certificate for itself on the first start, and finds it there on the next.
		"--cert-dir=" + cp.path("pki"),
		"--service-cluster-ip-range=" + joinPrefixes(cp.ranges),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.path("service-account.key"),
		"--service-account-signing-key-file=" + cp.path("service-account.key"),
		"--token-auth-file=" + cp.path("tokens.csv"),
		"--authorization-mode=RBAC",
		"--audit-policy-file=" + cp.path("audit-policy.yaml"), "--audit-log-path=" + cp.path("audit.log"),
		"--audit-log-mode=blocking",
		// The DaemonSet's init container is privileged, as kubeadm's clusters allow.
		"--allow-privileged=true",
		"--profiling=false",
	}
	start := time.Now()
	cp.apiserver = cp.logs.start(tb, "kube-apiserver", cp.ns, nil, cp.bin.apiserver, args...)
	eventually(tb, "certificate of the API server", func() error {
		_, err := os.Stat(cp.caFile())
		return err
	})
	cp.connect(tb)
	eventually(tb, "API server ready", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := cp.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	cp.starts = append(cp.starts, span{start, time.Now()})
	tb.Logf("API server ready after %s", time.Since(start).Round(10*time.Millisecond))
}

// connect makes the administrator's client and kubeconfig.
func (cp *controlPlane) connect(tb testing.TB) {
	tb.Helper()
	if cp.client != nil {
		return
	}
	cp.config = &rest.Config{
		Host: "https://" + cp.endpoint(), BearerToken: adminToken, Dial: dialer(cp.ns),
		TLSClientConfig: rest.TLSClientConfig{CAFile: cp.caFile()}, QPS: 1000, Burst: 1000,
	}
	client, err := kubernetes.NewForConfig(cp.config)
	if err != nil {
		tb.Fatalf("client of the administrator: %v", err)
	}
	cp.client = client
	cp.kubeconfig = cp.path("admin.kubeconfig")
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: cp.config.Host, CertificateAuthority: cp.caFile()}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: adminToken}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	config.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*config, cp.kubeconfig); err != nil {
		tb.Fatalf("kubeconfig of the administrator: %v", err)
	}
}

func (cp *controlPlane) endpoint() string { return netip.AddrPortFrom(cp.addr, 6443).String() }

// caFile is the self-signed certificate of the API server together with its issuer.
func (cp *controlPlane) caFile() string { return filepath.Join(cp.path("pki"), "apiserver.crt") }

func (cp *controlPlane) path(name string) string { return filepath.Join(cp.dir, name) }

func (cp *controlPlane) write(tb testing.TB, name, text string) {
	tb.Helper()
	if err := os.WriteFile(cp.path(name), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// kubectl runs kubectl as the administrator in the control plane's namespace and returns what it printed.
func (cp *controlPlane) kubectl(args ...string) (string, error) {
	common := []string{"--kubeconfig=" + cp.kubeconfig, "--cache-dir=" + cp.path("kubectl")}
	return cp.ns.Run(cp.bin.kubectl, append(common, args...)...)
}

// dialer dials from inside a network namespace.
func dialer(ns *lab.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		// The namespace's thread waits meanwhile, so not for long.
		d := net.Dialer{Timeout: 5 * time.Second}
		err = ns.Do(func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// eventually waits until a condition holds and returns how long that took. The bound is generous: it only tells a
// hang from a slow machine.
func eventually(tb testing.TB, what string, condition func() error) time.Duration {
	tb.Helper()
	start := time.Now()
	if err := lab.Eventually(time.Minute, condition); err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
	return time.Since(start)
}

// newECKey returns a private key in PEM, which signs the tokens of ServiceAccounts.
func newECKey(tb testing.TB) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func joinPrefixes(ps []netip.Prefix) string {
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}
