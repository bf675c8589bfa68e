package cluster

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"

	"starling"
	"starling/cluster/registry"
)

// A backup is older than what came after it: epochs, ids and indexes were given out that it does not know. A
// restored cluster therefore goes on so far above what the backup holds that it gives none of them a second time.
const (
	// RestoreGap is added to the index, to every epoch and to the highest partition id.
	RestoreGap = 1 << 20
	// RestoreNodeGap is added to the highest ids of nodes and replicas, which people read.
	RestoreNodeGap = 1000

	restorePartMax  = 192 << 10 // bytes of state in one command
	restorePartsMax = 16 << 10  // commands of one restore: 3 GiB
)

// RestoreState gives a new cluster, part by part and in order, the state that a backup holds. The last part puts it in
// place: partitions belong to nobody, the only member is Node, join tokens are gone. Every part may come twice.
type RestoreState struct {
	Hash  [32]byte      `cbor:"1,keyasint"` // SHA-256 of the whole snapshot
	Part  int           `cbor:"2,keyasint"` // from 0
	Parts int           `cbor:"3,keyasint"`
	Data  []byte        `cbor:"4,keyasint"`
	Node  starling.Node `cbor:"5,keyasint"` // with the ids that Successor tells
}

// RestoreCommands cuts a snapshot into the commands that restore it in the cluster of node.
func RestoreCommands(snapshot []byte, node starling.Node) ([]Command, error) {
	parts := (len(snapshot) + restorePartMax - 1) / restorePartMax
	if parts == 0 || parts > restorePartsMax {
		return nil, starling.Errorf(starling.TooLarge, "restore state", "the state has %d bytes: 1 to %d can be restored", len(snapshot), restorePartMax*restorePartsMax)
	}
	hash := sha256.Sum256(snapshot)
	var out []Command
	for i := range parts {
		data := snapshot[i*restorePartMax : min(len(snapshot), (i+1)*restorePartMax)]
		out = append(out, RestoreState{Hash: hash, Part: i, Parts: parts, Data: data, Node: node})
	}
	return out, nil
}

// A restorePart is a part that waits for the others; in a snapshot it is a record of its own.
type restorePart struct {
	Hash [32]byte `cbor:"1,keyasint"`
	Data []byte   `cbor:"2,keyasint"`
}

// restore takes one part.
func (s *State) restore(c *RestoreState) (Reply, error) {
	const op = "restore state"
	if s.topology.Cluster != "" {
		if bytes.Equal(s.restored, c.Hash[:]) {
			return Reply{}, nil // a part that came twice
		}
		return Reply{}, starling.Errorf(starling.Conflict, op, "this is the cluster %q already: restore into an empty data directory", s.topology.Cluster)
	}
	if len(s.parts) > 0 && s.parts[0].Hash != c.Hash {
		return Reply{}, starling.Errorf(starling.Conflict, op, "another backup is being restored here")
	}
	switch {
	case c.Parts < 1 || c.Parts > restorePartsMax || c.Part < 0 || c.Part >= c.Parts || len(c.Data) == 0:
		return Reply{}, starling.Errorf(starling.Invalid, op, "part %d of %d makes no sense", c.Part, c.Parts)
	case c.Part < len(s.parts):
		return Reply{}, nil
	case c.Part > len(s.parts):
		return Reply{}, starling.Errorf(starling.Invalid, op, "part %d came before part %d", c.Part, len(s.parts))
	}
	s.parts = append(s.parts, restorePart{Hash: c.Hash, Data: bytes.Clone(c.Data)})
	if len(s.parts) < c.Parts {
		return Reply{}, nil
	}
	return s.revive(c)
}

