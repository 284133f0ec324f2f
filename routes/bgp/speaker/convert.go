package speaker

import (
	"fmt"
	"net/netip"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/routes/bgp"
)

// deferral is how long gobgp holds its updates back after a restart, in seconds: 0 would mean six minutes.
const deferral = 1

var apiFamilies = [2]*api.Family{
	{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST},
	{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST},
}

func apiFamily(a netip.Addr) *api.Family {
	if a.Is6() {
		return apiFamilies[1]
	}
	return apiFamilies[0]
}

// pack wraps a message of ours, which can be packed always.
func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(fmt.Sprintf("speaker: pack %T: %v", m, err))
	}
	return a
}

// apiPath turns a path into gobgp's. An unspecified next hop is replaced by the session's own end.
func apiPath(asn uint32, p bgp.Path) *api.Path {
	nextHop := p.NextHop
	family := apiFamily(p.Prefix.Addr())
	nlri := pack(&api.IPAddressPrefix{Prefix: p.Prefix.Addr().String(), PrefixLen: uint32(p.Prefix.Bits())})
	attributes := []*anypb.Any{pack(&api.OriginAttribute{Origin: 0})} // IGP
	if p.Prefix.Addr().Is4() {
		if !nextHop.IsValid() {
			nextHop = netip.IPv4Unspecified()
		}
		attributes = append(attributes, pack(&api.NextHopAttribute{NextHop: nextHop.String()}))
	} else {
		if !nextHop.IsValid() {
			nextHop = netip.IPv6Unspecified()
		}
		attributes = append(attributes, pack(&api.MpReachNLRIAttribute{Family: family, NextHops: []string{nextHop.String()}, Nlris: []*anypb.Any{nlri}}))
	}
	return &api.Path{Family: family, Nlri: nlri, Pattrs: append(attributes, apiAttributes(asn, p.Attributes)...)}
}

func apiAttributes(asn uint32, a *bgp.Attributes) (list []*anypb.Any) {
	if a.Prepend > 0 {
		numbers := make([]uint32, a.Prepend)
		for i := range numbers {
			numbers[i] = asn
		}
		list = append(list, pack(&api.AsPathAttribute{Segments: []*api.AsSegment{{Type: api.AsSegment_AS_SEQUENCE, Numbers: numbers}}}))
	}
	if a.MED != 0 {
		list = append(list, pack(&api.MultiExitDiscAttribute{Med: a.MED}))
	}
	list = append(list, pack(&api.LocalPrefAttribute{LocalPref: a.LocalPref}))
	if len(a.Communities) > 0 {
		numbers := make([]uint32, len(a.Communities))
		for i, c := range a.Communities {
			numbers[i] = uint32(c)
		}
		list = append(list, pack(&api.CommunitiesAttribute{Communities: numbers}))
	}
	if len(a.LargeCommunities) > 0 {
		large := make([]*api.LargeCommunity, len(a.LargeCommunities))
		for i, c := range a.LargeCommunities {
			large[i] = &api.LargeCommunity{GlobalAdmin: c[0], LocalData1: c[1], LocalData2: c[2]}
		}
		list = append(list, pack(&api.LargeCommunitiesAttribute{Communities: large}))
	}
	return list
}

// apiPeer turns a peer into gobgp's.
func apiPeer(p bgp.Peer, password string) *api.Peer {
	restarts := p.RestartTime > 0
	var reflector *api.RouteReflector
	if p.ClusterID.IsValid() {
		reflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: p.ClusterID.String()}
	}
	peer := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.ASN, AuthPassword: password},
		Transport: &api.Transport{RemotePort: uint32(p.Port), PassiveMode: p.Passive},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime:               seconds(p.HoldTime),
			KeepaliveInterval:      seconds(p.KeepaliveTime),
			ConnectRetry:           seconds(p.ConnectRetryTime),
			IdleHoldTimeAfterReset: seconds(p.ConnectRetryTime),
		}},
		EbgpMultihop: &api.EbgpMultihop{Enabled: p.Multihop > 0, MultihopTtl: uint32(p.Multihop)},
		GracefulRestart: &api.GracefulRestart{Enabled: restarts || p.Helps, HelperOnly: !restarts, RestartTime: uint32(seconds(p.RestartTime)),
			DeferralTime: deferral, LocalRestarting: restarts},
		RouteReflector: reflector,
	}
	if p.TTLSecurity > 0 {
		peer.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(p.TTLSecurity)}
	}
	if p.LocalAddress.IsValid() {
		peer.Transport.LocalAddress = p.LocalAddress.String()
	}
	for i := range cluster.Families {
		if p.Families[i] {
			peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{
				Config:            &api.AfiSafiConfig{Family: apiFamilies[i], Enabled: true},
				MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: restarts}},
				PrefixLimits:      &api.PrefixLimit{Family: apiFamilies[i], MaxPrefixes: p.MaxPrefixes},
			})
		}
	}
	return peer
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }
