package controlplane

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A Command is a program that can be built.
type Command struct {
	// module is the folder of the module that asks for it; pkg its import path, file what the go command calls the program.
	module, pkg, file string
}

// The modules.
const (
	controlPlane = "commands"
	kubeRouter   = "kuberouter"
)

// The commands.
var (
	Etcd       = Command{controlPlane, "go.etcd.io/etcd/server/v3", "server"}
	APIServer  = Command{controlPlane, "k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"}
	Kubectl    = Command{controlPlane, "k8s.io/kubernetes/cmd/kubectl", "kubectl"}
	KubeProxy  = Command{controlPlane, "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"}
	KubeRouter = Command{kubeRouter, "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", "kube-router"}
)

// Binaries is the folder of the built commands.
type Binaries string

// Path returns the file of a command.
func (b Binaries) Path(c Command) string { return filepath.Join(string(b), c.file) }

// Build builds etcd, kube-apiserver and the given commands, where they are not up to date. Several processes may do so at once.
func Build(others ...Command) (Binaries, error) {
	dir, err := sourceDir()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("folder for the control plane's commands: %w", err)
	}
	out := filepath.Join(cache, "fairway-controlplane")
	unlock, err := lock(out)
	if err != nil {
		return "", err
	}
	defer unlock()
	modules := map[string][]string{controlPlane: {Etcd.pkg, APIServer.pkg}}
	for _, c := range others {
		modules[c.module] = append(modules[c.module], c.pkg)
	}
	for module, packages := range modules {
		args := append([]string{"build", "-o", out + string(filepath.Separator)}, packages...)
		cmd := exec.Command("go", args...)
		cmd.Dir = filepath.Join(dir, module)
		cmd.Env = append(os.Environ(), "GOWORK=off")
		if text, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), cmd.Dir, err, text)
		}
	}
	return Binaries(out), nil
}

// sourceDir is the folder that the commands' modules are in.
func sourceDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("the control plane can't be built by a program that does not know its sources' folder (go build -trimpath)")
	}
	return filepath.Dir(file), nil
}

// lock makes a folder and keeps others from building in it: a program must not be replaced while somebody starts it.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
