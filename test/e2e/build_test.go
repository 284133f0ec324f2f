package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The commands of the control plane, by their import paths.
const (
	etcdPackage      = "go.etcd.io/etcd/server/v3"
	apiserverPackage = "k8s.io/kubernetes/cmd/kube-apiserver"
	kubectlPackage   = "k8s.io/kubernetes/cmd/kubectl"
)

// binaries are the paths of the built commands.
type binaries struct {
	etcd, apiserver, kubectl string
}

// sourceDir is the folder of this file, test/e2e; repoDir the repository's.
func sourceDir(tb testing.TB) string {
	tb.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		tb.Fatal("the compiler did not record the path of this file")
	}
	return filepath.Dir(file)
}

func repoDir(tb testing.TB) string { return filepath.Dir(filepath.Dir(sourceDir(tb))) }

// buildControlPlane builds the commands of the control plane. The first time it takes minutes; they stay in the
// user's cache folder, where the go command finds them up to date the next time.
func buildControlPlane(tb testing.TB) binaries {
	tb.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatalf("folder for the control plane's commands: %v", err)
	}
	out := filepath.Join(cache, "fairway-e2e")
	goBuild(tb, filepath.Join(sourceDir(tb), "controlplane"), out, nil, etcdPackage, apiserverPackage, kubectlPackage)
	return binaries{
		etcd:      filepath.Join(out, "server"),
		apiserver: filepath.Join(out, "kube-apiserver"),
		kubectl:   filepath.Join(out, "kubectl"),
	}
}

// goBuild runs go build in a module's folder, with additions to the environment.
func goBuild(tb testing.TB, dir, out string, env []string, args ...string) {
	tb.Helper()
	if err := os.MkdirAll(out, 0o755); err != nil {
		tb.Fatal(err)
	}
	start := time.Now()
	cmd := exec.Command("go", append([]string{"build", "-o", out + string(filepath.Separator)}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go build %s in %s: %v\n%s", strings.Join(args, " "), dir, err, text)
	}
	tb.Logf("built %s in %s", strings.Join(args, " "), time.Since(start).Round(100*time.Millisecond))
}
