// Package lab builds little clusters out of network namespaces: nodes, pods, a gateway router and outside clients, with
// real links, real routes, real iptables of both kinds, real conntrack and real TCP and UDP. Tests and the demo run
// the agent in it and look at what packets do.
//
// It needs root and a Linux kernel, and refuses to do anything to the root namespace: no rule, route, sysctl or
// address there is read or changed. It does not program pod routes or service rules (that is what is under test),
// has no idea of what the agent should do, and asserts nothing.
//
// # A lab
//
// A [Topology] is a value; [New] builds it in some tens of milliseconds, and [Lab.Close] ends every process and
// removes every namespace that came with it. Two are ready: [Bare] (the bare-metal plan of the demo: IPv4, three
// nodes, a client behind the router) and [Conformance] (dual-stack, two nodes, a client next to them that routes the
// service range through n1). In a test:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
//	l := lab.ForTest(t, lab.Conformance()) // skips without root; fails instead with FAIRWAY_LAB=require
//	n1, p1, c := l.Node("n1"), l.Pod("p1"), l.Client("c")
//
// and outside of tests:
//
//	l, err := lab.New(lab.Bare(), lab.Options{})
//	defer l.Close()
//
// Namespaces are named ones, fw<pid>-<n>-<name>, so `ip netns exec fw4711-1-n1 ip route` shows a node from inside;
// [Namespace.NetNS] tells the name. Leftovers of a run whose process is gone are removed by the next [New]. ForTest
// also closes the lab on SIGINT and SIGTERM. Servers live in this process, so a lab that a person should look at stays up
// for as long as the process waits. Any number of labs can exist at once, in one process or several.
//
// # In a namespace
//
// Every [Node], [Pod], [Client] and the [Router] is a [Namespace]:
//
//	ns.Do(func() error)                   run a function on the namespace's own thread; sockets made there stay there
//	ns.Handle()                           an rtnetlink handle (links, routes, addresses)
//	ns.Run("conntrack", "-L")             a command with its output; RunInput feeds its standard input
//	ns.Start(lab.Command{...})            a process, with captured output; Stop, Kill, Signal, Exited
//	ns.AddRoute(dst, via) / ns.Sysctl(name, value)
//	ns.Save(backend, family, table)       iptables-save without counters and comment lines; Restore loads text
//
// # Traffic
//
// Servers and clients are goroutines of this process with sockets in the namespace, so a thousand connections take
// a fraction of a second. A server answers with its name and the source that it saw:
//
//	p1.Serve(lab.Server{Name: "p1", Proto: lab.TCP, Port: 8080})
//	r := c.Ask(lab.Dial{Proto: lab.TCP, To: netip.MustParseAddrPort("10.96.0.10:80")})
//	r.Outcome == lab.OK; r.Name == "p1"; r.Seen.Addr() == …; r.Elapsed
//
// [Result.Outcome] tells what became of an attempt: OK, Refused, Timeout, NoRoute, Unreachable, Denied (EPERM: a
// packet that the node's own OUTPUT rules refused), Reset or Failed. [Dial.From] sets the local address, port or
// both. [Namespace.Open] returns a [Conn] that stays open and echoes ([Conn.Ask]); [Namespace.Spread] asks n times and
// counts the names; [Namespace.Get] does HTTP.
//
// A program that connects to something that a rule of the own host rejects learns of it after a second here, not at once: the
// packet and the ICMP error cross all links within the connect call, where TCP drops the error and waits for its next SYN.
// The lab's clients also read the socket's error queue and so report Refused when the error arrives, after microseconds.
// Use them, not nc or bash, to measure how soon something is refused. An attempt that is meant to time out should
// have a short Timeout, any other a generous one.
//
// A [Prober] asks at a constant rate, new TCP connections or datagrams from one fixed port, and reports attempts,
// failures by outcome and the longest outage. A [Capture] is a passive tap on one interface:
//
//	p := p2.Probe(lab.ProbeConfig{Dial: …, Rate: 500}); …; report := p.Stop()
//	tap, err := l.Router().Capture("eth0", func(p lab.Packet) bool { return p.Dst.Addr() == vip })
//
// # The agent
//
// A [Cluster] is a folder of ordinary Kubernetes YAML for --cluster-dir; every Write replaces its one file atomically.
//
//	cl, err := l.Cluster()                           // with the topology's Nodes
//	svc := lab.Service("web", []netip.Addr{vip}, lab.TCPPort("http", 80, 8080))
//	cl.SetService(svc); cl.SetEndpoints(svc, lab.Ready(p1), lab.Terminating(p3)); cl.Write()
//	a, err := n1.StartAgent(lab.AgentOptions{Cluster: cl, Backend: lab.NFT})
//	a.WaitReady(10 * time.Second)
//	lab.Eventually(2*time.Second, func() error { return p2.Ask(dial).Expect(lab.Refused) })
//
// The agent's binary is built once per process from this module, or is the file that FAIRWAY_BIN names. Its log is
// part of the test's log when the test fails. /readyz speaks of the latest snapshot that the agent published, not of a
// file written a moment ago: after a Write, wait with [Eventually] for what packets do.
//
// # How the machines are made
//
// One namespace is the switch, with a bridge per network and without bridge netfilter. A node has eth0 in the
// infrastructure network with all its addresses, a default route to the router (the route of a service address must be
// found before a rule can reject it), forwarding on, bridge-nf-call-iptables = 1 as kubeadm wants it, and a bridge
// cni0 that holds the first address of each podCIDR. As the bridge CNI plugin with hairpinMode does it, a pod is a
// veth (veth<pod> on the node) in hairpin mode, with a default route to cni0; with bridge netfilter a connection that
// a rule sends back to its own pod leaves through the port that it came from, which needs that mode.
//
// The router forwards between the networks, knows no pod or service network unless told, and silently swallows
// everything else, as the internet would. Nobody accepts ICMP redirects. ICMP errors are not rate limited (a kernel
// sends six to one neighbour, then one a second, which would turn the seventh refused connection into a timeout). Reverse path filtering is
// off. IPv6 addresses skip duplicate address detection.
//
// In a fresh namespace the nat chains are not traversed until a rule that needs NAT or conntrack is loaded.
// The conntrack table's size belongs to the root namespace. SCTP sockets are not part of the lab.
package lab
