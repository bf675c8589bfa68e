package cluster

import (
	"cmp"
	"slices"

	"starling"
	"starling/cluster/partmap"
)

// A TopologyDelta carries what changed between two topologies, to a node that has the older one and said that it reads
// deltas (Hello.Deltas).
type TopologyDelta struct {
	From  uint64            `cbor:"1,keyasint"`           // index of the topology that it counts from
	Index uint64            `cbor:"2,keyasint"`           // of the one that it makes
	Map   *partmap.Delta    `cbor:"3,keyasint,omitempty"` // nil when the map is the same
	Nodes []starling.Node   `cbor:"4,keyasint,omitempty"` // changed or new, by id
	Gone  []starling.NodeID `cbor:"5,keyasint,omitempty"` // removed
	Count int               `cbor:"6,keyasint"`           // nodes in the topology that it makes
	Last  starling.NodeID   `cbor:"7,keyasint"`

	Alive []starling.NodeID `cbor:"8,keyasint,omitempty"` // in order
	Same  bool              `cbor:"9,keyasint,omitempty"` // who is alive is what this session said last: Alive is empty
}

// Push returns the smallest message that brings a node from the topology base to t and tells it who is alive. base is nil
// when the node's topology is not known here or the node reads no deltas; same says that it knows who is alive.
func Push(base, t *Topology, alive []starling.NodeID, same bool) (MessageKind, any) {
	switch {
	case base == nil || base.Cluster != t.Cluster:
		return MessageTopology, TopologyPush{Topology: t, Alive: alive}
	case base.Index == t.Index:
		return MessageTopology, TopologyPush{Alive: alive}
	}
	d := TopologyDelta{From: base.Index, Index: t.Index, Count: len(t.Nodes), Last: t.Last, Same: same}
	if !same {
		d.Alive = alive
	}
	if base.Map != t.Map {
		m := t.Map.Since(base.Map)
		d.Map = &m
	}
	for _, n := range t.Nodes {
		if old, ok := base.Node(n.ID); !ok || old != n {
			d.Nodes = append(d.Nodes, n)
		}
	}
	for _, n := range base.Nodes {
		if _, ok := t.Node(n.ID); !ok {
			d.Gone = append(d.Gone, n.ID)
		}
	}
	return MessageDelta, d
}

// Patch returns the topology that d makes of t, which stays as it is. It is refused as Conflict when t is not the one
// that d counts from.
func (t *Topology) Patch(d TopologyDelta) (*Topology, error) {
	const op = "patch topology"
	if t.Index != d.From || d.Index <= d.From {
		return nil, starling.Errorf(starling.Conflict, op, "it changes index %d to %d, and %d is here", d.From, d.Index, t.Index)
	}
	out := &Topology{Index: d.Index, Cluster: t.Cluster, Map: t.Map, Nodes: t.Nodes, Last: d.Last}
	if d.Map != nil {
		var err error
		if out.Map, err = t.Map.Patch(*d.Map); err != nil {
			return nil, err
		}
	}
	if len(d.Nodes)+len(d.Gone) > 0 {
		changed := make(map[starling.NodeID]bool, len(d.Nodes)+len(d.Gone))
		for _, n := range d.Nodes {
			changed[n.ID] = true
		}
		for _, id := range d.Gone {
			changed[id] = true
		}
		out.Nodes = slices.DeleteFunc(slices.Clone(t.Nodes), func(n starling.Node) bool { return changed[n.ID] })
		out.Nodes = append(out.Nodes, d.Nodes...)
		slices.SortFunc(out.Nodes, func(a, b starling.Node) int { return cmp.Compare(a.ID, b.ID) })
	}
	if len(out.Nodes) != d.Count {
		return nil, starling.Errorf(starling.Conflict, op, "it makes %d nodes of %d, not %d", len(out.Nodes), len(t.Nodes), d.Count)
	}
	return out, nil
}

// pastMax is how many topologies a replica remembers, so that a node that comes back gets what it missed. One of 4,096
// partitions has 200 kB.
const pastMax = 32

// A past is the bounded memory of the last topologies.
type past []*Topology // by index

// add remembers t unless it is the last one already.
func (p past) add(t *Topology) past {
	if len(p) > 0 && p[len(p)-1] == t {
		return p
	}
	if len(p) == pastMax {
		p = slices.Delete(p, 0, 1)
	}
	return append(p, t)
}

// at returns the topology of an index; nil when it is forgotten or there was none.
func (p past) at(index uint64) *Topology {
	for _, t := range p {
		if t.Index == index {
			return t
		}
	}
	return nil
}
