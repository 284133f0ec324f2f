// Package healthd serves the health check node ports of Services (spec.healthCheckNodePort): HTTP ports at which load
// balancers in front of the nodes ask whether this node has ready endpoints of a Service, and how many.
//
//	HTTP/1.1 200 OK                          503 without endpoints, or while the service proxy itself is not healthy
//	X-Load-Balancing-Endpoint-Weight: 2
//
//	{"service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true}
//
// The answer is kube-proxy's, to the letter, on every path and to every method. Other than kube-proxy, which listens at
// the addresses that the node had when the process began, it follows the node's addresses; a listener whose address and
// port are still wanted is never closed, not even when the port goes to another Service; and a client that is slow, or
// says nothing, is hung up on.
//
// [Servers] are told what should be served, and make it so. They decide nothing: which Service has which port, how many
// endpoints it has here, and at which addresses of the node it is served is the [proxy.Table]'s. A port that can't be listened
// at is a Note and tried again by the caller; the others are served. The package writes no rule: those that let load balancers
// through to the ports are in the Ruleset.
package healthd
