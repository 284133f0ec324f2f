package kuberouter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// flags are kube-router's, as given on its command line.
type flags struct {
	given map[string]string
	// remarks tell what could not be read.
	remarks []string
}

// switches are the flags that need no value, with their defaults (pkg/options of kube-router v2.11).
var switches = map[string]bool{
	"advertise-cluster-ip": false, "advertise-external-ip": false, "advertise-loadbalancer-ip": false, "advertise-pod-cidr": true, "auto-mtu": true,
	"bgp-graceful-restart": false, "cleanup-config": false, "disable-source-dest-check": true, "enable-bfd": false, "enable-cni": true, "enable-ibgp": true,
	"enable-ipv4": true, "enable-ipv6": false, "enable-overlay": true, "enable-pod-egress": true, "enable-pprof": false, "hairpin-mode": false, "help": false,
	"ipvs-graceful-termination": false, "ipvs-permit-all": true, "loadbalancer-default-class": true, "masquerade-all": false, "netpol-default-deny": false,
	"nodeport-bindon-all-ip": false, "nodes-full-mesh": true, "override-nexthop": false, "run-firewall": true, "run-loadbalancer": false, "run-router": true,
	"run-service-proxy": true, "strict-external-ip-validation": true, "use-nftables-for-netpol": false, "version": false,
}

// parseFlags reads a command line without the program's name.
func parseFlags(args []string) *flags {
	f := &flags{given: map[string]string{}}
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			f.remarks = append(f.remarks, fmt.Sprintf("%q is no flag, and is passed over", args[i]))
			continue
		}
		name, value, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		_, isSwitch := switches[name]
		switch {
		case joined:
		case isSwitch:
			value = "true"
		case i+1 < len(args):
			i++
			value = args[i]
		}
		if old, twice := f.given[name]; twice && lists[name] { // a list may be given in parts
			value = old + "," + value
		}
		f.given[name] = value
	}
	return f
}

// lists are the flags that may be given several times.
var lists = map[string]bool{"peer-router-ips": true, "peer-router-asns": true, "peer-router-ports": true, "peer-router-passwords": true,
	"service-cluster-ip-range": true, "service-external-ip-range": true, "loadbalancer-ip-range": true, "excluded-cidrs": true}

// on returns the value of a switch.
func (f *flags) on(name string) bool {
	otherwise, known := switches[name]
	if !known {
		panic("kuberouter: " + name + " is no switch")
	}
	text, given := f.given[name]
	if !given {
		return otherwise
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		f.wrong(name, text, "true or false")
		return otherwise
	}
	return value
}

// list returns the items of a list; none when it is not given.
func (f *flags) list(name string) (items []string) {
	text := f.given[name]
	if text == "" {
		return nil
	}
	for item := range strings.SplitSeq(text, ",") {
		items = append(items, strings.TrimSpace(item))
	}
	return items
}

// number returns a number, or what is taken otherwise.
func (f *flags) number(name string, otherwise int) int {
	text, given := f.given[name]
	if !given {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		f.wrong(name, text, "a number")
		return otherwise
	}
	return n
}

// duration returns a time as a configuration has it; empty when it is not given.
func (f *flags) duration(name string) string {
	text := f.given[name]
	if d, err := time.ParseDuration(text); text != "" && err == nil {
		return d.Truncate(time.Second).String()
	}
	if text != "" {
		f.wrong(name, text, "a time such as 90s")
	}
	return ""
}

func (f *flags) wrong(name, text, wanted string) {
	remark := fmt.Sprintf("--%s is %q, expected %s; it does not count", name, text, wanted)
	if !slices.Contains(f.remarks, remark) {
		f.remarks = append(f.remarks, remark)
	}
}

// A workload is what a manifest of a DaemonSet or a Pod has of its containers.
type workload struct {
	Kind  string     `json:"kind"`
	Items []workload `json:"items"`
	Spec  struct {
		containers
		Template struct {
			Spec containers `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

type containers struct {
	Containers []struct {
		Name    string   `json:"name"`
		Image   string   `json:"image"`
		Command []string `json:"command"`
		Args    []string `json:"args"`
	} `json:"containers"`
}

// FlagsIn returns the flags of kube-router's container in manifests of its DaemonSet, files or folders; found is false when they
// have none.
func FlagsIn(paths ...string) (args []string, found bool, err error) {
	for _, path := range paths {
		texts, err := read(path)
		if err != nil {
			return nil, false, err
		}
		for _, text := range texts {
			for doc := range strings.SplitSeq("\n"+text, "\n---") {
				var w workload
				if yaml.Unmarshal([]byte(doc), &w) != nil {
					continue // who reads the cluster in it says what is wrong
				}
				if args, found := w.flags(); found {
					return args, true, nil
				}
			}
		}
	}
	return nil, false, nil
}

// read returns the manifests of a file or a folder.
func read(path string) (texts []string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		files = nil
		for _, ext := range []string{"*.yaml", "*.yml", "*.json"} {
			some, globErr := filepath.Glob(filepath.Join(path, ext))
			files, err = append(files, some...), errors.Join(err, globErr)
		}
	}
	for _, file := range files {
		text, readErr := os.ReadFile(file)
		texts, err = append(texts, string(text)), errors.Join(err, readErr)
	}
	return texts, err
}

// flags returns the arguments of the container that runs kube-router: by its image, or by its command.
func (w workload) flags() (args []string, found bool) {
	for _, item := range w.Items {
		if args, found := item.flags(); found {
			return args, true
		}
	}
	for _, c := range slices.Concat(w.Spec.Containers, w.Spec.Template.Spec.Containers) {
		line := slices.Concat(c.Command, c.Args)
		at := slices.IndexFunc(line, func(s string) bool { return filepath.Base(s) == "kube-router" })
		image, _, _ := strings.Cut(c.Image[strings.LastIndexByte(c.Image, '/')+1:], ":")
		if at >= 0 || c.Name == "kube-router" || image == "kube-router" {
			return line[at+1:], true
		}
	}
	return nil, false
}
