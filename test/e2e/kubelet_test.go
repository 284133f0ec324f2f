package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fairway-net/fairway/test/lab"
)

// A kubelet runs the DaemonSet's containers on one node, as far as the agent can tell: the image's paths, the
// mounts, the environment and the limits that the pod template asks for.
type kubelet struct {
	tb     testing.TB
	logs   *logs
	client *kubernetes.Clientset
	node   *lab.Node
	ds     *appsv1.DaemonSet
	binary string // the agent's, on this machine
	// serviceHost and servicePort are where the kubelet of a cluster tells every pod to find the API: the ClusterIP
	// of the Service default/kubernetes.
	serviceHost, servicePort string
	work                     string // the folder that holds all containers' folders
	dir                      string // of the container
}

// entrypoint is where the Dockerfile puts the agent.
const entrypoint = "/usr/local/bin/fairway"

// lockPath is the lock of iptables-legacy, by default and in the manifests.
const lockPath = "/run/xtables.lock"

const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// containerScript makes the root file system of a container in the mount namespace that it is in, and runs a program there. Of the host it has /usr and little of /etc, as if the image held them. Its
// arguments are the container's folder and the program with its arguments; in the folder are the file fairway, the
// file mounts with lines of "source target mode", and the file capabilities with the arguments for setpriv, empty for a
// privileged container.
const containerScript = `
dir=$1; root=$dir/root; shift
mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir usr etc proc sys dev run tmp var
ln -s ../run var/run
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
for file in alternatives ld.so.cache protocols services; do
  if [ -e "/etc/$file" ]; then cp -a "/etc/$file" etc/; fi
done
mount --bind /usr usr
mount -t tmpfs -o mode=755 tmpfs usr/local/bin
cp "$dir/fairway" usr/local/bin/fairway
mount -o remount,bind,ro usr
mount -o remount,bind,ro usr/local/bin
mount --bind /proc proc
mount --bind /proc/sys proc/sys
if [ -s "$dir/capabilities" ]; then mount -o remount,bind,ro proc/sys; fi
mount -t sysfs -o ro sysfs sys
mount --bind /dev dev
while read -r source target mode; do
  if [ -d "$source" ]; then mkdir -p ".$target"; else mkdir -p ".${target%/*}"; touch ".$target"; fi
  mount --bind "$source" ".$target"
  mount -o "remount,bind,$mode" ".$target"
done < "$dir/mounts"
mount -o remount,ro "$root"
cd /
if [ -s "$dir/capabilities" ]; then exec chroot "$root" /usr/bin/setpriv $(cat "$dir/capabilities") -- "$@"; fi
exec chroot "$root" "$@"
`

// start runs the agent's container, with additions to its environment.
func (k *kubelet) start(env ...string) *lab.Process {
	k.tb.Helper()
	pod := k.ds.Spec.Template.Spec
	c := pod.Containers[0]
	if !pod.HostNetwork || len(c.Command) != 0 || len(pod.Containers) != 1 {
		k.tb.Fatalf("the DaemonSet's pod is not one that this test can run: %+v", pod)
	}
	return k.container("agent of "+k.node.Name, c, strings.Join(setprivArgs(k.tb, c.SecurityContext), " "), env...)
}

// container runs a container with the capabilities that the arguments for setpriv leave, all without any.
func (k *kubelet) container(name string, c corev1.Container, capabilities string, env ...string) *lab.Process {
	k.tb.Helper()
	var err error
	if k.dir, err = os.MkdirTemp(k.work, "container"); err != nil {
		k.tb.Fatal(err)
	}
	k.file("capabilities", capabilities)
	k.file("mounts", strings.Join(k.mounts(k.ds.Spec.Template.Spec, c), "\n")+"\n")
	if err := os.Link(k.binary, filepath.Join(k.dir, "fairway")); err != nil {
		k.tb.Fatal(err)
	}
	command := c.Command
	if len(command) == 0 {
		command = []string{entrypoint}
	}
	args := append([]string{"--mount", "--propagation", "private", "sh", "-ec", containerScript, "container", k.dir}, command...)
	return k.logs.mustStart(k.tb, name, k.node.Namespace, append(k.environment(c), env...), "unshare", append(args, c.Args...)...)
}

// initContainers runs the init containers, which are privileged, one after another.
func (k *kubelet) initContainers() {
	k.tb.Helper()
	for _, c := range k.ds.Spec.Template.Spec.InitContainers {
		if sc := c.SecurityContext; sc == nil || sc.Privileged == nil || !*sc.Privileged {
			k.tb.Fatalf("init container %s is not privileged, which this test does not know", c.Name)
		}
		p := k.container(c.Name+" of "+k.node.Name, c, "")
		<-p.Exited()
		if state := p.State(); state != "exit status 0" {
			k.tb.Errorf("init container %s: %s\n%s", c.Name, state, p.Output())
		}
	}
}