// revive replaces the state by the one that all parts make, raised above everything that came after the backup.
func (s *State) revive(c *RestoreState) (Reply, error) {
	const op = "restore state"
	sum, whole := sha256.New(), make([]io.Reader, 0, len(s.parts))
	for _, p := range s.parts {
		sum.Write(p.Data)
		whole = append(whole, bytes.NewReader(p.Data))
	}
	s.parts = nil
	if [32]byte(sum.Sum(nil)) != c.Hash {
		return Reply{}, starling.Errorf(starling.Invalid, op, "the parts do not make the state that was announced: begin again")
	}
	fresh := NewState()
	if err := fresh.Restore(io.MultiReader(whole...)); err != nil {
		return Reply{}, err
	}
	if fresh.topology.Cluster == "" {
		return Reply{}, starling.Errorf(starling.Invalid, op, "the backup is of a cluster that was never made")
	}
	node, replica := fresh.Successor()
	if c.Node.ID != node || c.Node.Replica != replica {
		return Reply{}, starling.Errorf(starling.Conflict, op, "the restored cluster begins with node %s and replica %d, not with %s and %d", node, replica, c.Node.ID, c.Node.Replica)
	}
	log := s.index - s.offset
	fresh.index += RestoreGap
	fresh.offset = fresh.index - log
	fresh.restored = c.Hash[:]
	fresh.feed.floor = fresh.index
	if fresh.requests.named() {
		fresh.requests = requests{forgotten: fresh.index} // whoever asked for them asked another cluster
	}
	fresh.members = registry.NewMembers()
	fresh.members.LastNode, fresh.members.LastReplica = node, replica
	fresh.members.LoadNode(c.Node)
	m := fresh.topology.Map.Clone()
	m.Last += RestoreGap
	for i := range m.Partitions {
		p := &m.Partitions[i]
		p.Owner, p.Epoch = 0, p.Epoch+RestoreGap
		p.Since = p.Epoch
	}
	*s = *fresh
	s.publish(func(t *Topology) { t.Map, t.Nodes, t.Last = m, s.members.Nodes(), node })
	return Reply{Node: &c.Node}, nil
}

// Successor returns the ids of the first node and the first replica of a cluster that is restored from this state.
func (s *State) Successor() (node starling.NodeID, replica uint64) {
	return s.members.LastNode + RestoreNodeGap + 1, s.members.LastReplica + RestoreNodeGap + 1
}

// CatalogHash returns a SHA-256 of accounts, keys, functions and versions: what a restore leaves as it was.
func (s *State) CatalogHash() [32]byte {
	out := &recordWriter{w: io.Discard, sum: sumOnly{sha256.New()}}
	_ = s.catalog.Each(func(record any) error { out.record(recordVersion, record); return out.err })
	return [32]byte(out.sum.Sum(nil))
}

// sumOnly lets a recordWriter sum with a longer hash than its own.
type sumOnly struct{ hash.Hash }

// Sum32 is never asked for: the writer of CatalogHash has no end.
func (sumOnly) Sum32() uint32 { return 0 }

// A Summary counts what a state holds, for people.
type Summary struct {
	Cluster    string         `json:"cluster"`
	Index      uint64         `json:"index"`
	Accounts   int            `json:"accounts"`
	Keys       int            `json:"keys"`
	Functions  int            `json:"functions"`
	Versions   int            `json:"versions"`
	Nodes      int            `json:"nodes"`
	Partitions int            `json:"partitions"`
	Epoch      starling.Epoch `json:"epoch"` // the highest of all partitions
}

// Summary counts.
func (s *State) Summary() Summary {
	sum := Summary{Cluster: s.topology.Cluster, Index: s.index, Nodes: len(s.topology.Nodes), Partitions: len(s.topology.Map.Partitions)}
	for _, p := range s.topology.Map.Partitions {
		sum.Epoch = max(sum.Epoch, p.Epoch)
	}
	_ = s.catalog.Each(func(record any) error { // no record makes it fail
		switch record.(type) {
		case starling.Account:
			sum.Accounts++
		case starling.Key:
			sum.Keys++
		case registry.FunctionRecord:
			sum.Functions++
		case *starling.Version:
			sum.Versions++
		}
		return nil
	})
	return sum
}
