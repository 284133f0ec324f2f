package agent

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/proxy"
	"github.com/fairway-net/fairway/routes"
)

// announceEach is the number of additions and removals up to which each gets a line at the default verbosity. More come
// at once only when an agent starts, or a whole cluster does.
const announceEach = 50

// announce writes a line for every service port and route that came or went: what operators look for in the log of a
// proxy.
func announce(old, plan *Plan) {
	var lines []func()
	for i, s := range plan.Services {
		var before *proxy.Table
		if old != nil {
			before = old.Services[i].Table
		}
		lines = append(lines, announcePorts(before, s.Table)...)
	}
	var before *routes.Table
	if old != nil {
		before = old.Routes
	}
	lines = append(lines, announceRoutes(before, plan.Routes)...)
	if len(lines) > announceEach && !klog.V(1).Enabled() {
		klog.InfoS("Many service ports and routes changed at once, -v=1 shows each", "changes", len(lines))
		return
	}
	for _, line := range lines {
		line()
	}
}

// A portLabel is what a service port is called in the log.
type portLabel struct{ name, at string }

func labelOf(p *proxy.Port) portLabel {
	return portLabel{p.Name.String(), fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.ClusterIP, p.Port), strings.ToUpper(p.Protocol.String()))}
}

func announcePorts(old, table *proxy.Table) (lines []func()) {
	if old == nil {
		old = &proxy.Table{Family: table.Family}
	}
	gone, fresh := table.Since(old)
	was := map[portLabel]bool{}
	for _, p := range gone {
		was[labelOf(p)] = true
	}
	for _, p := range fresh {
		label := labelOf(p)
		if was[label] {
			delete(was, label)
			continue
		}
		lines = append(lines, func() { klog.InfoS("Adding new service port", "portName", label.name, "servicePort", label.at) })
	}
	for label := range was {
		lines = append(lines, func() { klog.InfoS("Removing service port", "portName", label.name, "servicePort", label.at) })
	}
	return lines
}

func announceRoutes(old, table *routes.Table) (lines []func()) {
	if old == table {
		return nil
	}
	was := map[string]routes.Route{}
	if old != nil {
		for _, r := range old.Routes {
			was[r.String()] = r
		}
	}
	for _, r := range table.Routes {
		text := r.String()
		if _, ok := was[text]; ok {
			delete(was, text)
			continue
		}
		lines = append(lines, func() { klog.InfoS("Adding route", "route", text, "node", r.Node) })
	}
	for text, r := range was {
		lines = append(lines, func() { klog.InfoS("Removing route", "route", text, "node", r.Node) })
	}
	return lines
}
