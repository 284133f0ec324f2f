package agent

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// rereadEvery is how often the configuration's files are looked at. They are compared and not watched: what a mounted ConfigMap
// changes is a symbolic link two levels above the file, and a file that is mounted by itself changes without any event that
// inotify could tell; and some kilobytes every second cost nothing.
const rereadEvery = time.Second

// A rereader reads the configuration's files again when they change, and has applied of it what can be while the agent runs: the
// section bgp, as a whole or not at all.
type rereader struct {
	files Files
	flags func(*AgentConfiguration)
	every time.Duration
	// inForce is the configuration that the agent works by.
	inForce Config
	// apply puts a configuration in force, tell replaces the Notes about the files.
	apply func(Config)
	tell  func(...cluster.Note)
	// stale tells that not all of what the files say is in force.
	stale atomic.Bool
}

func newRereader(o Options, apply func(Config), tell func(...cluster.Note)) *rereader {
	return &rereader{files: o.Files, flags: o.Flags, every: rereadEvery, inForce: o.Config, apply: apply, tell: tell}
}

// metric shows whether all of the files is in force.
func (r *rereader) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_config_stale",
		Help: "1 while the configuration's files say something that is not in force: they are refused, or wait for a restart."},
		func() float64 { return boolean(r.stale.Load()) })
}

// run follows the files until the context ends. A file that is just being written may be half there, so only what was found
// twice counts.
func (r *rereader) run(ctx context.Context) error {
	var seen, considered string
	for sleep(ctx, r.every) {
		text := r.contents()
		if text == seen && text != considered {
			considered = text
			r.reread()
		}
		seen = text
	}
	return nil
}

// contents is all that the files hold, or why they can't be read.
func (r *rereader) contents() string {
	var all strings.Builder
	for _, path := range []string{r.files.Agent, r.files.KubeProxy} {
		if path == "" {
			continue
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&all, "%s %v\n%s\n", path, err, text)
	}
	return all.String()
}

// reread applies what the files say, as far as it can be applied, and tells the rest.
func (r *rereader) reread() {
	node := cluster.Ref{Kind: "Node", Name: r.inForce.NodeName, UID: r.inForce.NodeName}
	written, config, _, err := configureFiles(r.files, r.flags)
	if err != nil {
		r.stale.Store(true)
		r.tell(cluster.Note{Object: node, Reason: cluster.ReasonConfigRefused,
			Detail: strings.ReplaceAll(err.Error(), "\n", "; ") + "; what was read before stays in force, and an agent that is started now would end with this error"})
		return
	}
	waiting := changedFields(r.inForce, config)
	section, why := r.section(written)
	switch {
	case why != nil:
		waiting = append(waiting, why...)
	case !reflect.DeepEqual(section, r.inForce.BGP):
		r.inForce.BGP = section
		klog.InfoS("The configuration has changed", "applied", "bgp")
		r.apply(r.inForce)
	}
	r.stale.Store(len(waiting) > 0)
	if len(waiting) == 0 {
		r.tell()
		return
	}
	r.tell(cluster.Note{Object: node, Reason: cluster.ReasonConfigNeedsRestart, Detail: r.restartDetail(waiting, why != nil)})
}

// section returns the section bgp as it would be with all else that is in force, or the fields which contradict that, so that it has to wait
// for a restart, as a whole.
func (r *rereader) section(written *AgentConfiguration) (section *bgp.Config, waiting []string) {
	section = written.BGP.check(&r.inForce, func(path, _ string, _ ...any) {
		waiting = append(waiting, path) // it contradicts what has to wait itself
	})
	return section, waiting
}

// restartDetail words what waits for a restart.
func (r *rereader) restartDetail(waiting []string, bgpWaits bool) string {
	slices.Sort(waiting)
	detail := fmt.Sprintf("The configuration has changed in %s, which count when the agent is restarted (kubectl -n kube-system rollout restart daemonset fairway)",
		strings.Join(slices.Compact(waiting), ", "))
	if bgpWaits {
		return detail + "; until then nothing of the section bgp is applied."
	}
	return detail + "; the section bgp is applied."
}

// fieldsOf are the names in the file of what has another name in a Config. All others are the same but for a small letter.
var fieldsOf = map[string]string{
	"Detect":                       "detectLocal.mode",
	"DetectInterface":              "detectLocal",
	"Addresses.ExternalIPs":        "externalIPs.ranges",
	"Addresses.AllExternalIPs":     "externalIPs.allowAll",
	"Addresses.LoadBalancerIPs":    "loadBalancerIPs.ranges",
	"Addresses.AllLoadBalancerIPs": "loadBalancerIPs.allowAll",
	"Addresses.ServiceCIDRs":       "serviceCIDRs",
	"NodePorts.CIDRs":              "nodePortAddresses",
	"NodePorts.Primary":            "nodePortAddresses",
	"NodePorts.Localhost":          "localhostNodePorts",
	"NodeIPs":                      "bindAddress",
	"ForwardUnknown":               "unknownServices",
	"IPTablesBackend":              "iptablesBackend",
}

// changedFields names the fields but for the section bgp in which two configurations differ, as the file has them.
func changedFields(a, b Config) (names []string) {
	a.BGP, b.BGP = nil, nil
	differ("", reflect.ValueOf(a), reflect.ValueOf(b), func(path string) {
		name, other := fieldsOf[path]
		if !other {
			var words []string
			for word := range strings.SplitSeq(path, ".") {
				words = append(words, small(word))
			}
			name = strings.Join(words, ".")
		}
		names = append(names, name)
	})
	return names
}

// differ calls visit with the path of each field in which two structs differ.
func differ(path string, a, b reflect.Value, visit func(path string)) {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return
	}
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	if a.Kind() != reflect.Struct {
		visit(path)
		return
	}
	for i := range a.NumField() {
		name := a.Type().Field(i).Name
		if path != "" {
			name = path + "." + name
		}
		differ(name, a.Field(i), b.Field(i), visit)
	}
}
