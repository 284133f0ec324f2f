package source

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/fairway-net/fairway/agent/cluster"
)

// An Assembler joins Objects into Snapshots. What one change costs does not grow with what did not change, but for
// copying the list of pointers to it. It is not safe for concurrent use.
type Assembler struct {
	objects map[ID]*Object
	// joints are the Services with their slices, by namespace and name. There is one also for slices whose Service
	// does not exist (yet).
	joints map[ID]*joint
	notes  map[ID][]cluster.Note
	// What changed since the last Snapshot.
	changedNodes, changedServices map[ID]bool
	changedRanges, changedNotes   bool
	last                          *cluster.Snapshot
}

// A joint is a Service and what belongs to it.
type joint struct {
	service *Object   // nil when there are only slices
	slices  []*Object // ordered by name
}

// NewAssembler returns an Assembler without objects.
func NewAssembler() *Assembler {
	return &Assembler{
		objects:         map[ID]*Object{},
		joints:          map[ID]*joint{},
		notes:           map[ID][]cluster.Note{},
		changedNodes:    map[ID]bool{},
		changedServices: map[ID]bool{},
		last:            &cluster.Snapshot{},
	}
}

// Set adds an object or replaces the one of the same ID. An equal one changes nothing, and the earlier one's values stay;
// so does one that says nothing new but that it was triggered at another time.
func (a *Assembler) Set(o *Object) {
	old := a.objects[o.ID]
	if old != nil && same(old, o) {
		return
	}
	a.objects[o.ID] = o
	switch o.ID.Kind {
	case KindNode:
		a.changedNodes[o.ID] = true
	case KindService:
		a.joint(o.ID).service = o
		a.changedServices[o.ID] = true
	case KindEndpointSlice:
		if old != nil && old.owner != o.owner {
			a.detach(old)
		}
		a.attach(o)
	case KindServiceCIDR:
		a.changedRanges = true
		a.setNotes(o.ID, o.remarks)
	}
}

// same reports whether two versions of an object are the same, but for when a slice's change was triggered.
func same(a, b *Object) bool {
	if a == b {
		return true
	}
	if a.slice == nil || b.slice == nil || a.slice.Triggered.Equal(b.slice.Triggered) {
		return reflect.DeepEqual(a, b)
	}
	slice, object := *b.slice, *b
	slice.Triggered = a.slice.Triggered
	object.slice = &slice
	return reflect.DeepEqual(a, &object)
}

// Delete removes an object. That there is none is no error.
func (a *Assembler) Delete(id ID) {
	old := a.objects[id]
	if old == nil {
		return
	}
	delete(a.objects, id)
	switch id.Kind {
	case KindNode:
		a.changedNodes[id] = true
	case KindService:
		a.joint(id).service = nil
		a.changedServices[id] = true
	case KindEndpointSlice:
		a.detach(old)
	case KindServiceCIDR:
		a.changedRanges = true
		a.setNotes(id, nil)
	}
}

// Replace makes objects all that there are of their kind.
func (a *Assembler) Replace(kind Kind, objects []*Object) {
	keep := make(map[ID]bool, len(objects))
	for _, o := range objects {
		keep[o.ID] = true
	}
	for id := range a.objects {
		if id.Kind == kind && !keep[id] {
			a.Delete(id)
		}
	}
	for _, o := range objects {
		a.Set(o)
	}
}

// Snapshot returns the present state. It is the same pointer as the last time when nothing changed that it shows.
func (a *Assembler) Snapshot() *cluster.Snapshot {
	nodes := effective(a.last.Nodes, nodeID, a.nodeChanges())
	services := effective(a.last.Services, serviceID, a.serviceChanges())
	ranges := a.ranges()
	if len(nodes) == 0 && len(services) == 0 && slices.Equal(ranges, a.last.ServiceCIDRs) && !a.changedNotes {
		return a.last
	}
	next := &cluster.Snapshot{
		Nodes:        merge(a.last.Nodes, nodeID, nodes),
		Services:     merge(a.last.Services, serviceID, services),
		ServiceCIDRs: ranges,
		Notes:        a.last.Notes,
	}
	if a.changedNotes {
		next.Notes = cluster.SortNotes(slices.Concat(slices.Collect(maps.Values(a.notes))...))
		a.changedNotes = false
	}
	a.last = next
	return next
}

