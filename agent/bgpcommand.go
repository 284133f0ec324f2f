package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp/speaker"
)

// BGPFormats are the formats in which BGP sessions and routes are printed.
var BGPFormats = [...]string{"text", "json"}

// ErrSessionsDown is the error of what is asked about BGP sessions when not all of them are up.
var ErrSessionsDown = errors.New("not all BGP sessions are up")

// A BGPQuery is a question about the BGP sessions of a running agent.
type BGPQuery struct {
	// Socket is the agent's control socket.
	Socket string
	// Format is one of BGPFormats.
	Format string
	// Peer and Direction ("sent", "received") say which routes are asked for; empty for all.
	Peer, Direction string
}

// ShowBGP prints where the BGP sessions of a running agent stand. When not all are up, that is an ErrSessionsDown; without an
// agent, the error is ErrNoAgent.
func ShowBGP(ctx context.Context, q BGPQuery, out io.Writer) error {
	if err := q.check(); err != nil {
		return err
	}
	var s bgpStatus
	if err := ask(ctx, q.Socket, http.MethodGet, bgpPath, &s); err != nil {
		return err
	}
	if err := q.print(out, s, func(w io.Writer) { s.write(w, time.Now()) }); err != nil {
		return err
	}
	var down []netip.Addr
	for _, p := range s.Peers {
		if !p.up() {
			down = append(down, p.Address)
		}
	}
	return sessionsDown(down)
}

// ShowBGPRoutes prints the routes in the BGP sessions of a running agent; its errors are those of ShowBGP.
func ShowBGPRoutes(ctx context.Context, q BGPQuery, out io.Writer) error {
	if err := q.check(); err != nil {
		return err
	}
	query := url.Values{"peer": {q.Peer}, "direction": {q.Direction}}
	var r bgpRoutes
	if err := ask(ctx, q.Socket, http.MethodGet, bgpRoutesPath+"?"+query.Encode(), &r); err != nil {
		return err
	}
	if err := q.print(out, r, r.write); err != nil {
		return err
	}
	return sessionsDown(r.NoSession)
}

// check refuses what can't be asked, and writes the peer's address as the agent does.
func (q *BGPQuery) check() error {
	if !slices.Contains(BGPFormats[:], q.Format) {
		return fmt.Errorf("unknown format %q, expected one of %s", q.Format, strings.Join(BGPFormats[:], ", "))
	}
	if directions := []string{"", string(speaker.Sent), string(speaker.Received)}; !slices.Contains(directions, q.Direction) {
		return fmt.Errorf("unknown direction %q, expected sent, received, or none for both", q.Direction)
	}
	if q.Peer != "" {
		a, err := netip.ParseAddr(q.Peer)
		if err != nil {
			return fmt.Errorf("%q is no address of a peer, expected for example 192.0.2.1 or 2001:db8::1", q.Peer)
		}
		q.Peer = a.Unmap().String()
	}
	return nil
}

func (q *BGPQuery) print(out io.Writer, value any, text func(io.Writer)) error {
	if q.Format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(value)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func sessionsDown(peers []netip.Addr) error {
	if len(peers) == 0 {
		return nil
	}
	return fmt.Errorf("%w: there is none with %s", ErrSessionsDown, strings.Join(texts(peers), ", "))
}

// none stands for what there is not, in a table.
const none = "-"

func (s bgpStatus) write(w io.Writer, now time.Time) {
	fmt.Fprintf(w, "AS %d, BGP identifier %s\n\n", s.ASN, s.RouterID)
	node := func(name string) string { return "" }
	if slices.ContainsFunc(s.Peers, func(p bgpPeerStatus) bool { return p.Node != "" }) {
		node = func(name string) string { return "\t" + name }
	}
	fmt.Fprintln(w, "PEER"+node("NODE")+"\tAS\tSTATE\tFOR\tSENT\tRECEIVED\tKEEPS ROUTES\tPEER'S OPEN\tLAST ERROR")
	for _, p := range s.Peers {
		var sent, received []string
		for _, f := range cluster.Families {
			if n, ok := p.Prefixes[f.String()]; ok {
				sent = append(sent, fmt.Sprintf("%d %s", n.Sent, f))
				received = append(received, fmt.Sprintf("%d %s", n.Received, f))
			}
		}
		fmt.Fprintf(w, "%s%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Address, node(defaultTo(p.Node, none)), p.ASN, p.State, max(0, now.Sub(p.Since)).Round(time.Second),
			defaultTo(strings.Join(sent, ", "), none), defaultTo(strings.Join(received, ", "), none),
			p.keeps(), p.open(), defaultTo(defaultTo(p.PasswordError, p.LastError), none))
	}
}

// keeps words whether the peer keeps the node's routes over a restart of the agent.
func (p bgpPeerStatus) keeps() string {
	switch r := p.GracefulRestart; {
	case !p.up():
		return none
	case !r.Enabled:
		return "not asked"
	case r.KeepsRoutes:
		return "yes"
	}
	return "no"
}

// open words what the peer's OPEN says about graceful restart.
func (p bgpPeerStatus) open() string {
	r := p.GracefulRestart.Peer
	switch {
	case !p.up():
		return none
	case r == nil:
		return "no graceful restart"
	}
	text := "restart time " + string(r.RestartTime)
	if len(r.Families) > 0 {
		text += " " + strings.Join(r.Families, " ")
	}
	if r.Restarting {
		text += ", restarted"
	}
	return text
}

func (r bgpRoutes) write(w io.Writer) {
	fmt.Fprintln(w, "PEER\tDIRECTION\tPREFIX\tNEXT HOP\tAS PATH\tORIGIN\tLOCAL PREF\tMED\tCOMMUNITIES")
	for _, r := range r.Routes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Peer, r.Direction, r.Prefix, r.NextHop, defaultTo(r.ASPath, none), r.Origin,
			number32(r.LocalPref), number32(r.MED), defaultTo(strings.Join(r.Communities, " "), none))
	}
}

// number32 is a number that there may not be.
func number32(n *uint32) string {
	if n == nil {
		return none
	}
	return strconv.FormatUint(uint64(*n), 10)
}
