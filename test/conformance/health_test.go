package conformance_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/test/lab"
)

// healthPort is the health check node port of the Services here.
const healthPort = 32000

// checked makes a Service one of type LoadBalancer with externalTrafficPolicy Local and a health check node port.
func checked(svc *corev1.Service, port int32) *corev1.Service {
	externalLocal(svc).Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.HealthCheckNodePort = port
	return svc
}

// A verdict is what a load balancer learns at a health check node port.
type verdict struct {
	code   int
	weight string
	body   string
}

// healthy is the verdict about the Service default/name on a node with so many endpoints, whose service proxy keeps up.
func healthy(name string, endpoints int) verdict {
	code := http.StatusOK
	if endpoints == 0 {
		code = http.StatusServiceUnavailable
	}
	return verdict{code, fmt.Sprint(endpoints),
		fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}", name, endpoints)}
}

// inspect asks at a health check node port as a load balancer does.
func inspect(ns *lab.Namespace, at netip.AddrPort) (verdict, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", at.String(), 2*time.Second)
		return err
	})
	if err != nil {
		return verdict{}, err
	}
	defer c.Close()
	transport := &http.Transport{Dial: func(string, string) (net.Conn, error) { return c, nil }, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: soon}).Get(fmt.Sprintf("http://%s/any/path", at))
	if err != nil {
		return verdict{}, err
	}
	defer resp.Body.Close()
	for name, want := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"} {
		if have := resp.Header.Get(name); have != want {
			return verdict{}, fmt.Errorf("header %s is %q, want %q", name, have, want)
		}
	}
	body, err := io.ReadAll(resp.Body)
	return verdict{resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), string(body)}, err
}

// comesToSay waits until a health check node port has the verdict.
func comesToSay(t *testing.T, ns *lab.Namespace, at netip.AddrPort, want verdict) {
	t.Helper()
	ok(t, lab.Eventually(soon, func() error {
		have, err := inspect(ns, at)
		if err == nil && have != want {
			err = fmt.Errorf("it says %+v", have)
		}
		if err != nil {
			err = fmt.Errorf("%s asks the health check node port %s: %w; want %+v", ns.NetNS(), at, err, want)
		}
		return err
	}))
}

// A load balancer that asks a node at a Service's health check node port learns how many ready endpoints the node has, at every
// address of the node and in both families. All of that follows the Service without a restart.
func TestCase63HealthCheckNodePort(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := checked(both(10), healthPort)
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p2), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			for _, a := range []netip.Addr{s.n1.Addr(f), s.second(f)} {
				comesToSay(t, s.c.Namespace, netip.AddrPortFrom(a, healthPort), healthy("web", 2))
			}
			comesToSay(t, s.p1.Namespace, netip.AddrPortFrom(s.gateway(f), healthPort), healthy("web", 2))
			comesToSay(t, s.n1.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 2))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n2.Addr(f), healthPort), healthy("web", 1))
		})
		s.cluster.SetEndpoints(svc, lab.NotReady(s.p1), lab.Ready(s.p3))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 0))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n2.Addr(f), healthPort), healthy("web", 1))
		})
		s.put(checked(both(10), healthPort+1), lab.Ready(s.p1))
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort+1), healthy("web", 1))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n2.Addr(f), healthPort+1), healthy("web", 0))
			comesToEnd(t, s.c.Namespace, tcp(s.n1.Addr(f), healthPort), lab.Refused)
		})
		s.cluster.RemoveService(svc)
		s.write(t)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToEnd(t, s.c.Namespace, tcp(s.n1.Addr(f), healthPort+1), lab.Refused)
		})
	})
}

// A node whose own firewall lets nothing in lets load balancers in to the health check node ports, with and without endpoints.
func TestCase63HealthCheckBehindFirewall(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		const closed = 9999
		serve(t, s.n1.Namespace, "host", lab.TCP, closed)
		s.put(checked(both(10), healthPort), lab.Ready(s.p1))
		s.put(checked(web(11), healthPort+1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			icmp := map[cluster.Family]string{cluster.IPv4: "icmp", cluster.IPv6: "ipv6-icmp"}[f]
			for _, args := range [][]string{
				{"-A", "INPUT", "-i", "lo", "-j", "ACCEPT"},
				{"-A", "INPUT", "-p", icmp, "-j", "ACCEPT"}, // neighbour discovery
				{"-A", "INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
				{"-P", "INPUT", "DROP"},
			} {
				_, err := s.n1.Run(lab.Tool(s.backend, f, ""), args...)
				ok(t, err)
			}
			unanswered(t, s.c.Namespace, tcp(s.n1.Addr(f), closed))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort+1), healthy("web-11", 0))
		})
	})
}

