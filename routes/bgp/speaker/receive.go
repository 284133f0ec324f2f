package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// Received returns the paths inside ranges that the peers announce which are routers, as they came: what gobgp keeps of each peer for itself
// (Adj-RIB-In), never its table of routes, which has nothing but what is announced here. A peer that restarts gracefully still
// announces what it did, for as long as it asked for; so does one whose connection was lost.
func (s *Speaker) Received(ranges []bgp.ImportRange) (paths []bgp.Received, err error) {
	for {
		peers, asn, kept, renewals := s.known(time.Now())
		paths, err := s.receivedFromAll(peers, asn, ranges)
		if s.renewalsSince(renewals) {
			continue // what was listed may have been forgotten in between
		}
		type source struct {
			peer   netip.Addr
			prefix netip.Prefix
		}
		told := map[source]bool{}
		for _, p := range paths {
			told[source{p.Peer, p.Prefix}] = true
		}
		for _, p := range kept {
			if inside(p.Prefix, ranges) && !told[source{p.Peer, p.Prefix}] {
				paths = append(paths, p)
			}
		}
		return paths, err
	}
}

func inside(p netip.Prefix, ranges []bgp.ImportRange) bool {
	return slices.ContainsFunc(ranges, func(r bgp.ImportRange) bool { return r.Prefix.Bits() <= p.Bits() && r.Prefix.Contains(p.Addr()) })
}

func (s *Speaker) receivedFromAll(peers []bgp.Peer, asn uint32, ranges []bgp.ImportRange) (paths []bgp.Received, err error) {
	for _, p := range peers {
		if p.Node != "" {
			continue // what is imported is what routers have
		}
		from, err := s.receivedFrom(p, asn, ranges)
		if err != nil && s.has(p.Address) { // else it was removed meanwhile
			return nil, err
		}
		paths = append(paths, from...)
	}
	return paths, nil
}

// receivedFrom is Received for one peer.
func (s *Speaker) receivedFrom(p bgp.Peer, asn uint32, ranges []bgp.ImportRange) (paths []bgp.Received, err error) {
	for i, f := range cluster.Families {
		lookups := longer(ranges, f)
		if !p.Families[i] || lookups == nil {
			continue
		}
		request := &api.ListPathRequest{TableType: api.TableType_ADJ_IN, Name: p.Address.String(), Family: apiFamilies[i], Prefixes: lookups}
		err := s.server.ListPath(context.Background(), request, func(d *api.Destination) {
			for _, path := range d.Paths {
				if r, ok := read(path); ok {
					r.Peer, r.Internal = p.Address, p.ASN == asn
					if !r.Internal {
						r.LocalPref = bgp.DefaultLocalPref
					}
					paths = append(paths, r)
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list what BGP peer %s announces: %w", p.Address, err)
		}
	}
	return paths, nil
}

// known returns the peers that gobgp has, this node's autonomous system, and what is kept of peers that gobgp has forgotten.
func (s *Speaker) known(now time.Time) (peers []bgp.Peer, asn uint32, kept []bgp.Received, renewals int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		for _, p := range r.kept.paths {
			if now.Before(r.kept.until) && !r.told[familyIndex(cluster.FamilyOf(p.Prefix.Addr()))] {
				kept = append(kept, p)
			}
		}
		if !now.Before(r.kept.until) || r.told == [2]bool{true, true} {
			r.kept = keptPaths{}
		}
	}
	return slices.Clone(s.have.Peers), s.have.ASN, kept, s.renewals
}

func (s *Speaker) renewalsSince(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewals != n
}

func (s *Speaker) has(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[a] != nil
}

// longer asks for everything inside the ranges of one family; it is nil when there are none.
func longer(ranges []bgp.ImportRange, f cluster.Family) (lookups []*api.TableLookupPrefix) {
	var asked []netip.Prefix
	for _, r := range ranges {
		if cluster.FamilyOf(r.Prefix.Addr()) == f && !slices.Contains(asked, r.Prefix) {
			asked = append(asked, r.Prefix)
			lookups = append(lookups, &api.TableLookupPrefix{Prefix: r.Prefix.String(), Type: api.TableLookupPrefix_LONGER})
		}
	}
	return lookups
}

// read reads a path; ok is false for one that makes no sense.
func read(p *api.Path) (r bgp.Received, ok bool) {
	m, err := p.Nlri.UnmarshalNew()
	if err != nil {
		return r, false
	}
	nlri, isPrefix := m.(*api.IPAddressPrefix)
	if !isPrefix {
		return r, false
	}
	a, err := netip.ParseAddr(nlri.Prefix)
	if err != nil {
		return r, false
	}
	r.Prefix = netip.PrefixFrom(a, int(nlri.PrefixLen)).Masked()
	r.LocalPref = bgp.DefaultLocalPref
	for _, attribute := range p.Pattrs {
		m, err := attribute.UnmarshalNew()
		if err != nil {
			return r, false
		}
		switch m := m.(type) {
		case *api.OriginAttribute:
			r.Origin = uint8(m.Origin)
		case *api.AsPathAttribute:
			r.ASPath, r.PathLength = asNumbers(m.Segments)
		case *api.NextHopAttribute:
			r.NextHop = first(m.NextHop)
		case *api.MpReachNLRIAttribute:
			r.NextHop = first(m.NextHops...)
		case *api.MultiExitDiscAttribute:
			r.MED = m.Med
		case *api.LocalPrefAttribute:
			r.LocalPref = m.LocalPref
		case *api.OriginatorIdAttribute:
			r.Originator = first(m.Id)
		}
	}
	return r, r.Prefix.IsValid() && r.NextHop.IsValid()
}

// first reads the first of the addresses. Of two next hops it is the global one (RFC 2545, section 3).
func first(texts ...string) netip.Addr {
	if len(texts) == 0 {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(texts[0])
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// asNumbers returns all autonomous systems of an AS_PATH, and its length.
func asNumbers(segments []*api.AsSegment) (numbers []uint32, length int) {
	for _, s := range segments {
		numbers = append(numbers, s.Numbers...)
		switch s.Type {
		case api.AsSegment_AS_SEQUENCE:
			length += len(s.Numbers)
		case api.AsSegment_AS_SET:
			length++
		}
	}
	return numbers, length
}

// watchReceived has the callback called when a peer announces or withdraws something. Before there is something to import there
// is no watch: it costs a copy of every message.
func (s *Speaker) watchReceived() error {
	if s.watching {
		return nil
	}
	filters := []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_ADJIN}, {Type: api.WatchEventRequest_Table_Filter_EOR}}
	watch := &api.WatchEventRequest{Table: &api.WatchEventRequest_Table{Filters: filters}}
	if err := s.server.WatchEvent(context.Background(), watch, s.announced); err != nil {
		return fmt.Errorf("watch what BGP peers announce: %w", err)
	}
	s.watching = true
	s.clock.Do(func() { go s.watchClock() })
	return nil
}

// announced is told by gobgp of what peers announce and withdraw, and of End-of-RIB markers, which are paths without a prefix. (What gobgp
// itself remembers of the markers can't be asked for: of a peer that comes from a restart, it takes them as received.)
func (s *Speaker) announced(e *api.WatchEventResponse) {
	for _, p := range e.GetTable().GetPaths() {
		if p.Nlri == nil {
			s.tellsNoMore(p)
		}
	}
	s.received()
}

func (s *Speaker) tellsNoMore(marker *api.Path) {
	a, err := netip.ParseAddr(marker.NeighborIp)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range apiFamilies {
		if r := s.records[a]; r != nil && marker.Family.GetAfi() == f.Afi {
			r.told[i] = true
		}
	}
}
