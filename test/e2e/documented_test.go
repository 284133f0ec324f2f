package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairway-net/fairway/test/docs"
)

// documented types the kubectl commands of the README and of docs/ in their order, as an administrator who stands in the
// repository, but for those of the guides, which test/migrate follows. Nothing runs Pods here, so the test says what a DaemonSet's controller would say.
func (w *world) documented(t *testing.T) {
	folder := t.TempDir()
	if err := os.Symlink(manifests(t), filepath.Join(folder, "manifests")); err != nil {
		t.Fatal(err)
	}
	w.createKubeProxy(t)
	commands, err := docs.Commands(repoDir(t))
	if err != nil {
		t.Fatal(err)
	}
	typed := 0
	for _, c := range commands {
		if !strings.HasPrefix(c.Text, "kubectl ") || strings.HasPrefix(c.File, "migrate-") {
			continue
		}
		typed++
		if strings.Contains(c.Text, "rollout status") {
			w.rollOut(t)
		}
		env := "cd " + folder + "; PATH=" + string(w.cp.Binaries) + ":$PATH; KUBECACHEDIR=" + w.cp.Path("kubectl") + " KUBECONFIG=" + w.cp.Kubeconfig + " "
		if out, err := w.cp.Namespace.Run("bash", "-c", env+strings.ReplaceAll(c.Text, "worker-1", "node-a")); err != nil {
			t.Errorf("%s: %s: %v\n%s", c.File, c.Text, err, out)
		}
	}
	if typed < 5 {
		t.Errorf("only %d commands of kubectl were found in the documents", typed)
	}
	ds, err := w.cp.Client.AppsV1().DaemonSets("kube-system").Get(context.Background(), "kube-proxy", metav1.GetOptions{})
	if spec := ds.Spec.Template.Spec; err != nil || len(spec.NodeSelector) != 1 || spec.Affinity != nil {
		t.Errorf("after the way back kube-proxy's node selector is %v, its affinity %v (%v), want what they were", spec.NodeSelector, spec.Affinity, err)
	}
	if _, err := w.cp.Client.AppsV1().DaemonSets("kube-system").Get(context.Background(), "fairway", metav1.GetOptions{}); err == nil {
		t.Error("after the way back the DaemonSet fairway is still there")
	}
}

// createKubeProxy makes a DaemonSet as kubeadm does, for the administrator to stop and start again.
func (w *world) createKubeProxy(t *testing.T) {
	t.Helper()
	labels := map[string]string{"k8s-app": "kube-proxy"}
	_, err := w.cp.Client.AppsV1().DaemonSets("kube-system").Create(context.Background(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
					Containers:   []corev1.Container{{Name: "kube-proxy", Image: "kube-proxy"}},
				},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// rollOut says that all of fairway's Pods are up to date and available.
func (w *world) rollOut(t *testing.T) {
	t.Helper()
	sets := w.cp.Client.AppsV1().DaemonSets("kube-system")
	ds, err := sets.Get(context.Background(), "fairway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ds.Status = appsv1.DaemonSetStatus{ObservedGeneration: ds.Generation, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2,
		UpdatedNumberScheduled: 2, NumberReady: 2, NumberAvailable: 2}
	if _, err := sets.UpdateStatus(context.Background(), ds, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}
