package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// The apiVersion and kind of kube-proxy's configuration file.
const (
	kubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kubeProxyKind       = "KubeProxyConfiguration"
)

// configMapKey is where kubeadm keeps the file in the ConfigMap kube-proxy of kube-system.
const configMapKey = "config.conf"

// A kubeProxyConfiguration is kube-proxy's own configuration as a file holds it: all fields of
// kubeproxy.config.k8s.io/v1alpha1 of Kubernetes v1.36, whether they mean anything here or not.
type kubeProxyConfiguration struct {
	APIVersion                  string                 `json:"apiVersion"`
	Kind                        string                 `json:"kind"`
	FeatureGates                map[string]bool        `json:"featureGates"`
	ClientConnection            ClientConnection       `json:"clientConnection"`
	Logging                     kubeProxyLogging       `json:"logging"`
	HostnameOverride            string                 `json:"hostnameOverride"`
	BindAddress                 string                 `json:"bindAddress"`
	HealthzBindAddress          string                 `json:"healthzBindAddress"`
	MetricsBindAddress          string                 `json:"metricsBindAddress"`
	BindAddressHardFail         bool                   `json:"bindAddressHardFail"`
	EnableProfiling             bool                   `json:"enableProfiling"`
	ShowHiddenMetricsForVersion string                 `json:"showHiddenMetricsForVersion"`
	Mode                        string                 `json:"mode"`
	IPTables                    kubeProxyIPTables      `json:"iptables"`
	IPVS                        kubeProxyIPVS          `json:"ipvs"`
	NFTables                    kubeProxyNFTables      `json:"nftables"`
	Winkernel                   kubeProxyWinkernel     `json:"winkernel"`
	DetectLocalMode             string                 `json:"detectLocalMode"`
	DetectLocal                 kubeProxyDetectLocal   `json:"detectLocal"`
	ClusterCIDR                 string                 `json:"clusterCIDR"`
	NodePortAddresses           []string               `json:"nodePortAddresses"`
	OOMScoreAdj                 *int                   `json:"oomScoreAdj"`
	Conntrack                   ConntrackConfiguration `json:"conntrack"`
	ConfigSyncPeriod            Duration               `json:"configSyncPeriod"`
	PortRange                   string                 `json:"portRange"`
	WindowsRunAsService         bool                   `json:"windowsRunAsService"`
}

type kubeProxyLogging struct {
	Format         string `json:"format"`
	FlushFrequency any    `json:"flushFrequency"`
	Verbosity      any    `json:"verbosity"`
	VModule        any    `json:"vmodule"`
	Options        any    `json:"options"`
}

type kubeProxyIPTables struct {
	MasqueradeBit      *int     `json:"masqueradeBit"`
	MasqueradeAll      bool     `json:"masqueradeAll"`
	LocalhostNodePorts *bool    `json:"localhostNodePorts"`
	SyncPeriod         Duration `json:"syncPeriod"`
	MinSyncPeriod      Duration `json:"minSyncPeriod"`
}

type kubeProxyIPVS struct {
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
	Scheduler     string   `json:"scheduler"`
	ExcludeCIDRs  []string `json:"excludeCIDRs"`
	StrictARP     bool     `json:"strictARP"`
	TCPTimeout    Duration `json:"tcpTimeout"`
	TCPFinTimeout Duration `json:"tcpFinTimeout"`
	UDPTimeout    Duration `json:"udpTimeout"`
}

type kubeProxyNFTables struct {
	MasqueradeBit *int     `json:"masqueradeBit"`
	MasqueradeAll bool     `json:"masqueradeAll"`
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
}

type kubeProxyWinkernel struct {
	NetworkName           string `json:"networkName"`
	SourceVip             string `json:"sourceVip"`
	EnableDSR             bool   `json:"enableDSR"`
	RootHnsEndpointName   string `json:"rootHnsEndpointName"`
	ForwardHealthCheckVip bool   `json:"forwardHealthCheckVip"`
}

type kubeProxyDetectLocal struct {
	BridgeInterface     string `json:"bridgeInterface"`
	InterfaceNamePrefix string `json:"interfaceNamePrefix"`
}

