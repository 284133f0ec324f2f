package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/routes/bgp"
)

// Formats are the forms in which a Plan can be written.
var Formats = [...]string{"text", "iptables", "routes", "bgp", "json"}

// Write writes the Plan in one of Formats:
//
//	text      what the node does, for people, with the Notes
//	iptables  the rules as iptables-save prints them, IPv4 first
//	routes    the routes as ip route prints them
//	bgp       BGP peers and what is announced to them; nothing without BGP
//	json      routes, service ports, announcements and Notes, for programs
func (p *Plan) Write(w io.Writer, format string) error {
	switch format {
	case "text":
		return p.writeText(w)
	case "iptables":
		for _, s := range p.Services {
			if _, err := fmt.Fprintf(w, "# %s\n%s", s.Family, s.Rules); err != nil {
				return err
			}
		}
		return nil
	case "routes":
		_, err := io.WriteString(w, p.Routes.Lines())
		return err
	case "bgp":
		_, err := io.WriteString(w, p.BGP.Lines())
		return err
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(p.printable())
	}
	return fmt.Errorf("unknown format %q, expected one of %s", format, strings.Join(Formats[:], ", "))
}

func (p *Plan) writeText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "ROUTES\t%d\n", len(p.Routes.Routes))
	for _, r := range p.Routes.Routes {
		fmt.Fprintf(t, "  %s\t# %s\n", r, r.Node)
	}
	for _, s := range p.Services {
		if len(s.Table.Ports) == 0 {
			continue
		}
		fmt.Fprintf(t, "\nSERVICES %s\t%d ports, %d rules\n", s.Family, len(s.Table.Ports), s.Rules.Filter.Rules()+s.Rules.NAT.Rules())
		for _, port := range s.Table.Ports {
			fmt.Fprintf(t, "  %s\t%s\t→ %s\n", port.Name, frontends(port), backends(port))
		}
		for _, h := range s.Table.HealthChecks {
			fmt.Fprintf(t, "  %s/%s\thealth check node port %d\t→ %d ready on this node\n", h.Service.Namespace, h.Service.Name, h.Port, h.LocalEndpoints)
		}
	}
	if p.BGP != nil {
		fmt.Fprintf(t, "\nBGP\t%d peers, %d prefixes\n", len(p.BGP.Peers), len(p.BGP.Paths))
		for line := range strings.Lines(p.BGP.Lines()) {
			fmt.Fprintf(t, "  %s", line)
		}
	}
	fmt.Fprintf(t, "\nNOTES\t%d\n", len(p.Notes))
	for _, n := range p.Notes {
		fmt.Fprintf(t, "  %s\n", n)
	}
	return t.Flush()
}

func frontends(p *proxy.Port) string {
	var at []string
	if p.ClusterIP.IsValid() {
		at = append(at, fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.ClusterIP, p.Port), p.Protocol))
	}
	for _, a := range p.ExternalIPs {
		at = append(at, fmt.Sprintf("external %s/%s", netip.AddrPortFrom(a, p.Port), p.Protocol))
	}
	for _, a := range p.LoadBalancerIPs {
		at = append(at, fmt.Sprintf("load balancer %s/%s", netip.AddrPortFrom(a, p.Port), p.Protocol))
	}
	if p.NodePort != 0 {
		at = append(at, fmt.Sprintf("node port %d/%s", p.NodePort, p.Protocol))
	}
	return strings.Join(at, ", ")
}

func backends(p *proxy.Port) string {
	text := toward(p, p.Internal)
	if p.FromOutside() && p.External != p.Internal {
		text += "; from outside: " + toward(p, p.External)
	}
	if p.Affinity > 0 {
		text += "; clients stay for " + p.Affinity.String()
	}
	return text
}

func toward(p *proxy.Port, v proxy.Verdict) string {
	switch v {
	case proxy.ToCluster:
		return list(p.Cluster)
	case proxy.ToLocal:
		return list(p.Local)
	case proxy.Drop:
		return "dropped, no endpoints on this node"
	}
	return "rejected, no endpoints"
}

func list(backends []proxy.Backend) string {
	var to []string
	for _, b := range backends {
		where := ""
		if b.Local {
			where = " (this node)"
		}
		to = append(to, b.Addr.String()+where)
	}
	return strings.Join(to, ", ")
}

