package snapshot

import (
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
)

// version is that of the form, which is that of package cluster's types too: a new field there is a new version here.
const version = 1

// kind tells what the file is.
const kind = "fairway-snapshot"

// maxSize bounds what a file may unpack to. The Snapshot of 10,000 Services with five endpoints each takes 16 MiB.
const maxSize = 1 << 30

// A line is one line of the file; one of its fields is set.
type line struct {
	Header  *header          `json:"header,omitempty"`
	Node    *cluster.Node    `json:"node,omitempty"`
	Service *cluster.Service `json:"service,omitempty"`
	End     *end             `json:"end,omitempty"`
}

// A header is the first line.
type header struct {
	Kind    string
	Version int
	// NodeName is the node that the Snapshot was programmed on, Saved when.
	NodeName string
	Saved    time.Time
}

// An end is the last line: the rest of the Snapshot, and how many lines were before.
type end struct {
	Nodes, Services int
	ServiceCIDRs    []netip.Prefix
	Notes           []cluster.Note
}

// Encode writes a Snapshot, for the agent of a node. It sets s.Saved in the file to the given time, and leaves s.Host out.
func Encode(w io.Writer, s *cluster.Snapshot, nodeName string, saved time.Time) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	e := json.NewEncoder(z)
	e.SetEscapeHTML(false)
	if err := e.Encode(line{Header: &header{kind, version, nodeName, saved.UTC()}}); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := e.Encode(line{Node: n}); err != nil {
			return err
		}
	}
	for _, svc := range s.Services {
		if err := e.Encode(line{Service: svc}); err != nil {
			return err
		}
	}
	if err := e.Encode(line{End: &end{len(s.Nodes), len(s.Services), s.ServiceCIDRs, s.Notes}}); err != nil {
		return err
	}
	return z.Close()
}

// Decode reads what Encode wrote for the same node. Its Saved is set, so that it is not taken for what the API says now. An error
// means that nothing of it is to be believed.
func Decode(r io.Reader, nodeName string) (*cluster.Snapshot, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(io.LimitReader(z, maxSize))
	d.DisallowUnknownFields()
	var first line
	if err := d.Decode(&first); err != nil {
		return nil, err
	}
	h := first.Header
	switch {
	case h == nil || h.Kind != kind:
		return nil, errors.New("it is no snapshot")
	case h.Version != version:
		return nil, fmt.Errorf("it has version %d, this agent knows version %d", h.Version, version)
	case h.NodeName != nodeName:
		return nil, fmt.Errorf("it is of node %q, this is %q", h.NodeName, nodeName)
	case h.Saved.IsZero():
		return nil, errors.New("it does not say when it was saved")
	}
	s := &cluster.Snapshot{Saved: h.Saved}
	for {
		var l line
		if err := d.Decode(&l); err != nil {
			return nil, short(err)
		}
		switch {
		case l.Node != nil:
			s.Nodes = append(s.Nodes, l.Node)
		case l.Service != nil:
			s.Services = append(s.Services, l.Service)
		case l.End == nil:
			return nil, errors.New("it has a line that means nothing")
		case l.End.Nodes != len(s.Nodes) || l.End.Services != len(s.Services):
			return nil, errors.New("it has fewer lines than it should")
		default:
			s.ServiceCIDRs, s.Notes = l.End.ServiceCIDRs, l.End.Notes
			// The checksum stands behind the last line.
			if err := d.Decode(&l); err != io.EOF {
				return nil, cmp.Or(err, errors.New("it goes on behind its end"))
			}
			return s, nil
		}
	}
}

// short makes an end that came too soon known as such.
func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
