package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// A reflection is what the policies say besides that what is announced here may go out: nothing, for a node that is no route
// reflector. It is a value, so that policies are written when it has changed, all at once.
type reflection struct {
	on bool
	// routers are the peers that are no nodes: nothing is taken from them. untold are those that are told nothing of others.
	routers, untold []netip.Addr
	// pods are what is taken of each node alone, services what is taken of any.
	pods     []podsOf
	services []bgp.ImportRange
}

type podsOf struct {
	node netip.Addr
	pods [2]netip.Prefix
}

// reflectionOf returns what a Table asks for. Peers that it does not have any more count until they are gone.
func reflectionOf(want *bgp.Table, have []bgp.Peer) (r reflection) {
	if !want.Reflects {
		return r
	}
	r.on, r.services = true, want.Reflected
	add := func(p *bgp.Peer) {
		if p.Node == "" {
			r.routers = append(r.routers, p.Address)
		}
		if !p.ClusterID.IsValid() {
			r.untold = append(r.untold, p.Address)
		}
		if p.Node != "" && p.Pods != [2]netip.Prefix{} {
			r.pods = append(r.pods, podsOf{p.Address, p.Pods})
		}
	}
	bgp.WalkPeers(have, want.Peers, func(old, now *bgp.Peer) {
		if now != nil {
			add(now)
			return
		}
		gone := old.OfNode(old.Node, [2]netip.Prefix{})
		add(&gone)
	})
	return r
}

// The policies. gobgp judges local paths by the import policy, too.
const (
	ownPolicy  = "own"
	takePolicy = "take"
	passPolicy = "pass"
)

// nobody is in every set of neighbours: gobgp takes an empty one for everybody.
const nobody = "255.255.255.255/32"

// policies returns them as gobgp has them.
func (r reflection) policies() *api.SetPoliciesRequest {
	take, pass := &api.Policy{Name: takePolicy}, &api.Policy{Name: passPolicy}
	own := &api.Policy{Name: ownPolicy, Statements: []*api.Statement{{
		Name:       ownPolicy,
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	}}}
	request := &api.SetPoliciesRequest{Policies: []*api.Policy{own, take, pass}}
	if !r.on {
		return request
	}
	neighbours := func(name string, addresses ...netip.Addr) {
		set := &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR, Name: name, List: []string{nobody}}
		for _, a := range addresses {
			set.List = append(set.List, netip.PrefixFrom(a, a.BitLen()).String())
		}
		request.DefinedSets = append(request.DefinedSets, set)
	}
	prefixes := func(name string, list []*api.Prefix) {
		request.DefinedSets = append(request.DefinedSets, &api.DefinedSet{DefinedType: api.DefinedType_PREFIX, Name: name, Prefixes: list})
	}
	accept := func(p *api.Policy, name string, c *api.Conditions) {
		p.Statements = append(p.Statements, &api.Statement{Name: name, Conditions: c, Actions: &api.Actions{RouteAction: api.RouteAction_ACCEPT}})
	}
	matches := func(name string, t api.MatchSet_Type) *api.MatchSet { return &api.MatchSet{Name: name, Type: t} }

	neighbours("routers", r.routers...)
	for i, f := range cluster.Families {
		var list []*api.Prefix
		for _, s := range r.services {
			if familyIndex(cluster.FamilyOf(s.Prefix.Addr())) == i {
				list = append(list, &api.Prefix{IpPrefix: s.Prefix.String(), MaskLengthMin: uint32(s.Least), MaskLengthMax: uint32(s.Most)})
			}
		}
		if list != nil {
			name := "services " + f.String()
			prefixes(name, list)
			accept(take, name, &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_INTERNAL,
				NeighborSet: matches("routers", api.MatchSet_INVERT), PrefixSet: matches(name, api.MatchSet_ANY)})
		}
	}
	for _, p := range r.pods {
		from := "node " + p.node.String()
		neighbours(from, p.node)
		for i, f := range cluster.Families {
			if pods := p.pods[i]; pods.IsValid() {
				name := fmt.Sprintf("pods %s of %s", f, from)
				prefixes(name, []*api.Prefix{{IpPrefix: pods.String(), MaskLengthMin: uint32(pods.Bits()), MaskLengthMax: uint32(pods.Bits())}})
				accept(take, name, &api.Conditions{NeighborSet: matches(from, api.MatchSet_ANY), PrefixSet: matches(name, api.MatchSet_ANY)})
			}
		}
	}
	neighbours("untold", r.untold...)
	accept(pass, passPolicy, &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_INTERNAL, NeighborSet: matches("untold", api.MatchSet_INVERT)})
	return request
}

// restrict lets nothing in and out but what is announced here. The policies for more are there, and empty.
func (s *Speaker) restrict(ctx context.Context) error {
	for _, p := range (reflection{}).policies().Policies {
		if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: p}); err != nil {
			return fmt.Errorf("add the BGP policy %s: %w", p.Name, err)
		}
	}
	for direction, also := range map[api.PolicyDirection]string{api.PolicyDirection_IMPORT: takePolicy, api.PolicyDirection_EXPORT: passPolicy} {
		err := s.server.AddPolicyAssignment(ctx, &api.AddPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: direction, Policies: []*api.Policy{{Name: ownPolicy}, {Name: also}}, DefaultAction: api.RouteAction_REJECT}})
		if err != nil {
			return fmt.Errorf("assign the BGP policy: %w", err)
		}
	}
	return nil
}

// reflect has the policies say what a reflection does, before there is a session with who is new in it. What a node announced before
// is judged again when what is taken of it has changed.
func (s *Speaker) reflect(want reflection) error {
	if reflect.DeepEqual(s.reflection, want) {
		return nil
	}
	if want.on {
		s.clock.Do(func() { go s.watchClock() })
	}
	ctx := context.Background()
	if err := s.server.SetPolicies(ctx, want.policies()); err != nil {
		return fmt.Errorf("set the BGP policies of a route reflector: %w", err)
	}
	had := map[netip.Addr][2]netip.Prefix{}
	for _, p := range s.reflection.pods {
		had[p.node] = p.pods
	}
	all := !slices.Equal(s.reflection.services, want.services)
	pods := map[netip.Addr][2]netip.Prefix{}
	for _, p := range want.pods {
		pods[p.node] = p.pods
	}
	s.reflection = want
	for a, r := range s.records {
		if !r.up || !all && had[a] == pods[a] {
			continue
		}
		again := &api.ResetPeerRequest{Address: a.String(), Soft: true, Direction: api.ResetPeerRequest_IN}
		if err := s.server.ResetPeer(ctx, again); err != nil {
			return fmt.Errorf("judge again what BGP peer %s announces: %w", a, err)
		}
	}
	return nil
}

const (
	// gather is how long a reflector that has just started waits for the nodes' sessions before it begins those with routers, which kept
	// what it had passed on before; gathered is how long nodes have after that for their announcements.
	gather   = 15 * time.Second
	gathered = 2 * time.Second
)

// gathering tells whether what nodes announce is still to come, of a reflector that has just started.
func (s *Speaker) gathering() bool {
	if !s.reflection.on || time.Since(s.began) > gather {
		return false
	}
	return slices.ContainsFunc(s.wanted, func(p bgp.Peer) bool {
		if !p.Helps {
			return false
		}
		r := s.records[p.Address]
		return r == nil || !r.up || time.Since(r.since) < gathered
	})
}
