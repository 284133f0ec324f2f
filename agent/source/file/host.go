package file

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
)

const (
	hostAPIVersion = "fairway.dev/v1alpha1"
	hostKind       = "Host"
)

// maxLinkName is IFNAMSIZ of linux/if.h less the final zero.
const maxLinkName = 15

type hostDocument struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Links      []linkDocument `json:"links"`
}

type linkDocument struct {
	Name      string   `json:"name"`
	Index     int      `json:"index"`
	Up        *bool    `json:"up"`
	Loopback  bool     `json:"loopback"`
	Addresses []string `json:"addresses"`
}

// decodeHost reads a Host document. It is ours alone, so what is not known in it is a mistake.
func decodeHost(raw []byte) (*cluster.Host, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var doc hostDocument
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	host := &cluster.Host{}
	for i, given := range doc.Links {
		link, err := given.link(i)
		if err != nil {
			return nil, fmt.Errorf("links[%d]%w", i, err)
		}
		for _, other := range host.Links {
			if other.Index == link.Index || other.Name == link.Name {
				return nil, fmt.Errorf("links[%d]: name %s or index %d is given twice", i, link.Name, link.Index)
			}
		}
		host.Links = append(host.Links, link)
	}
	slices.SortFunc(host.Links, func(a, b cluster.Link) int { return cmp.Compare(a.Index, b.Index) })
	return host, nil
}

func (given linkDocument) link(place int) (cluster.Link, error) {
	link := cluster.Link{Index: given.Index, Name: given.Name, Up: given.Up == nil || *given.Up, Loopback: given.Loopback}
	if link.Index == 0 {
		link.Index = place + 1
	}
	if link.Index < 0 {
		return link, fmt.Errorf(".index is %d; an index is a number from 1", link.Index)
	}
	if n := given.Name; n == "" || len(n) > maxLinkName || n == "." || n == ".." || strings.ContainsFunc(n, notInLinkName) {
		return link, fmt.Errorf(".name is %q; a link's name has 1 to %d printable characters without '/'", n, maxLinkName)
	}
	for _, s := range given.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return link, fmt.Errorf(".addresses: %q is not an address with the length of its prefix, such as 192.168.0.2/24", s)
		}
		link.Addrs = append(link.Addrs, p)
	}
	return link, nil
}

func notInLinkName(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }
