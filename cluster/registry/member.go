package registry

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"starling"
)

// The limits of membership.
const (
	NodeMax    = 1024
	TokenMax   = 1000
	ReplicaMax = 3 // members that hold a copy of the replicated state
	nameMax    = 255
)

// Members holds the nodes of the cluster and the tokens by which nodes join. It has one caller at a time.
type Members struct {
	nodes       map[starling.NodeID]starling.Node
	tokens      map[[32]byte]Token
	LastNode    starling.NodeID // the highest id ever given
	LastReplica uint64          // the highest Raft replica id ever given
}

// A Token permits one node to join.
type Token struct {
	Hash    [32]byte        `cbor:"1,keyasint"` // SHA-256 of the token
	Roles   starling.Roles  `cbor:"2,keyasint"` // the most a joiner may have
	Expires int64           `cbor:"3,keyasint"` // Unix seconds
	Node    starling.NodeID `cbor:"4,keyasint"` // who spent it; 0 for nobody yet
	Key     [32]byte        `cbor:"5,keyasint"` // SHA-256 of the public key that spent it
}

// NewMembers returns a cluster without nodes.
func NewMembers() *Members {
	return &Members{nodes: map[starling.NodeID]starling.Node{}, tokens: map[[32]byte]Token{}}
}

// AddToken permits one node to join. Tokens that expired before now (Unix seconds) are forgotten.
func (m *Members) AddToken(t Token, now int64) error {
	const op = "add join token"
	if t.Hash == ([32]byte{}) || t.Roles == 0 || t.Expires <= 0 {
		return starling.Errorf(starling.Invalid, op, "a token needs its hash, the roles it permits and a time at which it ends")
	}
	if old, ok := m.tokens[t.Hash]; ok {
		if old.Roles == t.Roles && old.Expires == t.Expires {
			return nil
		}
		return starling.Errorf(starling.Conflict, op, "this token exists already: draw another")
	}
	maps.DeleteFunc(m.tokens, func(_ [32]byte, old Token) bool { return old.Expires < now })
	if len(m.tokens) >= TokenMax {
		return starling.Errorf(starling.Overloaded, op, "%d join tokens are open, the limit: wait until some expire", TokenMax).With("TokenLimit")
	}
	t.Node, t.Key = 0, [32]byte{}
	m.tokens[t.Hash] = t
	return nil
}

// FindToken returns nil when the token is known, spent or not; so much can be told without a change.
func (m *Members) FindToken(hash [32]byte) error {
	if _, ok := m.tokens[hash]; !ok {
		return starling.Errorf(starling.NotFound, "read join token", "this token is not known here: make a new one").With("TokenUnknown")
	}
	return nil
}

// AddNode makes a node a member and returns it with the id it was given. Only the first node of a cluster
// needs no token. The same token with the same public key again answers the same node, so that a joiner
// whose answer was lost can ask again; with any other key the token is spent.
func (m *Members) AddNode(token, key [32]byte, n starling.Node, now int64) (starling.Node, error) {
	const op = "join cluster"
	if err := validateNode(op, n); err != nil {
		return n, err
	}
	if n.Roles == 0 {
		return n, starling.Errorf(starling.Invalid, op, "the node has no role: give it at least one")
	}
	if token == ([32]byte{}) {
		if m.LastNode != 0 {
			return n, starling.Errorf(starling.Denied, op, "only the first node joins without a token: make a join token and give it to this node")
		}
		return m.admit(n, now), nil
	}
	t, ok := m.tokens[token]
	switch {
	case !ok:
		return n, starling.Errorf(starling.Denied, op, "this token is not known here: make a new one").With("TokenUnknown")
	case t.Node != 0 && t.Key == key:
		if old, ok := m.nodes[t.Node]; ok {
			return old, nil
		}
		return n, starling.Errorf(starling.Denied, op, "node %s was removed from the cluster: join as a new node with a new token", t.Node).With("NodeRemoved")
	case t.Node != 0:
		return n, starling.Errorf(starling.Denied, op, "this token was spent by another node: make a new one").With("TokenSpent")
	case now >= t.Expires:
		return n, starling.Errorf(starling.Denied, op, "this token has expired: make a new one").With("TokenExpired")
	case !t.Roles.Has(n.Roles):
		return n, starling.Errorf(starling.Denied, op, "this token permits the roles %s and the node asks for %s", t.Roles, n.Roles).With("TokenRoles")
	case len(m.nodes) >= NodeMax:
		return n, starling.Errorf(starling.Overloaded, op, "the cluster has %d nodes, its limit: start another cluster", NodeMax).With("NodeLimit")
	}
	n = m.admit(n, now)
	t.Node, t.Key = n.ID, key
	m.tokens[token] = t
	return n, nil
}

