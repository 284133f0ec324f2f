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
	pkg, file string // its import path, and what the go command calls the program
}

// The commands.
var (
	Etcd      = Command{"go.etcd.io/etcd/server/v3", "server"}
	APIServer = Command{"k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"}
	Kubectl   = Command{"k8s.io/kubernetes/cmd/kubectl", "kubectl"}
	KubeProxy = Command{"k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"}
)

// Binaries is the folder of the built commands.
type Binaries string

// Path returns the file of a command.
func (b Binaries) Path(c Command) string { return filepath.Join(string(b), c.file) }

// Build builds etcd, kube-apiserver and the given commands, where they are not up to date. Several processes may do so at once.
func Build(others ...Command) (Binaries, error) {
	module, err := moduleDir()
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
	args := []string{"build", "-o", out + string(filepath.Separator), Etcd.pkg, APIServer.pkg}
	for _, c := range others {
		args = append(args, c.pkg)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s in %s: %w\n%s", strings.Join(args, " "), module, err, text)
	}
	return Binaries(out), nil
}

// moduleDir is the folder of the commands' module.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("the control plane can't be built by a program that does not know its sources' folder (go build -trimpath)")
	}
	return filepath.Join(filepath.Dir(file), "commands"), nil
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
