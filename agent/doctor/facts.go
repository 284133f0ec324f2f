package doctor

import (
	"net/netip"
	"time"
)

// Facts are all that is judged, as it was at one moment.
type Facts struct {
	// Now is when they were gathered.
	Now time.Time
	// Agent is what the running agent says of itself; nil when there is no answer, and then NoAgent says why.
	Agent   *Agent
	NoAgent string
	Kernel  Kernel
	// Networkd is systemd-networkd on this host, Firewalld is firewalld.
	Networkd  Networkd
	Firewalld bool
}

// An Agent is what a running agent knows that nobody else does. It is the answer of its control socket.
type Agent struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	Ready   bool      `json:"ready"`
	// Stale: what is in force was saved before a restart, the cluster has not answered yet.
	Stale bool `json:"stale"`
	// Revision is the number of the latest state of the cluster that is known; 0 before the first.
	Revision uint64 `json:"revision"`
	// IPTables is the backend of its rules, legacy or nft.
	IPTables string `json:"iptables"`
	// Absent are the families that have no iptables here.
	Absent []Absent `json:"absent"`
	Parts  []Part   `json:"parts"`
	// Repairs are what others changed and the agent put right since it started, by part and kind.
	Repairs []Repair `json:"repairs"`
	// Notes are its decisions not to act that hold now.
	Notes []Note `json:"notes"`
	// API is how it stands with the Kubernetes API; nil when the cluster is read from a folder.
	API *API `json:"api,omitempty"`
	BGP BGP  `json:"bgp"`
	// DropsInvalid: its rules drop forwarded packets that conntrack calls INVALID.
	DropsInvalid bool `json:"dropsInvalid"`
	// PodCIDRs are those of its own node, Others one of another node per family, ClusterCIDRs the networks of all pods.
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	Others       []Others       `json:"others"`
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	// Pods are some endpoints of Services among its own pods, one per family if there is any.
	Pods []netip.Addr `json:"pods"`
	// PodLinks are the links that have a network of the own pods.
	PodLinks []string `json:"podLinks"`
}

// An Absent is a family that is not served, and why.
type Absent struct {
	Family string `json:"family"`
	Why    string `json:"why"`
}

// Others are the pods of another node: their network, one that is an endpoint of a Service if any is, and the link over which there is a
// route to them.
type Others struct {
	Pods netip.Prefix `json:"pods"`
	Pod  netip.Addr   `json:"pod,omitzero"`
	Link string       `json:"link"`
}

// A Part is one corner of the kernel that the agent keeps.
type Part struct {
	Name string `json:"name"`
	// Programmed is the revision that the kernel was known to hold at Verified. InDoubt: somebody may have changed it since.
	Programmed uint64    `json:"programmed"`
	Verified   time.Time `json:"verified,omitzero"`
	InDoubt    bool      `json:"inDoubt"`
	// Pending is since when something has been waiting to be programmed; zero when nothing does.
	Pending time.Time `json:"pending,omitzero"`
	// Audited is when all of it was last read back and compared; zero for never, or nothing to read.
	Audited time.Time `json:"audited,omitzero"`
	Error   string    `json:"error,omitempty"`
}

// A Repair is one kind of change that others made to one Part.
type Repair struct {
	Part string `json:"part"`
	// Kind is a kind of fairway_drift_total, or "routes".
	Kind string `json:"kind"`
	// Changes counts the chains, rules or routes, Times are the latest moments of repair, Occasions counts all of them.
	Changes   int         `json:"changes"`
	Occasions int         `json:"occasions"`
	Times     []time.Time `json:"times"`
	// By is who did it the last time, as far as the kernel told.
	By string `json:"by,omitempty"`
}

// MaxTimes bounds the Times of a Repair.
const MaxTimes = 16