// setprivArgs turns a container's securityContext into arguments of setpriv.
func setprivArgs(tb testing.TB, sc *corev1.SecurityContext) []string {
	tb.Helper()
	if sc == nil || sc.Privileged == nil || *sc.Privileged || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation ||
		sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem || sc.Capabilities == nil ||
		!slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		tb.Fatalf("the agent's container must be unprivileged, with a read-only root and all capabilities dropped: %+v", sc)
	}
	bounds := "-all"
	for _, c := range sc.Capabilities.Add {
		bounds += ",+" + strings.ToLower(string(c))
	}
	return []string{"--bounding-set", bounds, "--inh-caps", "-all", "--no-new-privs"}
}

// mounts prepares the container's volumes and returns the lines of the file mounts.
func (k *kubelet) mounts(pod corev1.PodSpec, c corev1.Container) []string {
	k.tb.Helper()
	sources := map[string]string{}
	for _, v := range pod.Volumes {
		switch {
		case v.ConfigMap != nil:
			sources[v.Name] = k.configMap(v.ConfigMap.Name)
		case v.HostPath != nil && v.HostPath.Type != nil && *v.HostPath.Type == corev1.HostPathFileOrCreate:
			sources[v.Name] = k.hostFile(v.HostPath.Path)
		case v.HostPath != nil && v.HostPath.Type != nil && (*v.HostPath.Type == corev1.HostPathDirectoryOrCreate || *v.HostPath.Type == corev1.HostPathDirectory):
			sources[v.Name] = filepath.Join(k.dir, "host", v.HostPath.Path) // a node's own, as all nodes share this machine
			if err := os.MkdirAll(sources[v.Name], 0o755); err != nil {
				k.tb.Fatal(err)
			}
		default:
			k.tb.Fatalf("volume %s is of a kind that this test does not know", v.Name)
		}
	}
	lines := []string{k.token(pod.ServiceAccountName) + " " + tokenPath + " ro"}
	for _, m := range c.VolumeMounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		lines = append(lines, sources[m.Name]+" "+m.MountPath+" "+mode)
	}
	return lines
}

// hostFile returns the file that a node has for a path of its own, as all nodes share this machine.
func (k *kubelet) hostFile(path string) string {
	k.tb.Helper()
	if path != lockPath {
		k.tb.Fatalf("the host's file %s is not one that this test knows", path)
	}
	f, err := os.OpenFile(k.node.LockFile(), os.O_CREATE, 0o600)
	if err != nil {
		k.tb.Fatal(err)
	}
	f.Close()
	return k.node.LockFile()
}

// configMap writes a ConfigMap's files into a folder.
func (k *kubelet) configMap(name string) string {
	k.tb.Helper()
	cm, err := k.client.CoreV1().ConfigMaps("kube-system").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		k.tb.Fatalf("volume: %v", err)
	}
	for file, text := range cm.Data {
		k.file(filepath.Join("configmap-"+name, file), text)
	}
	return filepath.Join(k.dir, "configmap-"+name)
}

// token asks the API for a token of the pod's ServiceAccount and writes the files that every pod finds.
func (k *kubelet) token(account string) string {
	k.tb.Helper()
	ctx := context.Background()
	req := &authenticationv1.TokenRequest{}
	tok, err := k.client.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		k.tb.Fatalf("token of the ServiceAccount %s: %v", account, err)
	}
	k.file("serviceaccount/token", tok.Status.Token)
	k.file("serviceaccount/namespace", "kube-system")
	root, err := k.client.CoreV1().ConfigMaps("kube-system").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		k.tb.Fatalf("certificate authority: %v", err)
	}
	k.file("serviceaccount/ca.crt", root.Data["ca.crt"])
	return filepath.Join(k.dir, "serviceaccount")
}

// environment is the container's: what the template names takes precedence over what every pod gets.
func (k *kubelet) environment(c corev1.Container) []string {
	k.tb.Helper()
	env := []string{
		"XTABLES_LOCKFILE=" + lockPath,
		"KUBERNETES_SERVICE_HOST=" + k.serviceHost, "KUBERNETES_SERVICE_PORT=" + k.servicePort,
	}
	for _, from := range c.EnvFrom {
		cm, err := k.client.CoreV1().ConfigMaps("kube-system").Get(context.Background(), from.ConfigMapRef.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) && *from.ConfigMapRef.Optional {
			continue
		}
		if err != nil {
			k.tb.Fatalf("environment: %v", err)
		}
		for name, value := range cm.Data {
			env = append(env, name+"="+value)
		}
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			if e.ValueFrom.FieldRef == nil || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				k.tb.Fatalf("environment variable %s is of a kind that this test does not know", e.Name)
			}
			value = k.node.Name
		}
		env = append(env, fmt.Sprintf("%s=%s", e.Name, value))
	}
	return env
}

// file writes a file into the container's folder, unless it is there, and returns its path.
func (k *kubelet) file(name, text string) string {
	k.tb.Helper()
	path := filepath.Join(k.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		k.tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		k.tb.Fatal(err)
	}
	return path
}
