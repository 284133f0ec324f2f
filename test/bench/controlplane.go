package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// The control plane's commands, and where their module is below the repository's root, which this program is run in.
const (
	controlPlaneModule = "test/e2e/controlplane"
	etcdPackage        = "go.etcd.io/etcd/server/v3"
	apiserverPackage   = "k8s.io/kubernetes/cmd/kube-apiserver"
)

// adminToken is valid inside the namespaces of this run only.
const adminToken = "administrator-of-the-bench"

// startBound is how long the API server may take until it is ready.
const startBound = 2 * time.Minute

// A controlPlane is an etcd and a kube-apiserver on a machine of a lab.
type controlPlane struct {
	dir        string
	kubeconfig string // the administrator's
	client     *kubernetes.Clientset
}

// startControlPlane builds the commands if need be, starts them, and returns when the API is ready. They end with the lab.
func startControlPlane(on *lab.Client, dir string) (*controlPlane, error) {
	bin, err := buildControlPlane()
	if err != nil {
		return nil, err
	}
	cp := &controlPlane{dir: dir}
	if err := cp.writeSecrets(); err != nil {
		return nil, err
	}
	etcd := lab.Command{Path: filepath.Join(bin, "server"), Args: []string{
		"--data-dir=" + cp.path("etcd"), "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=error",
	}}
	addr := on.Addr(cluster.IPv4).String()
	apiserver := lab.Command{Path: filepath.Join(bin, "kube-apiserver"), Args: []string{
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--advertise-address=" + addr, "--secure-port=6443",
		"--cert-dir=" + cp.path("pki"), "--service-cluster-ip-range=" + serviceCIDR.String(),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + cp.path("service-account.key"),
		"--service-account-signing-key-file=" + cp.path("service-account.key"),
		"--token-auth-file=" + cp.path("tokens.csv"), "--authorization-mode=RBAC", "--profiling=false",
	}}
	if _, err := on.Start(etcd); err != nil {
		return nil, err
	}
	p, err := on.Start(apiserver)
	if err != nil {
		return nil, err
	}
	if err := cp.connect(on, "https://"+net.JoinHostPort(addr, "6443")); err != nil {
		return nil, fmt.Errorf("%w\nkube-apiserver (%s): %s", err, p.State(), tail(p.Output()))
	}
	return cp, nil
}

// buildControlPlane returns the folder of the built commands. It is the user's cache, where the end-to-end tests have
// them too; the go command finds them up to date the next time.
func buildControlPlane() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("folder for the control plane's commands: %w", err)
	}
	out := filepath.Join(cache, "fairway-e2e")
	progress("building etcd and kube-apiserver; the first time it takes minutes")
	cmd := exec.Command("go", "build", "-o", out+string(filepath.Separator), etcdPackage, apiserverPackage)
	cmd.Dir = controlPlaneModule
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the control plane in %s: %w\n%s", controlPlaneModule, err, text)
	}
	return out, nil
}

func (cp *controlPlane) path(name string) string { return filepath.Join(cp.dir, name) }

// writeSecrets writes the administrator's token and the key that signs the tokens of ServiceAccounts.
func (cp *controlPlane) writeSecrets() error {
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
		"tokens.csv":          []byte(adminToken + ",administrator,1,system:masters\n"),
	} {
		if err := os.WriteFile(cp.path(name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the administrator's client and kubeconfig, and waits for the API.
func (cp *controlPlane) connect(on *lab.Client, url string) error {
	// The server signs a certificate for itself when it starts.
	ca := cp.path("pki/apiserver.crt")
	if err := lab.Eventually(startBound, func() error { _, err := os.Stat(ca); return err }); err != nil {
		return fmt.Errorf("certificate of the API server: %w", err)
	}
	config := &rest.Config{Host: url, BearerToken: adminToken, Dial: dialer(on.Namespace), QPS: 5000, Burst: 5000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: ca},
		ContentConfig:   rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf"}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	cp.client = client
	cp.kubeconfig = cp.path("admin.kubeconfig")
	file := clientcmdapi.NewConfig()
	file.Clusters["bench"] = &clientcmdapi.Cluster{Server: url, CertificateAuthority: ca}
	file.AuthInfos["admin"] = &clientcmdapi.AuthInfo{Token: adminToken}
	file.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "admin"}
	file.CurrentContext = "bench"
	if err := clientcmd.WriteToFile(*file, cp.kubeconfig); err != nil {
		return err
	}
	return lab.Eventually(startBound, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// dialer dials from inside a network namespace.
func dialer(ns *lab.Namespace) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		err = ns.Do(func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// tail returns the end of a program's output.
func tail(s string) string { return s[max(0, len(s)-4000):] }