// ranges returns the networks of all ServiceCIDRs, in order without duplicates.
func (a *Assembler) ranges() []netip.Prefix {
	if !a.changedRanges {
		return a.last.ServiceCIDRs
	}
	a.changedRanges = false
	var all []netip.Prefix
	for id, o := range a.objects {
		if id.Kind == KindServiceCIDR {
			all = append(all, o.serviceCIDRs...)
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

func nodeID(n *cluster.Node) ID { return ID{Kind: KindNode, Name: n.Name} }

func serviceID(s *cluster.Service) ID {
	return ID{Kind: KindService, Namespace: s.Namespace, Name: s.Name}
}

func (a *Assembler) joint(id ID) *joint {
	j := a.joints[id]
	if j == nil {
		j = &joint{}
		a.joints[id] = j
	}
	return j
}

func (o *Object) ownerID() ID {
	return ID{Kind: KindService, Namespace: o.ID.Namespace, Name: o.owner}
}

func compareObjects(a, b *Object) int { return compareIDs(a.ID, b.ID) }

// attach puts a slice, new or changed, to its Service.
func (a *Assembler) attach(o *Object) {
	if o.owner == "" {
		return
	}
	j := a.joint(o.ownerID())
	at, found := slices.BinarySearchFunc(j.slices, o, compareObjects)
	if found {
		j.slices[at] = o
	} else {
		j.slices = slices.Insert(j.slices, at, o)
	}
	a.changedServices[o.ownerID()] = true
}

func (a *Assembler) detach(o *Object) {
	if o.owner == "" {
		return
	}
	j := a.joint(o.ownerID())
	if at, found := slices.BinarySearchFunc(j.slices, o, compareObjects); found {
		j.slices = slices.Delete(j.slices, at, at+1)
	}
	a.changedServices[o.ownerID()] = true
}

// A change is the new value of an object, nil when it is gone.
type change[T any] struct {
	id    ID
	value *T
}

func (a *Assembler) nodeChanges() []change[cluster.Node] {
	changes := make([]change[cluster.Node], 0, len(a.changedNodes))
	for id := range a.changedNodes {
		c := change[cluster.Node]{id: id}
		var r *remarks
		if o := a.objects[id]; o != nil {
			c.value, r = o.node, o.remarks
		}
		a.setNotes(id, r)
		changes = append(changes, c)
	}
	clear(a.changedNodes)
	return changes
}

func (a *Assembler) serviceChanges() []change[cluster.Service] {
	changes := make([]change[cluster.Service], 0, len(a.changedServices))
	for id := range a.changedServices {
		j := a.joints[id]
		svc, r := j.assemble()
		a.setNotes(id, r)
		changes = append(changes, change[cluster.Service]{id, svc})
		if j.service == nil && len(j.slices) == 0 {
			delete(a.joints, id)
		}
	}
	clear(a.changedServices)
	return changes
}

// assemble makes a new value of the Service, or nil when it is not to be served; then its slices, and what was
// remarked about them, are of no interest either.
func (j *joint) assemble() (*cluster.Service, *remarks) {
	if j.service == nil {
		return nil, nil
	}
	if j.service.service == nil {
		return nil, j.service.remarks
	}
	svc := *j.service.service
	all := &remarks{about: svc.Ref()}
	all.take(j.service.remarks)
	for _, o := range j.slices {
		all.take(o.remarks)
		if o.slice != nil {
			svc.Slices = append(svc.Slices, o.slice)
		}
	}
	return &svc, all
}

func (a *Assembler) setNotes(id ID, r *remarks) {
	notes := r.all()
	if slices.Equal(notes, a.notes[id]) {
		return
	}
	a.changedNotes = true
	if len(notes) == 0 {
		delete(a.notes, id)
		return
	}
	a.notes[id] = notes
}

// effective drops the changes that change nothing: something is gone that never was to be seen, such as a slice without
// a Service.
func effective[T any](old []*T, idOf func(*T) ID, changes []change[T]) []change[T] {
	return slices.DeleteFunc(changes, func(c change[T]) bool {
		_, found := find(old, idOf, c.id)
		return c.value == nil && !found
	})
}

func find[T any](in []*T, idOf func(*T) ID, id ID) (int, bool) {
	return slices.BinarySearchFunc(in, id, func(v *T, id ID) int { return compareIDs(idOf(v), id) })
}

// merge returns old with the changes, in order of the IDs. old stays as it is; it is returned itself when there is
// nothing to change.
func merge[T any](old []*T, idOf func(*T) ID, changes []change[T]) []*T {
	if len(changes) == 0 {
		return old
	}
	slices.SortFunc(changes, func(a, b change[T]) int { return compareIDs(a.id, b.id) })
	next := make([]*T, 0, len(old)+len(changes))
	for _, c := range changes {
		at, found := find(old, idOf, c.id)
		next = append(next, old[:at]...)
		if c.value != nil {
			next = append(next, c.value)
		}
		if found {
			at++
		}
		old = old[at:]
	}
	return append(next, old...)
}