// With nodePortAddresses, health check node ports are at these addresses alone, and follow what addresses the node gets and loses;
// kube-proxy stays with those of its start.
func TestCase63HealthCheckBetterAtNodePortAddresses(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(checked(both(10), healthPort), lab.Ready(s.p1))
		s.start(t, lab.AgentOptions{Flags: []string{"--nodeport-addresses=192.168.0.2/32,192.168.0.64/26,fd00:192:168::2/128,fd00:192:168::40/122"}})
		late := map[cluster.Family]netip.Addr{cluster.IPv4: netip.MustParseAddr("192.168.0.66"), cluster.IPv6: netip.MustParseAddr("fd00:192:168::66")}
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
			ends(t, s.c.Namespace, tcp(s.second(f), healthPort), lab.Refused)
			ends(t, s.p2.Namespace, tcp(s.gateway(f), healthPort), lab.Refused)

			length := map[cluster.Family]string{cluster.IPv4: "/24", cluster.IPv6: "/64"}[f]
			_, err := s.n1.Run("ip", "addr", "add", late[f].String()+length, "dev", "eth0", "valid_lft", "forever", "preferred_lft", "0") // not a source
			ok(t, err)
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(late[f], healthPort), healthy("web", 1))
			_, err = s.n1.Run("ip", "addr", "del", late[f].String()+length, "dev", "eth0")
			ok(t, err)
			ok(t, lab.Eventually(soon, func() error {
				listening, err := s.n1.Run("ss", "-Hltn", fmt.Sprintf("sport = :%d", healthPort))
				if err == nil && strings.Contains(listening, late[f].String()) {
					err = fmt.Errorf("it still listens at an address that is gone: %s", listening)
				}
				return err
			}))
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
		})
	})
}

// While the only endpoint on the node is terminating, what is sent there still reaches it, and load balancers are told to send
// nothing more.
func TestCase48HealthCheckOfTerminating(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		svc := checked(both(10), healthPort)
		s.put(svc, lab.Ready(s.p1), lab.Ready(s.p3))
		s.start(t, lab.AgentOptions{})
		for _, step := range []struct {
			p1        lab.Endpoint
			endpoints int
		}{{lab.Ready(s.p1), 1}, {lab.Terminating(s.p1), 0}, {lab.Ready(s.p1), 1}} {
			s.cluster.SetEndpoints(svc, step.p1, lab.Ready(s.p3))
			s.write(t)
			onFamilies(t, func(t *testing.T, f cluster.Family) {
				comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", step.endpoints))
				sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
			})
		}
	})
}

// A health check node port that another program has is said and tried again, and nothing else: the agent is ready and healthy,
// all other ports are served.
func TestHealthCheckPortTaken(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		holder, err := s.n1.Serve(lab.Server{Name: "host", Proto: lab.TCP, Port: healthPort})
		ok(t, err)
		s.put(checked(both(10), healthPort), lab.Ready(s.p1))
		s.put(checked(web(11), healthPort+1), lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{}, s.n1)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort+1), healthy("web-11", 1))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
		})
		s.says(t, "Service default/web", cluster.ReasonHealthCheckFailed, "0.0.0.0:32000", "address already in use")
		s.says(t, "Service default/web", cluster.ReasonHealthCheckFailed, "[::]:32000", "address already in use")
		ok(t, holder.Close())
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
		})
		ok(t, lab.Eventually(soon, func() error {
			notes, err := s.metrics("fairway_notes")
			if n := notes[fmt.Sprintf("{reason=%q}", cluster.ReasonHealthCheckFailed)]; err == nil && n > 0 {
				err = fmt.Errorf("the notes still hold: %v", notes)
			}
			return err
		}))
	})
}

