package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/agent/source"
)

// A place is where an object stands.
type place struct {
	file     string
	line     int
	document int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

func (p place) fault(err error) *Error {
	return &Error{File: p.file, Line: p.line, Document: p.document, Err: err}
}

// An item is an object that a file holds, or the Host.
type item struct {
	object *source.Object
	host   *cluster.Host
	at     place
}

// decodeFile returns a file's items. The error is an *Error, for the first fault.
func decodeFile(path string, data []byte) ([]item, error) {
	docs := split(data)
	if filepath.Ext(path) == ".json" {
		docs = []document{{number: 1, line: 1, text: bytes.TrimPrefix(data, byteOrderMark), json: true}}
	}
	var items []item
	for _, doc := range docs {
		d := decoder{document: doc, file: path, whole: span{0, bytes.Count(doc.text, []byte("\n")) + 1}}
		if err := d.decode(); err != nil {
			return nil, err
		}
		items = append(items, d.items...)
	}
	return items, nil
}

// A decoder decodes one document.
type decoder struct {
	document
	file  string
	whole span
	items []item
}

// A typed has what every manifest has; Items is there in Lists.
type typed struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Items      []json.RawMessage `json:"items"`
}

func (d *decoder) at(line int) place {
	return place{file: d.file, line: d.line + line, document: d.number}
}

func (d *decoder) decode() error {
	data, verbatim, err := d.toJSON()
	if syntax := new(json.SyntaxError); errors.As(err, &syntax) {
		return d.at(bytes.Count(d.text[:syntax.Offset], []byte("\n"))).fault(err)
	}
	if err != nil {
		line, msg := yamlFault(err) // at the end of the text, it may count one too far
		return d.at(min(max(line, 1), d.whole.to) - 1).fault(errors.New(msg))
	}
	start := d.start()
	var t typed
	if err := utiljson.Unmarshal(data, &t); err != nil {
		return d.typeFault(start, err)
	}
	if !strings.HasSuffix(t.Kind, "List") {
		return d.one(start, t, data)
	}
	var spans []span
	if verbatim {
		spans = rawSpans(d.text, t.Items)
	} else {
		spans = itemSpans(d.text, len(t.Items))
	}
	for i, raw := range t.Items {
		s := start
		if spans != nil {
			s = spans[i]
		}
		// In a List of one kind, as the API itself returns it, the items do not repeat the kind.
		entry := typed{APIVersion: t.APIVersion, Kind: strings.TrimSuffix(t.Kind, "List")}
		if err := utiljson.Unmarshal(raw, &entry); err != nil {
			return d.typeFault(s, err)
		}
		if err := d.one(s, entry, raw); err != nil {
			return err
		}
	}
	return nil
}

// start is the document without the blank lines, comments and mark that it begins with.
func (d *decoder) start() span {
	s := d.whole
	for i, l := range bytes.Split(d.text, []byte("\n")) {
		if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' && !isMark(l, "---") {
			s.from = i
			break
		}
	}
	return s
}

func (d *decoder) typeFault(s span, err error) error {
	field, plain := typeFault(err)
	if field != "" {
		return d.at(fieldLine(d.text, s, field)).fault(plain)
	}
	return d.at(s.from).fault(plain)
}

// one decodes one object.
func (d *decoder) one(s span, t typed, raw []byte) error {
	at := d.at(s.from)
	switch t.APIVersion + " " + t.Kind {
	case "v1 Node":
		return d.object(s, raw, &corev1.Node{})
	case "v1 Service":
		return d.object(s, raw, &corev1.Service{})
	case "discovery.k8s.io/v1 EndpointSlice":
		return d.object(s, raw, &discoveryv1.EndpointSlice{})
	case "networking.k8s.io/v1 ServiceCIDR", "networking.k8s.io/v1beta1 ServiceCIDR": // the two have the same fields
		return d.object(s, raw, &networkingv1.ServiceCIDR{})
	case hostAPIVersion + " " + hostKind:
		host, err := decodeHost(raw)
		if err != nil {
			return d.typeFault(s, err)
		}
		d.items = append(d.items, item{host: host, at: at})
		return nil
	}
	switch {
	case t.Kind == "":
		return at.fault(errors.New("kind is missing; every document has apiVersion and kind, as in \"apiVersion: v1, kind: Service\""))
	case t.Kind == "List":
		return at.fault(errors.New("a List within a List; kubectl prints none, put the items into the outer one"))
	case t.Kind == "Node" || t.Kind == "Service" && t.APIVersion == "":
		return at.fault(fmt.Errorf("apiVersion of a %s is %q; v1 is known", t.Kind, t.APIVersion))
	case t.Kind == "EndpointSlice":
		return at.fault(fmt.Errorf("apiVersion of an EndpointSlice is %q; discovery.k8s.io/v1 is known", t.APIVersion))
	case t.Kind == "ServiceCIDR":
		return at.fault(fmt.Errorf("apiVersion of a ServiceCIDR is %q; networking.k8s.io/v1 is known", t.APIVersion))
	}
	klog.V(2).InfoS("Passed over an object of a kind that is not used", "apiVersion", t.APIVersion, "kind", t.Kind, "file", at.String())
	return nil
}

// object decodes raw into obj and converts it.
func (d *decoder) object(s span, raw []byte, obj any) error {
	if err := utiljson.Unmarshal(raw, obj); err != nil {
		return d.typeFault(s, err)
	}
	setDefaults(obj)
	converted, err := source.Convert(obj)
	if err != nil {
		return d.at(s.from).fault(err)
	}
	d.items = append(d.items, item{object: converted, at: d.at(s.from)})
	return nil
}

// setDefaults fills in what the API server would have, where the conversion depends on it.
func setDefaults(obj any) {
	switch o := obj.(type) {
	case *corev1.Service:
		orDefaultNamespace(&o.Namespace)
		if o.Spec.ClusterIP == "" && len(o.Spec.ClusterIPs) > 0 {
			o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
		}
		if len(o.Spec.IPFamilies) == 0 {
			o.Spec.IPFamilies = familiesOf(o.Spec.ClusterIPs)
		}
	case *discoveryv1.EndpointSlice:
		orDefaultNamespace(&o.Namespace)
		for i := range o.Ports {
			if o.Ports[i].Name == nil {
				o.Ports[i].Name = new(string)
			}
		}
	}
}

func orDefaultNamespace(ns *string) {
	if *ns == "" {
		*ns = corev1.NamespaceDefault
	}
}

// familiesOf returns the families of clusterIPs in their order, or nil when one of them has none.
func familiesOf(ips []string) []corev1.IPFamily {
	var families []corev1.IPFamily
	for _, s := range ips {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil
		}
		families = append(families, corev1.IPFamily(cluster.FamilyOf(a.Unmap()).String()))
	}
	return families
}
