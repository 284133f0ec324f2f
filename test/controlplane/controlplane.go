package controlplane

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
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// AdminToken is the administrator's bearer token. It is valid inside of one lab's namespaces only.
const AdminToken = "administrator-of-the-test"

// readyBound is how long the API server may take until it is ready.
const readyBound = 2 * time.Minute

// queries is how many requests a second the administrator's client may make: as many as it likes.
const queries = 5000

// Options are settings of a control plane.
type Options struct {
	// Dir is a folder for its data, certificates and keys, which outlives it. It exists.
	Dir string
	// ServiceCIDRs are the networks of ClusterIPs.
	ServiceCIDRs []netip.Prefix
	// APIServerFlags are added to those of kube-apiserver.
	APIServerFlags []string
	// Start starts a process in the namespace, by the name of what it is; when nil, the namespace's own Start does.
	Start func(name string, c lab.Command) (*lab.Process, error)
}

// A ControlPlane is an etcd and a kube-apiserver in a network namespace.
type ControlPlane struct {
	Binaries  Binaries
	Namespace *lab.Namespace
	// Addr is where the API is in the infrastructure network, at port 6443.
	Addr netip.Addr
	// APIServer is the process; another one after StartAPIServer.
	APIServer *lab.Process
	// Client is the administrator's, dialing from inside of the namespace.
	Client *kubernetes.Clientset
	// Kubeconfig is the administrator's, for programs in the lab's namespaces.
	Kubeconfig string

	options Options
}

// Start starts etcd and kube-apiserver on a machine; it returns when the API is ready. They end with the lab.
func Start(b Binaries, on *lab.Client, o Options) (*ControlPlane, error) {
	if o.Start == nil {
		o.Start = func(_ string, c lab.Command) (*lab.Process, error) { return on.Start(c) }
	}
	cp := &ControlPlane{Binaries: b, Namespace: on.Namespace, Addr: on.Addr(cluster.IPv4), options: o}
	if err := cp.writeSecrets(); err != nil {
		return nil, err
	}
	_, err := o.Start("etcd", lab.Command{Path: b.Path(Etcd), Args: []string{
		"--data-dir=" + cp.Path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		// Nothing here needs to survive a power cut.
		"--unsafe-no-fsync", "--log-level=warn",
	}})
	if err != nil {
		return nil, err
	}
	return cp, cp.StartAPIServer()
}

// StartAPIServer starts kube-apiserver, the first time or again after it has ended, and waits until it is ready.
func (cp *ControlPlane) StartAPIServer() (err error) {
	cp.APIServer, err = cp.options.Start("kube-apiserver", lab.Command{Path: cp.Binaries.Path(APIServer), Args: append([]string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address=" + cp.Addr.String(), "--secure-port=6443",
		// The server signs a certificate for itself on the first start, and finds it there on the next.
		"--cert-dir=" + cp.Path("pki"),
		"--service-cluster-ip-range=" + joinPrefixes(cp.options.ServiceCIDRs),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.Path("service-account.key"),
		"--service-account-signing-key-file=" + cp.Path("service-account.key"),
		"--token-auth-file=" + cp.Path("tokens.csv"),
		"--authorization-mode=RBAC", "--profiling=false",
	}, cp.options.APIServerFlags...)})
	if err != nil {
		return err
	}
	if err := cp.ready(); err != nil {
		out := cp.APIServer.Output()
		return fmt.Errorf("%w\nkube-apiserver (%s): %s", err, cp.APIServer.State(), out[max(0, len(out)-4000):])
	}
	return nil
}

// ready makes the administrator's client, the first time, and waits for the API.
func (cp *ControlPlane) ready() error {
	err := lab.Eventually(readyBound, func() error { _, err := os.Stat(cp.CAFile()); return err })
	if err != nil {
		return fmt.Errorf("certificate of the API server: %w", err)
	}
	if cp.Client == nil {
		if err := cp.connect(); err != nil {
			return err
		}
	}
	return lab.Eventually(readyBound, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := cp.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// connect makes the administrator's client and kubeconfig.
func (cp *ControlPlane) connect() (err error) {
	config := &rest.Config{
		Host: "https://" + cp.Endpoint(), BearerToken: AdminToken, Dial: Dialer(cp.Namespace), QPS: queries, Burst: queries,
		// Tests write deprecated fields knowingly.
		WarningHandler:  rest.NoWarnings{},
		TLSClientConfig: rest.TLSClientConfig{CAFile: cp.CAFile()},
		ContentConfig:   rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf, AcceptContentTypes: runtime.ContentTypeProtobuf},
	}
	if cp.Client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("client of the administrator: %w", err)
	}
	cp.Kubeconfig = cp.Path("admin.kubeconfig")
	file := clientcmdapi.NewConfig()
	file.Clusters["test"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthority: cp.CAFile()}
	file.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: AdminToken}
	file.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	file.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*file, cp.Kubeconfig); err != nil {
		return fmt.Errorf("kubeconfig of the administrator: %w", err)
	}
	return nil
}

// Endpoint is the address and port of the API.
func (cp *ControlPlane) Endpoint() string { return netip.AddrPortFrom(cp.Addr, 6443).String() }

// CAFile is the self-signed certificate of the API server together with its issuer.
func (cp *ControlPlane) CAFile() string { return filepath.Join(cp.Path("pki"), "apiserver.crt") }

// Path returns the path of a file in the control plane's folder.
func (cp *ControlPlane) Path(name string) string { return filepath.Join(cp.options.Dir, name) }

// Kubectl runs kubectl as the administrator in the control plane's namespace and returns what it printed. It has to be built.
func (cp *ControlPlane) Kubectl(args ...string) (string, error) {
	common := []string{"--kubeconfig=" + cp.Kubeconfig, "--cache-dir=" + cp.Path("kubectl")}
	return cp.Namespace.Run(cp.Binaries.Path(Kubectl), append(common, args...)...)
}

// writeSecrets writes the administrator's token and the key that signs the tokens of ServiceAccounts.
func (cp *ControlPlane) writeSecrets() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"service-account.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv":          []byte(AdminToken + ",administrator,1,system:masters\n"),
	} {
		if err := os.WriteFile(cp.Path(name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Dialer dials from inside a network namespace.
func Dialer(ns *lab.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
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

func joinPrefixes(ps []netip.Prefix) string {
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}