// proxyHealth is what the node's own health server says.
type proxyHealth struct {
	Healthy      bool
	NodeEligible *bool
}

// healthServer asks n1's own health server; another status than the wanted one is an error.
func (s *stage) healthServer(path string, status int) (proxyHealth, error) {
	have, body, err := s.n1.Get("http://127.0.0.1:10256"+path, soon)
	if err == nil && have != status {
		err = fmt.Errorf("%s answers %d, want %d: %s", path, have, status, body)
	}
	if err != nil {
		return proxyHealth{}, err
	}
	var h proxyHealth
	return h, json.Unmarshal([]byte(body), &h)
}

// While the autoscaler is about to take the node away, load balancers that ask the node's health server are told so; probes of the
// agent's life are not, nor are those of a Service.
func TestCase64NodeAboutToGo(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		s.put(checked(both(10), healthPort), lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{}, s.n1)
		for _, leaving := range []bool{false, true, false} {
			n, status := lab.NodeObject(s.n1.NodeSpec), http.StatusOK
			if leaving {
				n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Value: "1700000000", Effect: corev1.TaintEffectNoSchedule}}
				status = http.StatusServiceUnavailable
			}
			s.cluster.SetNode(n)
			s.write(t)
			ok(t, lab.Eventually(soon, func() error {
				h, err := s.healthServer("/healthz", status)
				if err == nil && (h.NodeEligible == nil || *h.NodeEligible == leaving || !h.Healthy) {
					err = fmt.Errorf("/healthz says %+v", h)
				}
				return err
			}))
			h, err := s.healthServer("/livez", http.StatusOK)
			ok(t, err)
			if !h.Healthy || h.NodeEligible != nil {
				t.Errorf("/livez says %+v", h)
			}
			onFamilies(t, func(t *testing.T, f cluster.Family) {
				comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
			})
		}
	})
}

// failing stands in for an iptables-restore that fails for as long as the file exists.
const failing = `#!/bin/sh
if [ -e '%[1]s' ]; then
	echo "iptables-restore: out of order" >&2
	exit 3
fi
exec '%[2]s' "$@"
`

// While the rules can't be written the agent is not ready, and tells no load balancer of endpoints to which there are no rules yet. After
// two periods of syncing it is not healthy, and load balancers are told so at every Service; but it is alive, as a restart would not
// mend it. All of it passes.
func TestCase64FailingSyncs(t *testing.T) {
	onBackends(t, func(t *testing.T, s *stage) {
		path, armed := s.standIn(t, failing)
		svc := checked(both(10), healthPort)
		s.put(svc, lab.Ready(s.p1))
		s.startOn(t, lab.AgentOptions{Flags: []string{"--iptables-sync-period=2s"}, Env: []string{path}}, s.n1)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 1))
		})
		ok(t, os.WriteFile(armed, nil, 0o644))
		s.cluster.SetEndpoints(svc, lab.Ready(s.p1), lab.Ready(s.p2))
		s.write(t)
		ok(t, lab.Eventually(soon, func() error {
			_, err := s.healthServer("/readyz", http.StatusServiceUnavailable)
			return err
		}))
		failed := healthy("web", 1)
		failed.code, failed.body = http.StatusServiceUnavailable, strings.Replace(failed.body, "true", "false", 1)
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), failed)
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1"))
		})
		h, err := s.healthServer("/healthz", http.StatusServiceUnavailable)
		ok(t, err)
		if h.Healthy || h.NodeEligible == nil || !*h.NodeEligible {
			t.Errorf("/healthz says %+v", h)
		}
		_, err = s.healthServer("/livez", http.StatusOK)
		ok(t, err)
		if !strings.Contains(s.agent.Output(), "out of order") {
			t.Errorf("the agent does not say why it fails:\n%s", s.agent.Output())
		}
		ok(t, os.Remove(armed))
		ok(t, s.agent.WaitReady(2*soon))
		onFamilies(t, func(t *testing.T, f cluster.Family) {
			comesToSay(t, s.c.Namespace, netip.AddrPortFrom(s.n1.Addr(f), healthPort), healthy("web", 2))
			sees(t, s.c.Namespace, tcp(s.n1.Addr(f), port), saw(s.c.Addr(f), "p1", "p2"))
		})
	})
}