// A Remark says of one field of kube-proxy's file that it does not count, or counts for something else, and why.
type Remark struct {
	Field, Detail string
}

// String returns "field: detail".
func (r Remark) String() string { return r.Field + ": " + r.Detail }

// externalIPsGate is the feature gate without which kube-proxy serves no external IPs at all, as fairway does anyway.
const externalIPsGate = "AllowServiceExternalIPs"

// meaningless are the fields, or sections, that have no meaning here. What is absent, zero or kube-proxy's default is not
// worth a word.
var meaningless = []struct {
	path     string
	defaults []string
	why      string
}{
	{"ipvs.syncPeriod", []string{"30s"}, whyIPVS},
	{"ipvs", nil, whyIPVS},
	{"nftables.syncPeriod", []string{"30s"}, whyNFTables},
	{"nftables.minSyncPeriod", []string{"1s"}, whyNFTables},
	{"nftables.masqueradeBit", []string{"14"}, whyNFTables},
	{"nftables", nil, whyNFTables},
	{"winkernel", nil, "there is no fairway for Windows"},
	{"windowsRunAsService", nil, "there is no fairway for Windows"},
	{"configSyncPeriod", []string{"15m0s"}, "the API is watched, and nothing is handled again on a timer"},
	{"showHiddenMetricsForVersion", nil, "no metric is hidden"},
	{"portRange", nil, "kube-proxy has no use for it either"},
	{"logging.format", []string{"text"}, whyLogging},
	{"logging.flushFrequency", []string{"5s", "5000000000"}, whyLogging},
	{"logging", nil, whyLogging},
	{"featureGates", nil, "fairway has no feature gates"},
}

const (
	whyIPVS     = "fairway serves the same Services by iptables rules"
	whyNFTables = "fairway makes iptables rules, which the section iptables is about"
	whyLogging  = "the log is text, and its verbosity is the flag -v"
)

// A kubeProxyFile is what a KubeProxyConfiguration says in the agent's own words.
type kubeProxyFile struct {
	configuration AgentConfiguration
	// externalIPs tells that kube-proxy would serve all external IPs.
	externalIPs bool
	remarks     []Remark
}

func readKubeProxyFile(path string) (*kubeProxyFile, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read kube-proxy's configuration: %w", err)
	}
	f, err := convertKubeProxy(text)
	if err != nil {
		return nil, fmt.Errorf("kube-proxy's configuration %s: %w", path, err)
	}
	return f, nil
}

// convertKubeProxy reads a KubeProxyConfiguration, or a ConfigMap that has one as its config.conf. As in kube-proxy, an
// unknown field, or one given twice, is worth a remark only. Errors have the field's name in the file, its line where that is
// known, its value, and what would be right.
func convertKubeProxy(text []byte) (*kubeProxyFile, error) {
	var fromMap string
	if inner, ok := configMapFile(text); ok {
		text, fromMap = inner, configMapKey+": "
	}
	f := &kubeProxyFile{}
	d, err := f.parse(text)
	if err == nil {
		err = f.convert(d)
	}
	if err != nil && fromMap != "" {
		err = fmt.Errorf("%s%w", fromMap, err)
	}
	return f, err
}

// configMapFile returns the file in a ConfigMap; ok is false when the text is no ConfigMap.
func configMapFile(text []byte) (file []byte, ok bool) {
	var object struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Data       map[string]string `json:"data"`
	}
	if yaml.Unmarshal(text, &object) != nil || object.APIVersion != "v1" || object.Kind != "ConfigMap" {
		return nil, false
	}
	inner, ok := object.Data[configMapKey]
	return []byte(inner), ok
}

// parse reads strictly, and leniently when that fails.
func (f *kubeProxyFile) parse(text []byte) (document, error) {
	d, err := parse(text, yaml.YAMLToJSONStrict)
	if err != nil {
		strictly := err
		if d, err = parse(text, yaml.YAMLToJSON); err != nil {
			return document{}, err
		}
		f.remark("the file", "%s; the last one counts", strings.Join(strings.Fields(strictly.Error()), " "))
	}
	for _, path := range takeUnknown(d.fields, reflect.TypeFor[kubeProxyConfiguration]()) {
		f.remark(path, "%sthere is no such field in %s; it does not count", d.lineOf(path), kubeProxyAPIVersion)
	}
	return d, nil
}

