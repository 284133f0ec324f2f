package healthd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
)

// bound is how long a test waits for what must come.
const bound = 20 * time.Second

var (
	everywhere = proxy.NodePorts{Everywhere: true}
	web        = &cluster.Service{Namespace: "default", Name: "web"}
	shop       = &cluster.Service{Namespace: "default", Name: "shop"}
)

// loopbacks are addresses that every machine has.
var loopbacks = map[cluster.Family]netip.Addr{cluster.IPv4: netip.MustParseAddr("127.0.0.1"), cluster.IPv6: netip.IPv6Loopback()}

// freePort returns a port that nobody listens at in either family.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		four, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		at := four.Addr().(*net.TCPAddr).AddrPort()
		six, err := net.Listen("tcp6", netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port()).String())
		four.Close()
		if err == nil {
			six.Close()
			return at.Port()
		}
	}
	t.Fatal("no port is free in both families")
	return 0
}

func start(t *testing.T, f cluster.Family) *Servers {
	t.Helper()
	s := New(f, func() bool { return true })
	t.Cleanup(s.Close)
	return s
}

// sync fails the test unless everything can be served.
func (s *Servers) sync(t *testing.T, at proxy.NodePorts, checks ...proxy.HealthCheck) {
	t.Helper()
	if r := s.Sync(checks, at); r.Retry != 0 || len(r.Notes) > 0 {
		t.Fatalf("Sync %v: %+v", checks, r)
	}
}

// A reply is what a load balancer gets to see.
type reply struct {
	code   int
	weight string
	body   string
	header http.Header
	reused bool
}

// ask asks for the health of a port, on the client's connection when it has one.
func ask(t *testing.T, c *http.Client, method string, at netip.AddrPort, path string) (r reply, err error) {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { r.reused = i.Reused }})
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%s%s", at, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r.code, r.body, r.header = resp.StatusCode, string(body), resp.Header
	r.weight = resp.Header.Get("X-Load-Balancing-Endpoint-Weight")
	return r, err
}

// client returns a client with connections of its own.
func client(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: bound}
}

// answers fails the test unless a port answers, to a new connection.
func answers(t *testing.T, at netip.AddrPort, code int, weight string) {
	t.Helper()
	if r, err := ask(t, client(t), "GET", at, "/"); err != nil || r.code != code || r.weight != weight {
		t.Errorf("%s answers %d with weight %q, %v; expected %d with %s", at, r.code, r.weight, err, code, weight)
	}
}

// refuses fails the test unless nobody listens at a port.
func refuses(t *testing.T, at netip.AddrPort) {
	t.Helper()
	if r, err := ask(t, client(t), "GET", at, "/"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s answers %d, %v; expected that it is closed", at, r.code, err)
	}
}

// TestAnswer: what kube-proxy v1.36 answers, to the letter, in both families.
func TestAnswer(t *testing.T) {
	for _, f := range cluster.Families {
		t.Run(f.String(), func(t *testing.T) {
			var healthy atomic.Bool
			s := New(f, healthy.Load)
			t.Cleanup(s.Close)
			at := netip.AddrPortFrom(loopbacks[f], freePort(t))
			for _, c := range []struct {
				endpoints int
				healthy   bool
				code      int
			}{{2, true, 200}, {1, true, 200}, {0, true, 503}, {2, false, 503}, {0, false, 503}, {3, true, 200}} {
				healthy.Store(c.healthy)
				s.sync(t, everywhere, proxy.HealthCheck{Service: web, Port: at.Port(), LocalEndpoints: c.endpoints})
				for _, method := range []string{"GET", "POST", "DELETE"} {
					r, err := ask(t, client(t), method, at, "/any/path?q")
					if err != nil {
						t.Fatal(err)
					}
					want := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}", c.endpoints, c.healthy)
					if r.code != c.code || r.body != want || r.weight != fmt.Sprint(c.endpoints) {
						t.Errorf("%+v: %s is answered %d, weight %s,\n%s\nexpected\n%s", c, method, r.code, r.weight, r.body, want)
					}
					if r.header.Get("Content-Type") != "application/json" || r.header.Get("X-Content-Type-Options") != "nosniff" {
						t.Errorf("%+v: %s is answered with %v", c, method, r.header)
					}
				}
			}
			if r, err := ask(t, client(t), "HEAD", at, "/"); err != nil || r.code != 200 || r.weight != "3" || r.body != "" {
				t.Errorf("HEAD is answered %+v, %v", r, err)
			}
		})
	}
}

