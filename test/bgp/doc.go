// Package bgp holds tests of BGP against real routers: BIRD, FRR and gobgpd, as Debian has them, run in a namespace of the
// laboratory as the nodes' gateway, and whoever comes from outside gets to pods and Services by what they learned.
//
// The gateways' configurations are those of docs/bgp.md, or a few lines of a test's own. Tests of what a restart costs have a
// twin in which the protection is off, and which must see the outage. Nothing is asserted of times but bounds that a loaded
// machine keeps.
package bgp