func (f *kubeProxyFile) remark(field, format string, args ...any) {
	f.remarks = append(f.remarks, Remark{field, fmt.Sprintf(format, args...)})
}

func (f *kubeProxyFile) convert(d document) error {
	var k kubeProxyConfiguration
	if err := d.decode(&k); err != nil {
		return err
	}
	if k.APIVersion != kubeProxyAPIVersion || k.Kind != kubeProxyKind {
		return fmt.Errorf("it has apiVersion %q and kind %q, expected %s and %s", k.APIVersion, k.Kind, kubeProxyAPIVersion, kubeProxyKind)
	}
	f.configuration = AgentConfiguration{
		NodeName:            k.HostnameOverride,
		ClusterCIDRs:        masked(splitList(k.ClusterCIDR)),
		DetectLocal:         DetectLocal{Mode: k.DetectLocalMode},
		MasqueradeAll:       k.IPTables.MasqueradeAll,
		MasqueradeBit:       k.IPTables.MasqueradeBit,
		NodePortAddresses:   masked(k.NodePortAddresses),
		LocalhostNodePorts:  k.IPTables.LocalhostNodePorts,
		BindAddress:         k.BindAddress,
		SyncPeriod:          unlessZero(k.IPTables.SyncPeriod),
		MinSyncPeriod:       unlessZero(k.IPTables.MinSyncPeriod),
		Conntrack:           k.Conntrack,
		HealthzBindAddress:  k.HealthzBindAddress,
		MetricsBindAddress:  k.MetricsBindAddress,
		BindAddressHardFail: k.BindAddressHardFail,
		EnableProfiling:     k.EnableProfiling,
		OOMScoreAdj:         k.OOMScoreAdj,
		ClientConnection:    k.ClientConnection,
	}
	allowed, given := k.FeatureGates[externalIPsGate]
	f.externalIPs = allowed || !given
	f.detectLocal(k)
	f.remarkMeaningless(d.fields, "")
	return f.refused(d, k)
}

// detectLocal takes over the name that the mode needs. kube-proxy does not mind the other one.
func (f *kubeProxyFile) detectLocal(k kubeProxyConfiguration) {
	bridge, prefix := "", ""
	switch k.DetectLocalMode {
	case "BridgeInterface":
		bridge = k.DetectLocal.BridgeInterface
	case "InterfaceNamePrefix":
		prefix = k.DetectLocal.InterfaceNamePrefix
	}
	f.configuration.DetectLocal.BridgeInterface, f.configuration.DetectLocal.InterfaceNamePrefix = bridge, prefix
	for _, name := range [...]struct{ path, value, taken string }{
		{"detectLocal.bridgeInterface", k.DetectLocal.BridgeInterface, bridge},
		{"detectLocal.interfaceNamePrefix", k.DetectLocal.InterfaceNamePrefix, prefix},
	} {
		if name.value != name.taken {
			f.remark(name.path, "%q does not count, because detectLocalMode is %q", name.value, k.DetectLocalMode)
		}
	}
	if k.Mode == "ipvs" || k.Mode == "nftables" {
		f.remark("mode", "%q does not count: fairway serves the same Services by iptables rules", k.Mode)
	}
}

// remarkMeaningless remarks on every field below fields that is set, and has no meaning.
func (f *kubeProxyFile) remarkMeaningless(fields map[string]any, above string) {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		path, value := above+name, fields[name]
		if inner, isSection := value.(map[string]any); isSection {
			f.remarkMeaningless(inner, path+".")
			continue
		}
		for _, m := range meaningless {
			if path != m.path && !strings.HasPrefix(path, m.path+".") {
				continue
			}
			text := plainText(value)
			// A feature gate that is off is as worth a word as one that is on.
			unset := text == "" && above != "featureGates." || slices.Contains(m.defaults, text) || path == "featureGates."+externalIPsGate
			if !unset {
				f.remark(path, "%v does not count: %s", value, m.why)
			}
			break
		}
	}
}