// TestFamilies: the same port in both families, which know nothing of each other.
func TestFamilies(t *testing.T) {
	port := freePort(t)
	check := proxy.HealthCheck{Service: web, Port: port}
	four, six := start(t, cluster.IPv4), start(t, cluster.IPv6)
	check.LocalEndpoints = 4
	four.sync(t, everywhere, check)
	refuses(t, netip.AddrPortFrom(loopbacks[cluster.IPv6], port))
	check.LocalEndpoints = 6
	six.sync(t, everywhere, check)
	answers(t, netip.AddrPortFrom(loopbacks[cluster.IPv4], port), 200, "4")
	answers(t, netip.AddrPortFrom(loopbacks[cluster.IPv6], port), 200, "6")
	four.sync(t, everywhere)
	refuses(t, netip.AddrPortFrom(loopbacks[cluster.IPv4], port))
	answers(t, netip.AddrPortFrom(loopbacks[cluster.IPv6], port), 200, "6")
}

// TestUninterrupted: a connection sees what changes, be it the number of endpoints, other ports, or the Service.
func TestUninterrupted(t *testing.T) {
	s := start(t, cluster.IPv4)
	at := netip.AddrPortFrom(loopbacks[cluster.IPv4], freePort(t))
	other := freePort(t)
	c := client(t)
	for i, step := range []struct {
		checks []proxy.HealthCheck
		name   string
		weight string
	}{
		{[]proxy.HealthCheck{{Service: web, Port: at.Port(), LocalEndpoints: 1}}, `"web"`, "1"},
		{[]proxy.HealthCheck{{Service: web, Port: at.Port(), LocalEndpoints: 2}}, `"web"`, "2"},
		{[]proxy.HealthCheck{{Service: web, Port: at.Port()}, {Service: shop, Port: other, LocalEndpoints: 9}}, `"web"`, "0"},
		{[]proxy.HealthCheck{{Service: shop, Port: at.Port(), LocalEndpoints: 3}, {Service: web, Port: other, LocalEndpoints: 9}}, `"shop"`, "3"},
	} {
		s.sync(t, everywhere, step.checks...)
		r, err := ask(t, c, "GET", at, "/")
		if err != nil || r.weight != step.weight || !strings.Contains(r.body, step.name) {
			t.Errorf("step %d: %+v, %v", i, r, err)
		}
		if i > 0 && !r.reused {
			t.Errorf("step %d needed a new connection", i)
		}
	}
}

// TestAddresses: the listeners follow the addresses, from all to one and back, and those that stay are not interrupted.
func TestAddresses(t *testing.T) {
	s := start(t, cluster.IPv4)
	port := freePort(t)
	check := proxy.HealthCheck{Service: web, Port: port, LocalEndpoints: 1}
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, last}) }
	at := func(last byte) netip.AddrPort { return netip.AddrPortFrom(addr(last), port) }
	s.sync(t, everywhere, check)
	answers(t, at(2), 200, "1")
	answers(t, at(3), 200, "1")

	s.sync(t, proxy.NodePorts{Addrs: []netip.Addr{addr(2)}}, check)
	refuses(t, at(3))
	c := client(t)
	if _, err := ask(t, c, "GET", at(2), "/"); err != nil {
		t.Fatal(err)
	}
	s.sync(t, proxy.NodePorts{Addrs: []netip.Addr{addr(2), addr(3)}}, check)
	answers(t, at(3), 200, "1")
	s.sync(t, proxy.NodePorts{Addrs: []netip.Addr{addr(2), addr(4)}}, check)
	refuses(t, at(3))
	answers(t, at(4), 200, "1")
	if r, err := ask(t, c, "GET", at(2), "/"); err != nil || !r.reused {
		t.Errorf("the address that stayed was interrupted: %+v, %v", r, err)
	}

	s.sync(t, proxy.NodePorts{}, check)
	for last := range byte(5) {
		refuses(t, at(last+1))
	}
	s.sync(t, everywhere, check)
	answers(t, at(5), 200, "1")
	s.Close()
	refuses(t, at(5))
}