// A Note is a decision of the agent's not to act; see package cluster.
type Note struct {
	Object string `json:"object"`
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// API is how the agent stands with the Kubernetes API.
type API struct {
	// Lost is since when it has not answered; zero while it does. Error is what was last said.
	Lost  time.Time `json:"lost,omitzero"`
	Error string    `json:"error,omitempty"`
}

// BGP is where the BGP sessions stand.
type BGP struct {
	Configured bool `json:"configured"`
	// Waiting is why BGP has not begun although it is configured; empty when it has.
	Waiting string    `json:"waiting,omitempty"`
	Peers   []BGPPeer `json:"peers"`
}

// A BGPPeer is one session.
type BGPPeer struct {
	Address netip.Addr `json:"address"`
	State   string     `json:"state"`
	Up      bool       `json:"up"`
	// Since is when it came to be so.
	Since     time.Time `json:"since"`
	LastError string    `json:"lastError,omitempty"`
	// AskedToKeep and Keeps: whether the peer is asked to keep the node's routes over a restart, and whether it will.
	AskedToKeep bool `json:"askedToKeep"`
	Keeps       bool `json:"keeps"`
}

// Kernel is what the kernel of this network namespace says.
type Kernel struct {
	// Sysctls are values of files below /proc/sys, by their names there; those that could not be read are missing.
	Sysctls map[string]string
	// Strict are the links whose reverse path filter is strict. ReversePathDrops counts what was dropped by one since boot.
	Strict           []string
	ReversePathDrops uint64
	// Bridges are the links of pods that are bridges.
	Bridges   []string
	Conntrack Conntrack
	// Rules are what was seen in each backend and family of iptables, Unread what could not be read.
	Rules  []Rules
	Unread []string
	// KubeProxyTables are the families with an nftables table of a kube-proxy in nftables mode: ip, ip6.
	KubeProxyTables []string
}

// Conntrack is the table of connections; Max is 0 when it is not known.
type Conntrack struct {
	Count, Max uint64
	// InsertFailed, Drop and EarlyDrop are counted since boot, over all CPUs.
	InsertFailed, Drop, EarlyDrop uint64
}

// Rules are the iptables rules of one backend and family, as far as they are judged.
type Rules struct {
	// Backend is legacy or nft, Family IPv4 or IPv6, Command the program that changes them.
	Backend, Family, Command string
	// Chains of Services, "table chain".
	Chains []string
	// Above are rules of others that decide about packets before those of Services do, Refusing those of filter's FORWARD that drop or
	// reject, wherever they stand.
	Above, Refusing []Rule
	// Policy is that of FORWARD in filter, empty when there is no such chain; PolicyPackets is what it has been applied to.
	Policy        string
	PolicyPackets uint64
	// Ways are what becomes of the pods' own connections that are forwarded.
	Ways []Way
}

// A Rule is one rule with the packets it has applied to.
type Rule struct {
	Table, Chain string
	// Text is the rule as iptables-save prints it.
	Text string
	// Refuses: it drops or rejects what it applies to.
	Refuses bool
	Packets uint64
}

// A Way is what becomes of a new connection between a pod of this node and one of another.
type Way struct {
	// From and To are addresses of pods. MadeUp: no pod may have that which is on this node. Some CNI plugins accept each pod by itself.
	From, To netip.Addr
	MadeUp   bool
	// Verdict is accept, drop or reject, or empty when it can't be told; then Why says why.
	Verdict, Why string
	// Rule is what dropped or rejected it; empty when it was the policy.
	Rule string
}

// Networkd is systemd-networkd on this host.
type Networkd struct {
	// Seen: whether it runs could be told. Runs: it does, or has since boot.
	Seen, Runs bool
	// Unseen says what would have to be seen.
	Unseen string
	// ManageForeignRoutes is the setting in force, File the file that it is from; empty for the built-in default, which is yes.
	ManageForeignRoutes bool
	File                string
	// Newer: the file is newer than the process, which has not read it.
	Newer bool
}
