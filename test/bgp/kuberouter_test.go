package bgp

import (
	"strings"
	"testing"

	"github.com/fairway-net/fairway/test/lab"
)

// TestKubeRouterAnnotations: a node has the session, with its password, and the communities of kube-router's annotations; another
// community is announced without a new session; a node whose password is another has none, and no log has one.
func TestKubeRouterAnnotations(t *testing.T) {
	r := newRig(t)
	g := startBIRD(t, r.lab.Router(), passwords)
	annotate := func(node, password, communities string) {
		for _, spec := range r.lab.Topology.Nodes {
			if spec.Name != node {
				continue
			}
			n := lab.NodeObject(spec)
			n.Annotations = map[string]string{
				"kube-router.io/peers":                "- {remoteip: 192.0.2.1, remoteasn: 64500, password: " + password + "}\n",
				"kube-router.io/node.bgp.communities": communities,
			}
			r.cluster.SetNode(n)
		}
		r.ok(r.cluster.Write())
	}
	annotate("n1", "c2VjcmV0", "64512:5") // secret
	annotate("n2", "b3RoZXI=", "64512:5") // other
	r.start("bgp: {asn: 64512, kubeRouterAnnotations: true}", r.n1, r.n2)
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "(64512,5)") })
	annotate("n1", "c2VjcmV0", "64512:6")
	r.eventually(sessionBound, func() error { return g.learned("10.244.1.0/24", "(64512,6)", "!(64512,5)", "!10.244.2.0/24") })
	r.ok(r.up(r.n1, 1))
	r.ok(r.up(r.n2, 0))
	if n := strings.Count(r.agents[r.n1].Output(), "A BGP session is up"); n != 1 {
		t.Errorf("n1 had %d sessions, expected the first to stay", n)
	}
	for _, n := range []*lab.Node{r.n1, r.n2} {
		for _, secret := range []string{"secret", "c2VjcmV0", "other\"", "b3RoZXI="} {
			if out := r.agents[n].Output(); strings.Contains(out, secret) {
				t.Errorf("%s wrote the password:\n%s", n.Name, out)
			}
		}
	}
}
