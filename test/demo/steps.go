package main

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// A step is one thing that a person would try.
type step struct {
	title string
	run   func(*demo) error
}

var steps = []step{
	{"Pod to pod, across nodes", (*demo).podToPod},
	{"A ClusterIP, from a pod", (*demo).clusterIP},
	{"A node port, from outside", (*demo).nodePort},
	{"The gateway learns by BGP", (*demo).gateway},
	{"A pod and a ClusterIP, from outside", (*demo).fromOutside},
	{"An endpoint goes away", (*demo).endpointGone},
	{"A route deleted by hand", (*demo).routeDeleted},
	{"The rules of one service", (*demo).rules},
	{"An agent killed, and started again", (*demo).agentKilled},
	{"A node drains", (*demo).nodeDrains},
	{"A node dies", (*demo).nodeDies},
	{"A node that claims every address", (*demo).refusal},
}

func (d *demo) podToPod() error {
	out, err := d.shell(d.lab.Node("node1").Namespace, "ip route show proto 102")
	if err != nil {
		return err
	}
	want := []string{"10.200.2.0/24 via 10.240.0.12 dev eth0", "10.200.3.0/24 via 10.240.0.13 dev eth0"}
	if got := lines(out); !slices.Equal(got, want) {
		return fmt.Errorf("routes are %q, expected %q", got, want)
	}
	out, err = d.shell(d.lab.Pod("pod1a").Namespace, fmt.Sprintf("head -1 </dev/tcp/10.200.2.2/%d", target))
	if err != nil {
		return err
	}
	if err := answered(out, "pod2a", d.lab.Pod("pod1a").Addr(cluster.IPv4)); err != nil {
		return err
	}
	pairs, err := d.allPairs()
	if err != nil {
		return err
	}
	d.out.fact("all %d pairs of pods on different nodes: connected, and every client seen at its own address", pairs)
	return nil
}

// allPairs connects every pod to every pod of another node, and counts.
func (d *demo) allPairs() (pairs int, err error) {
	for _, a := range d.lab.Topology.Nodes {
		for _, b := range d.lab.Topology.Nodes {
			if a.Name == b.Name {
				continue
			}
			for _, from := range a.Pods {
				for _, to := range b.Pods {
					r := d.lab.Pod(from.Name).Ask(lab.Dial{Proto: lab.TCP, To: netip.AddrPortFrom(to.Addrs[0], target)})
					if r.Outcome != lab.OK || r.Name != to.Name || r.Seen.Addr() != from.Addrs[0] {
						return pairs, fmt.Errorf("%s to %s: %v", from.Name, to.Name, r)
					}
					pairs++
				}
			}
		}
	}
	return pairs, nil
}

func (d *demo) clusterIP() error {
	const n = 300
	names, err := d.spread(d.lab.Pod("pod1b").Namespace, n)
	if err != nil {
		return err
	}
	// A fair choice leaves these bounds once in a million runs.
	for _, pod := range []string{"pod1a", "pod2a", "pod3a"} {
		if got := names[pod]; got < n/3-40 || got > n/3+40 {
			return fmt.Errorf("%s got %d of %d connections, expected about a third: %v", pod, got, n, names)
		}
	}
	d.out.fact("%d connections, none failed, every endpoint got its share", n)
	return nil
}

// spread makes n connections to the service and counts them by who answered. All of them must be answered.
func (d *demo) spread(from *lab.Namespace, n int) (map[string]int, error) {
	command := fmt.Sprintf("for i in {1..%d}; do head -1 </dev/tcp/%s/%d; done | cut -d' ' -f1 | sort | uniq -c", n, vip.Addr(), vip.Port())
	out, err := d.shell(from, command)
	if err != nil {
		return nil, err
	}
	names, total := map[string]int{}, 0
	for _, line := range lines(out) {
		var count int
		var name string
		if _, err := fmt.Sscan(line, &count, &name); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		names[name] = count
		total += count
	}
	if total != n {
		return nil, fmt.Errorf("%d of %d connections were answered: %v", total, n, names)
	}
	return names, nil
}

func (d *demo) nodePort() error {
	out, err := d.shell(d.outside(), "ip route get 10.240.0.11 | head -1")
	if err != nil {
		return err
	}
	if !strings.Contains(out, " via 198.51.100.1 ") {
		return fmt.Errorf("the way to the nodes is %q, expected the router 198.51.100.1", out)
	}
	out, err = d.shell(d.outside(), fmt.Sprintf(
		"for node in 10.240.0.{11,12,13}; do echo $node: $(head -1 </dev/tcp/$node/%d); done", nodePort))
	if err != nil {
		return err
	}
	answer := regexp.MustCompile(`^10\.240\.0\.1[123]: pod[123]a 10\.2[04]0\.\d+\.\d+:\d+$`)
	got := lines(out)
	if len(got) != 3 {
		return fmt.Errorf("%d nodes answered, expected 3: %q", len(got), got)
	}
	for _, line := range got {
		if !answer.MatchString(line) {
			return fmt.Errorf("%q is no answer of an endpoint that sees a node as its client", line)
		}
	}
	d.out.fact("every node takes the connection, for endpoints on other nodes too, and puts its own address in the client's place")
	return nil
}

func (d *demo) rules() error {
	save := lab.Tool(d.backend, cluster.IPv4, "-save")
	out, err := d.shell(d.lab.Node("node1").Namespace, save+" -t nat | grep default/web:http")
	if err != nil {
		return err
	}
	service := fmt.Sprintf(`(?m)^-A KUBE-SERVICES -d %s/32 .*--dport %d -j (KUBE-SVC-\S+)$`, regexp.QuoteMeta(vip.Addr().String()), vip.Port())
	chain := regexp.MustCompile(service).FindStringSubmatch(out)
	if chain == nil {
		return fmt.Errorf("no rule of KUBE-SERVICES leads to the service's chain")
	}
	for _, want := range []string{
		`-A KUBE-NODEPORTS .*--dport 30080 .*-j KUBE-EXT-`,
		`-A ` + chain[1] + ` .*-j DNAT --to-destination 10\.200\.2\.2:8080`,
		`-A ` + chain[1] + ` .*-j DNAT --to-destination 10\.200\.3\.2:8080`,
		`-A KUBE-SEP-\S+ .*-j DNAT --to-destination 10\.200\.1\.2:8080`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(out) {
			return fmt.Errorf("no rule like %q", want)
		}
	}
	d.out.fact("the pods of other nodes stand in the service's chain itself; only node1's own pod, which might call itself, needs a KUBE-SEP chain")
	return nil
}

// lines splits a command's output, without the blanks around each line.
func lines(out string) []string {
	var list []string
	for line := range strings.Lines(out) {
		list = append(list, strings.TrimSpace(line))
	}
	return list
}

// answered holds that an answer came from a pod that saw its client at an address.
func answered(out, name string, client netip.Addr) error {
	who, source, _ := strings.Cut(strings.TrimSpace(out), " ")
	seen, err := netip.ParseAddrPort(source)
	if err != nil || who != name || seen.Addr() != client {
		return fmt.Errorf("answer %q, expected %s, which sees %s", strings.TrimSpace(out), name, client)
	}
	return nil
}
