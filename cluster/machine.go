package cluster

import (
	"io"
	"sync"

	"starling"
)

// A Machine is one replica's copy of the State, made safe for its readers: the replication library applies and
// queries, the manager watches. It starts nothing and needs no closing.
type Machine struct {
	mu      sync.RWMutex // a leaf: nothing is sent or called while it is held
	state   *State
	past    past
	changed chan struct{} // closed and replaced at each change that Watch tells of
}

// NewMachine returns a replica before its first command.
func NewMachine() *Machine {
	return &Machine{state: NewState(), changed: make(chan struct{})}
}

// Apply carries out one command of the log and returns its encoded reply.
func (m *Machine) Apply(index uint64, raw []byte) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	reply := m.state.Apply(index, raw)
	m.past = m.past.add(m.state.Topology())
	m.announce()
	return reply
}

// announce wakes the watchers. The caller holds the lock.
func (m *Machine) announce() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// An Answer is what Machine.Query returns: a refusal is an answer of the state, not an error of the library
// that carried the question.
type Answer struct {
	Reply Reply
	Err   error
}

// Query answers a Query with an Answer; the error is set only when q is something else.
func (m *Machine) Query(q any) (any, error) {
	query, ok := q.(Query)
	if !ok {
		return nil, starling.Errorf(starling.Invalid, "query state", "%T is no query", q)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	reply, err := m.state.Query(query)
	return Answer{Reply: reply, Err: err}, nil
}

// Save writes a snapshot; no command is applied meanwhile.
func (m *Machine) Save(w io.Writer) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Save(w)
}

// Restore replaces the state by a snapshot.
func (m *Machine) Restore(r io.Reader) error {
	fresh := NewState()
	if err := fresh.Restore(r); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = fresh
	m.past = past(nil).add(fresh.Topology()) // those of the log before are of other indexes, or of another state
	m.announce()
	return nil
}

// Hash returns the hash of the state and the index that it is of.
func (m *Machine) Hash() (hash [32]byte, index uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Hash(), m.state.Index()
}

// Index returns the index of the last command that this replica has applied.
func (m *Machine) Index() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Index()
}

// Named reports whether this replica has applied a Once: then all replicas know it.
func (m *Machine) Named() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.requests.named()
}

// Topology returns the newest topology that this replica has applied. It is shared: do not change it.
func (m *Machine) Topology() *Topology {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Topology()
}

// Past returns the topology of an earlier index, nil when it is no longer remembered. It is shared: do not change it.
func (m *Machine) Past(index uint64) *Topology {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.past.at(index)
}

// Changes returns the feed after index, and to which index it now reaches. ok is false when the feed does not
// reach so far back.
func (m *Machine) Changes(after uint64) (changes []Change, to uint64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	changes, ok = m.state.Changes(after)
	return changes, m.state.Index(), ok
}

// Watch returns a channel that is closed when the next command is applied. Take it before reading what it
// guards, or a change between the two is missed.
func (m *Machine) Watch() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changed
}