// plainText returns a value of a field in one way of many; "" for what is as if it were not there.
func plainText(value any) string {
	switch v := value.(type) {
	case string:
		if d, err := time.ParseDuration(v); err != nil {
			return v
		} else if d != 0 {
			return d.String()
		}
	case float64:
		if v != 0 {
			return strconv.FormatFloat(v, 'f', -1, 64)
		}
	case bool:
		if v {
			return "true"
		}
	case []any:
		if len(v) > 0 {
			return fmt.Sprint(v)
		}
	}
	return ""
}

// kubeProxyNames are the fields whose names in kube-proxy's file are others.
var kubeProxyNames = map[string]string{
	"nodeName":           "hostnameOverride",
	"clusterCIDRs":       "clusterCIDR",
	"detectLocal.mode":   "detectLocalMode",
	"masqueradeAll":      "iptables.masqueradeAll",
	"masqueradeBit":      "iptables.masqueradeBit",
	"localhostNodePorts": "iptables.localhostNodePorts",
	"syncPeriod":         "iptables.syncPeriod",
	"minSyncPeriod":      "iptables.minSyncPeriod",
}

// refused checks what was taken over, and tells what is wrong in the file's own names.
func (f *kubeProxyFile) refused(d document, k kubeProxyConfiguration) error {
	var wrong []string
	refuse := func(path, format string, args ...any) {
		field, index, indexed := strings.Cut(path, "[")
		if field == "nodeName" && k.HostnameOverride == "" {
			return // it is from elsewhere, and may still be given elsewhere
		}
		name := defaultTo(kubeProxyNames[field], field)
		line := d.lineOf(name)
		if indexed && name == field {
			name += "[" + index
		}
		wrong = append(wrong, fmt.Sprintf("%s%s: %s", line, name, fmt.Sprintf(format, args...)))
	}
	f.configuration.check(refuse)
	oneOf("mode", k.Mode, refuse, "iptables", "ipvs", "nftables")
	if wrong != nil {
		return fmt.Errorf("%s", strings.Join(wrong, "\n"))
	}
	return nil
}

// under returns the remarks, now that the agent's own file and the flags have said what they say.
func (f *kubeProxyFile) under(a *AgentConfiguration) []Remark {
	// A name of an interface that was for another mode is not a contradiction: nobody has said both.
	if d, from := &a.DetectLocal, f.configuration.DetectLocal; d.Mode != from.Mode {
		if d.BridgeInterface == from.BridgeInterface {
			d.BridgeInterface = ""
		}
		if d.InterfaceNamePrefix == from.InterfaceNamePrefix {
			d.InterfaceNamePrefix = ""
		}
	}
	remarks := slices.Clone(f.remarks)
	if f.externalIPs && !a.ExternalIPs.AllowAll && len(a.ExternalIPs.Ranges) == 0 {
		remarks = append(remarks, Remark{"featureGates." + externalIPsGate,
			"kube-proxy serves every external IP, fairway only those in its own externalIPs.ranges, which is empty; externalIPs.allowAll serves all (CVE-2020-8554)"})
	}
	if path := f.configuration.ClientConnection.Kubeconfig; path != "" && a.ClientConnection.Kubeconfig == path && inPod() {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			a.ClientConnection.Kubeconfig = ""
			remarks = append(remarks, Remark{"clientConnection.kubeconfig",
				fmt.Sprintf("%s does not exist in this pod, whose service account is used instead", path)})
		}
	}
	return remarks
}

// inPod tells whether this runs in a pod that may speak to the API.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// splitList splits a list with commas; an empty text is an empty list.
func splitList(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// masked returns networks without the bits behind their prefixes, which kube-proxy does not mind.
func masked(texts []string) []string {
	list := slices.Clone(texts)
	for i, text := range list {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			list[i] = p.Masked().String()
		}
	}
	return list
}

// unlessZero returns a duration, or none for 0, which in kube-proxy's file is the default.
func unlessZero(d Duration) Duration {
	if v, err := time.ParseDuration(string(d)); err == nil && v == 0 {
		return ""
	}
	return d
}