// The types of a Plan as JSON.
type (
	printedPlan struct {
		Routes       []printedRoute       `json:"routes"`
		Services     []printedPort        `json:"services"`
		HealthChecks []printedHealthCheck `json:"healthChecks,omitempty"`
		BGP          *printedBGP          `json:"bgp,omitempty"`
		Notes        []printedNote        `json:"notes"`
	}
	printedRoute struct {
		Destination netip.Prefix `json:"destination"`
		Gateway     netip.Addr   `json:"gateway"`
		Link        string       `json:"link,omitempty"`
		Metric      uint32       `json:"metric,omitempty"`
		Node        string       `json:"node"`
	}
	printedPort struct {
		Name      string `json:"name"`
		Family    string `json:"family"`
		Protocol  string `json:"protocol"`
		ClusterIP string `json:"clusterIP,omitempty"`
		Port      uint16 `json:"port"`
		NodePort  uint16 `json:"nodePort,omitempty"`
		// ExternalIPs and LoadBalancerIPs are those that are served; AllowedSources restrict the latter.
		ExternalIPs     []netip.Addr   `json:"externalIPs,omitempty"`
		LoadBalancerIPs []netip.Addr   `json:"loadBalancerIPs,omitempty"`
		AllowedSources  []netip.Prefix `json:"allowedSources,omitempty"`
		// Internal is what happens to traffic to the ClusterIP, External to traffic from outside to all else: reject,
		// drop, cluster or local; the last two name the list of endpoints.
		Internal string           `json:"internal"`
		External string           `json:"external,omitempty"`
		Cluster  []printedBackend `json:"cluster,omitempty"`
		Local    []printedBackend `json:"local,omitempty"`
		// AffinitySeconds is 0 when clients do not stay with their endpoint.
		AffinitySeconds int `json:"affinitySeconds,omitempty"`
	}
	printedBackend struct {
		Address netip.AddrPort `json:"address"`
		Local   bool           `json:"local,omitempty"`
	}
	printedHealthCheck struct {
		Service        string `json:"service"`
		Family         string `json:"family"`
		Port           uint16 `json:"port"`
		LocalEndpoints int    `json:"localEndpoints"`
	}
	printedBGP struct {
		ASN      uint32           `json:"asn"`
		RouterID netip.Addr       `json:"routerID"`
		Peers    []printedBGPPeer `json:"peers"`
		// Import are ranges as routers' prefix lists have them.
		Import []string           `json:"import,omitempty"`
		Paths  []printedBGPPrefix `json:"paths"`
	}
	printedBGPPeer struct {
		Address netip.Addr `json:"address"`
		ASN     uint32     `json:"asn"`
	}
	printedBGPPrefix struct {
		Prefix  netip.Prefix `json:"prefix"`
		Kind    string       `json:"kind"`
		Service string       `json:"service,omitempty"`
		NextHop netip.Addr   `json:"nextHop,omitzero"`
		// Attributes are as in the text.
		Attributes string `json:"attributes,omitempty"`
	}
	printedNote struct {
		Object string `json:"object"`
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}
)

func (p *Plan) printable() printedPlan {
	out := printedPlan{Routes: []printedRoute{}, Services: []printedPort{}, Notes: []printedNote{}}
	for _, r := range p.Routes.Routes {
		out.Routes = append(out.Routes, printedRoute{r.Dst, r.Gateway, r.Link, r.Metric, r.Node})
	}
	for _, s := range p.Services {
		for _, port := range s.Table.Ports {
			out.Services = append(out.Services, printablePort(s.Family, port))
		}
		for _, h := range s.Table.HealthChecks {
			out.HealthChecks = append(out.HealthChecks, printedHealthCheck{h.Service.Namespace + "/" + h.Service.Name, s.Family.String(), h.Port, h.LocalEndpoints})
		}
	}
	if p.BGP != nil {
		out.BGP = printableBGP(p.BGP)
	}
	for _, n := range p.Notes {
		out.Notes = append(out.Notes, printedNote{n.Object.String(), n.Reason, n.Detail})
	}
	return out
}

func printablePort(f cluster.Family, p *proxy.Port) printedPort {
	out := printedPort{Name: p.Name.String(), Family: f.String(), Protocol: p.Protocol.String(), Port: p.Port, NodePort: p.NodePort,
		ExternalIPs: p.ExternalIPs, LoadBalancerIPs: p.LoadBalancerIPs, AllowedSources: p.AllowedSources,
		Internal: p.Internal.String(), Cluster: printableBackends(p.Cluster), Local: printableBackends(p.Local), AffinitySeconds: int(p.Affinity / time.Second)}
	if p.FromOutside() {
		out.External = p.External.String()
	}
	if p.ClusterIP.IsValid() {
		out.ClusterIP = p.ClusterIP.String()
	}
	return out
}

func printableBGP(t *bgp.Table) *printedBGP {
	out := &printedBGP{ASN: t.ASN, RouterID: t.RouterID, Peers: []printedBGPPeer{}, Paths: []printedBGPPrefix{}}
	for _, p := range t.Peers {
		out.Peers = append(out.Peers, printedBGPPeer{p.Address, p.ASN})
	}
	for _, r := range t.Import {
		out.Import = append(out.Import, r.String())
	}
	for _, p := range t.Paths {
		printed := printedBGPPrefix{Prefix: p.Prefix, Kind: p.Kind.String(), NextHop: p.NextHop, Attributes: strings.TrimSpace(p.Attributes.String())}
		if p.Service != nil {
			printed.Service = p.Service.Namespace + "/" + p.Service.Name
		}
		out.Paths = append(out.Paths, printed)
	}
	return out
}

func printableBackends(backends []proxy.Backend) (list []printedBackend) {
	for _, b := range backends {
		list = append(list, printedBackend{b.Addr, b.Local})
	}
	return list
}
