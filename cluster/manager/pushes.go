package manager

import (
	"sync"

	"starling"
	"starling/cluster"
)

// pushes holds the encoded pushes that lead to one topology and one list of the living: many sessions are told the same at
// the same time, and what they are told is encoded once.
type pushes struct {
	mu    sync.Mutex // a leaf: guards what follows, also while a push is being encoded
	index uint64
	turn  uint64
	made  map[pushFrom]push
}

// pushFrom is where a node stands before the push.
type pushFrom struct {
	index uint64 // 0 for nowhere
	same  bool   // it knows who is alive
}

type push struct {
	kind cluster.MessageKind
	raw  []byte
}

// encoded returns the push that brings a node from base to t. What it returns is shared: do not change it.
func (p *pushes) encoded(base, t *cluster.Topology, turn uint64, alive []starling.NodeID, same bool) (push, error) {
	from := pushFrom{same: same}
	if base != nil {
		from.index = base.Index
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil || p.index != t.Index || p.turn != turn {
		p.index, p.turn, p.made = t.Index, turn, map[pushFrom]push{}
	}
	if e, ok := p.made[from]; ok {
		return e, nil
	}
	kind, v := cluster.Push(base, t, alive, same)
	raw, err := cluster.EncodeMessage(kind, v)
	if err == nil {
		p.made[from] = push{kind, raw}
	}
	return push{kind, raw}, err
}
