package conformance_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// What every tutorial shows: `iptables -t nat -L | grep db-service` shows the whole way of a Service to its pod.
func TestTutorial(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		serve(t, s.p1.Namespace, "mysql", lab.TCP, 3306)
		a := netip.MustParseAddr("10.103.132.104")
		s.put(lab.Service("db-service", []netip.Addr{a}, lab.TCPPort("", 3306, 3306)), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{})
		sees(t, s.p2.Namespace, tcp(a, 3306), saw(s.p2.Addr(cluster.IPv4), "mysql"))
		// Without -n the tool looks names up; in a namespace without a name server that would take minutes.
		command := fmt.Sprintf("mount --bind /dev/null /etc/resolv.conf && %s -t nat -L | grep db-service", lab.Tool(s.backend, cluster.IPv4, ""))
		out, err := s.n1.Run("unshare", "--mount", "sh", "-c", command)
		ok(t, err)
		t.Logf("iptables -t nat -L | grep db-service\n%s", out)
		for _, want := range [][]string{
			{"KUBE-SVC-PKJNZ2BPYAP7WCVG  tcp ", " 10.103.132.104 ", "/* default/db-service cluster IP */ tcp dpt:"},
			{"KUBE-SEP-HR6IMOEJVBB6KJXA ", "/* default/db-service -> 10.244.1.2:3306 */"},
			{"DNAT ", "/* default/db-service */", " to:10.244.1.2:3306"},
		} {
			if n := matching(out, want); n != 1 {
				t.Errorf("%d lines with %q, want one", n, want)
			}
		}
	})
}

// matching counts the lines of a text that begin with the first part and contain the others.
func matching(text string, parts []string) (n int) {
next:
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, parts[0]) {
			continue
		}
		for _, p := range parts[1:] {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		n++
	}
	return n
}