// TestTaken: a port that another program has is a Note that names the Service and the port, and tried again; the others are
// served. An address that the kernel does not have is tried again, and no Note.
func TestTaken(t *testing.T) {
	s := start(t, cluster.IPv4)
	holder, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := holder.Addr().(*net.TCPAddr).AddrPort()
	free := netip.AddrPortFrom(taken.Addr(), freePort(t))
	checks := []proxy.HealthCheck{{Service: web, Port: taken.Port(), LocalEndpoints: 1}, {Service: shop, Port: free.Port(), LocalEndpoints: 2}}
	r := s.Sync(checks, everywhere)
	if len(r.Notes) != 1 || r.Retry != retryListen {
		t.Fatalf("%+v", r)
	}
	want := fmt.Sprintf("Service default/web: FailedToStartServiceHealthcheck: health check node port %d can't be served at 0.0.0.0:%[1]d: "+
		"address already in use; it is tried again every 2s, and right would be that no other program on the node uses that port", taken.Port())
	if got := r.Notes[0].String(); got != want {
		t.Errorf("the note is\n%s\nexpected\n%s", got, want)
	}
	answers(t, free, 200, "2")
	holder.Close()
	s.sync(t, everywhere, checks...)
	answers(t, taken, 200, "1")
	answers(t, free, 200, "2")

	r = s.Sync(checks, proxy.NodePorts{Addrs: []netip.Addr{taken.Addr(), netip.MustParseAddr("192.0.2.1")}})
	if len(r.Notes) > 0 || r.Retry != retryListen {
		t.Errorf("an address of nobody's: %+v", r)
	}
	answers(t, free, 200, "2")
}

// TestRemovedMeanwhile: a request that had begun when its port was taken away is answered, with no endpoints, and the port is
// free at once all the same.
func TestRemovedMeanwhile(t *testing.T) {
	s := start(t, cluster.IPv4)
	at := netip.AddrPortFrom(loopbacks[cluster.IPv4], freePort(t))
	s.sync(t, everywhere, proxy.HealthCheck{Service: web, Port: at.Port(), LocalEndpoints: 1})
	var began []net.Conn
	for _, text := range []string{"", "GET / HTTP/1.1\r\n"} {
		c, err := net.Dial("tcp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		began = append(began, c)
	}
	answers(t, at, 200, "1") // so both have been accepted
	s.sync(t, everywhere)
	again, err := net.Listen("tcp4", at.String())
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	again.Close()
	for i, rest := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "Host: x\r\n\r\n"} {
		if _, err := io.WriteString(began[i], rest); err != nil {
			t.Fatal(err)
		}
		if err := began[i].SetDeadline(time.Now().Add(bound)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(began[i]), nil)
		if err != nil {
			t.Errorf("connection %d: %v", i, err)
			continue
		}
		resp.Body.Close()
		if weight := resp.Header.Get("X-Load-Balancing-Endpoint-Weight"); resp.StatusCode != 503 || weight != "0" || !resp.Close {
			t.Errorf("connection %d is answered %d with weight %s, and closed: %v", i, resp.StatusCode, weight, resp.Close)
		}
	}
}

// TestSlowClients: who says nothing, or not all of it, or nothing more, is hung up on.
func TestSlowClients(t *testing.T) {
	s := start(t, cluster.IPv4)
	s.limits.request, s.limits.idle = 100*time.Millisecond, 100*time.Millisecond
	at := netip.AddrPortFrom(loopbacks[cluster.IPv4], freePort(t))
	s.sync(t, everywhere, proxy.HealthCheck{Service: web, Port: at.Port(), LocalEndpoints: 1})
	for _, text := range []string{"", "GET / HTTP/1.1\r\nHost:", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(bound)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %q the connection stays open: %v", text, err)
		}
	}
	answers(t, at, 200, "1")
}

// TestBroken: a listener that has ended by itself is replaced.
func TestBroken(t *testing.T) {
	s := start(t, cluster.IPv4)
	at := netip.AddrPortFrom(loopbacks[cluster.IPv4], freePort(t))
	check := proxy.HealthCheck{Service: web, Port: at.Port(), LocalEndpoints: 1}
	s.sync(t, everywhere, check)
	for _, srv := range s.open {
		srv.listener.Close()
		<-srv.done
	}
	refuses(t, at)
	s.sync(t, everywhere, check)
	answers(t, at, 200, "1")
}