// admit gives a new member its id and, to a manager while there are too few, a Raft replica.
func (m *Members) admit(n starling.Node, now int64) starling.Node {
	m.LastNode++
	n.ID, n.Joined, n.Replica, n.Draining = m.LastNode, now, 0, false
	if n.Roles.Has(starling.RoleManager) && m.replicas() < ReplicaMax {
		m.LastReplica++
		n.Replica = m.LastReplica
	}
	if n.Name == "" {
		n.Name = n.ID.String()
	}
	m.nodes[n.ID] = n
	return n
}

func (m *Members) replicas() int {
	count := 0
	for _, n := range m.nodes {
		if n.Replica != 0 {
			count++
		}
	}
	return count
}

// RenewReplica gives a manager that lost the replica with this number a new one. When it has a newer one already, that
// is the answer: the question came twice. The last copy cannot be renewed: there is nothing to fill it from.
func (m *Members) RenewReplica(id starling.NodeID, lost uint64) (starling.Node, error) {
	const op = "renew replica"
	n, ok := m.nodes[id]
	switch {
	case !ok:
		return n, starling.Errorf(starling.NotFound, op, "there is no node %s", id)
	case n.Replica == 0 || lost == 0 || lost > m.LastReplica:
		return n, starling.Errorf(starling.Invalid, op, "node %s never held replica %d", id, lost)
	case n.Replica > lost:
		return n, nil
	case n.Replica < lost:
		return n, starling.Errorf(starling.Conflict, op, "node %s holds replica %d, not %d", id, n.Replica, lost)
	case m.replicas() == 1:
		return n, starling.Errorf(starling.Conflict, op, "node %s held the only copy of the cluster's state: restore a backup with \"starling cluster restore\"", id)
	}
	m.LastReplica++
	n.Replica = m.LastReplica
	m.nodes[id] = n
	return n, nil
}

// UpdateNode changes the name, addresses and zone of a member; its id, roles and replica stay.
func (m *Members) UpdateNode(n starling.Node) (starling.Node, error) {
	const op = "update node"
	old, ok := m.nodes[n.ID]
	if !ok {
		return n, starling.Errorf(starling.NotFound, op, "there is no node %s", n.ID)
	}
	if err := validateNode(op, n); err != nil {
		return n, err
	}
	if n.Name != "" {
		old.Name = n.Name
	}
	old.Addr, old.HTTP, old.Zone = n.Addr, n.HTTP, n.Zone
	m.nodes[n.ID] = old
	return old, nil
}

// SetDraining marks a member, or takes the mark off, and returns it. What is so already stays so.
func (m *Members) SetDraining(id starling.NodeID, draining bool) (starling.Node, error) {
	n, ok := m.nodes[id]
	if !ok {
		return n, starling.Errorf(starling.NotFound, "drain node", "there is no node %s", id)
	}
	n.Draining = draining
	m.nodes[id] = n
	return n, nil
}

// RemoveNode ends a membership. The last replica cannot go: the cluster would go with it.
func (m *Members) RemoveNode(id starling.NodeID) error {
	const op = "remove node"
	n, ok := m.nodes[id]
	if !ok {
		return starling.Errorf(starling.NotFound, op, "there is no node %s", id)
	}
	if n.Replica != 0 && m.replicas() == 1 {
		return starling.Errorf(starling.Conflict, op, "node %s holds the only copy of the cluster's state: add another manager first", id)
	}
	delete(m.nodes, id)
	return nil
}

func validateNode(op string, n starling.Node) error {
	if n.Addr == "" || len(n.Addr) > nameMax || len(n.HTTP) > nameMax || len(n.Name) > nameMax || len(n.Zone) > nameMax {
		return starling.Errorf(starling.Invalid, op, "a node needs an address, and its texts at most %d bytes each", nameMax)
	}
	if strings.ContainsAny(n.Addr+n.HTTP+n.Name+string(n.Zone), "\x00\r\n") {
		return starling.Errorf(starling.Invalid, op, "a node's texts hold no line ends")
	}
	return nil
}

// Node returns a member.
func (m *Members) Node(id starling.NodeID) (starling.Node, bool) {
	n, ok := m.nodes[id]
	return n, ok
}

// Nodes returns all members by id, in a slice of the caller's own.
func (m *Members) Nodes() []starling.Node {
	return slices.SortedFunc(maps.Values(m.nodes), func(a, b starling.Node) int { return cmp.Compare(a.ID, b.ID) })
}

// Tokens returns all tokens by hash, in a slice of the caller's own.
func (m *Members) Tokens() []Token {
	return slices.SortedFunc(maps.Values(m.tokens), func(a, b Token) int { return slices.Compare(a.Hash[:], b.Hash[:]) })
}
