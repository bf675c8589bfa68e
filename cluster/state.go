package cluster

import (
	"regexp"
	"slices"

	"starling"
	"starling/cluster/partmap"
	"starling/cluster/registry"
)

var clusterPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// A State is what the manager replicates: the partition map and the catalog behind one Apply. It is pure: it
// reads no clock, starts nothing, and the same commands at the same indexes give the same state, byte for
// byte, on every replica. It has one caller at a time; Machine is its shell.
type State struct {
	index    uint64 // of the last command
	offset   uint64 // by which index is ahead of the log's: a restored cluster goes on above what it was before, in a new log
	claim    Claim
	topology *Topology // replaced whole, never edited: readers keep it
	catalog  *registry.Registry
	members  *registry.Members
	feed     feed
	requests requests      // carried out or refused lately
	restored []byte        // SHA-256 of the snapshot that this cluster was restored from; nil for none
	parts    []restorePart // of a backup that is being restored, in order
}

// NewState returns the state before the first command.
func NewState() *State {
	return &State{
		topology: &Topology{Map: &partmap.Map{}},
		catalog:  registry.New(),
		members:  registry.NewMembers(),
	}
}

// Apply carries out the command at its Raft index and returns the encoded reply (DecodeReply). A refusal is
// a reply like any other; no bytes make it fail or panic. An index that was applied already changes nothing.
func (s *State) Apply(index uint64, raw []byte) []byte {
	index += s.offset
	if index <= s.index {
		return EncodeReply(Reply{}, starling.Errorf(starling.Internal, "apply command", "index %d was applied before: the log is damaged", index))
	}
	s.index = index
	cmd, err := DecodeCommand(raw)
	if err != nil {
		return EncodeReply(Reply{}, err)
	}
	reply, err := s.apply(cmd)
	reply.Index = s.index
	return EncodeReply(reply, err)
}

func (s *State) apply(cmd Command) (Reply, error) {
	switch c := cmd.(type) {
	case *InitCluster:
		return s.initCluster(c)
	case *Once:
		return s.applyOnce(c)
	case *RestoreState:
		return s.restore(c)
	case *ChangeMap:
		return s.changeMap(c)
	case *ClaimLead:
		s.claim = Claim{Index: s.index, Node: c.Node}
		return Reply{Claim: &Claim{Index: s.index, Node: c.Node}}, nil
	case *AddToken:
		return Reply{}, s.members.AddToken(registry.Token{Hash: c.Hash, Roles: c.Roles, Expires: c.Expires}, c.Now)
	case *AddNode:
		n, err := s.members.AddNode(c.Token, c.PublicKey, c.Node, c.Now)
		return s.nodeReply(n, err)
	case *UpdateNode:
		n, err := s.members.UpdateNode(c.Node)
		return s.nodeReply(n, err)
	case *SetDraining:
		n, err := s.members.SetDraining(c.ID, c.Draining)
		return s.nodeReply(n, err)
	case *RenewReplica:
		n, err := s.members.RenewReplica(c.Node, c.Lost)
		return s.nodeReply(n, err)
	case *RemoveNode:
		// Its partitions keep its name until the leader has waited for the end of its lease.
		return s.nodeReply(starling.Node{ID: c.ID}, s.members.RemoveNode(c.ID))
	}
	return s.applyCatalog(cmd)
}

func (s *State) applyCatalog(cmd Command) (Reply, error) {
	switch c := cmd.(type) {
	case *CreateAccount:
		a, err := s.catalog.CreateAccount(c.Account)
		return s.feedReply(Reply{Account: &a}, err, Change{Account: a.ID})
	case *DeleteAccount:
		keys, err := s.catalog.DeleteAccount(c.ID)
		return s.feedReply(Reply{}, err, Change{Account: c.ID, Keys: keys})
	case *SetIsolation:
		return s.setIsolation(c)
	case *PutNetwork:
		n, err := s.catalog.PutNetwork(c.Network, c.Create)
		return s.feedReply(Reply{Network: n}, err, Change{Network: c.Network.Ref})
	case *DeleteNetwork:
		return s.feedReply(Reply{}, s.catalog.DeleteNetwork(c.Ref), Change{Network: c.Ref})
	case *CreateKey:
		return s.feedReply(Reply{Key: &c.Key}, s.catalog.CreateKey(c.Key), Change{Keys: [][32]byte{c.Key.Hash}})
	case *DeleteKey:
		hash, err := s.catalog.DeleteKey(c.Account, c.ID)
		return s.feedReply(Reply{}, err, Change{Keys: [][32]byte{hash}})
	case *PutFunction:
		v, forgotten, err := s.catalog.PutFunction(registry.Put{ID: starling.VersionID(s.index), Function: c.Function, Config: c.Config,
			Code: c.Code, CodeSize: c.CodeSize, Now: c.Now, Create: c.Create, Update: c.Update, Expect: c.Expect, Unpacked: c.Unpacked})
		change := Change{Function: c.Function}
		if forgotten != 0 {
			change.Versions = []starling.VersionID{forgotten}
		}
		return s.feedReply(Reply{Version: v}, err, change)
	case *PublishVersion:
		v, err := s.catalog.PublishVersion(starling.VersionID(s.index), c.Function, c.Now)
		return s.feedReply(Reply{Version: v}, err, Change{Function: c.Function})
	case *PublishLayer:
		l, err := s.catalog.PublishLayer(c.Layer)
		return Reply{Layers: []starling.Layer{l}}, err
	case *DeleteLayer:
		return Reply{}, s.catalog.DeleteLayer(c.Account, c.Layer)
	case *DeleteFunction:
		gone, err := s.catalog.DeleteFunction(c.Function)
		return s.feedReply(Reply{}, err, Change{Function: c.Function, Versions: gone})
	}
	return Reply{}, starling.Errorf(starling.Internal, "apply command", "command %d has no meaning here: report this", cmd.CommandKind())
}

func (s *State) setIsolation(c *SetIsolation) (Reply, error) {
	if c.Account == "" {
		if err := s.catalog.SetPolicy(registry.Policy{IsolationPolicy: c.Policy, SharedKernel: c.SharedKernel}); err != nil {
			return Reply{}, err
		}
		return s.isolation("")
	}
	if _, err := s.catalog.SetIsolation(c.Account, c.Policy); err != nil {
		return Reply{}, err
	}
	r, err := s.isolation(c.Account)
	return s.feedReply(r, err, Change{Account: c.Account})
}

// isolation answers QueryIsolation.
func (s *State) isolation(id starling.AccountID) (Reply, error) {
	p, n := s.catalog.Policy(), s.catalog.AccountCount()
	out := Isolation{Policy: p.IsolationPolicy, SharedKernel: p.SharedKernel, Accounts: n}
	if id != "" {
		own, err := s.catalog.PolicyOf(id)
		out.Policy = own
		return Reply{Isolation: &out}, err
	}
	out.Mixes, out.MixesNext = s.catalog.Mixes(n), s.catalog.Mixes(n+1)
	return Reply{Isolation: &out}, nil
}

// feedReply puts the change into the feed unless the command was refused.
func (s *State) feedReply(r Reply, err error, c Change) (Reply, error) {
	if err != nil {
		return Reply{}, err
	}
	c.Index = s.index
	s.feed.add(c)
	return r, nil
}

// nodeReply publishes a new topology unless the command was refused or changed nothing.
func (s *State) nodeReply(n starling.Node, err error) (Reply, error) {
	if err != nil {
		return Reply{}, err
	}
	if nodes := s.members.Nodes(); !slices.Equal(nodes, s.topology.Nodes) {
		s.publish(func(t *Topology) { t.Nodes, t.Last = nodes, s.members.LastNode })
	}
	return Reply{Node: &n}, nil
}

// publish replaces the topology by an edited copy at the current index.
func (s *State) publish(edit func(*Topology)) {
	t := *s.topology
	edit(&t)
	t.Index = s.index
	s.topology = &t
}

func (s *State) initCluster(c *InitCluster) (Reply, error) {
	const op = "init cluster"
	if s.topology.Cluster != "" {
		if s.topology.Cluster == c.Name && len(s.topology.Map.Partitions) == c.Partitions {
			return Reply{}, nil
		}
		return Reply{}, starling.Errorf(starling.Conflict, op, "this is the cluster %q already", s.topology.Cluster)
	}
	if !clusterPattern.MatchString(c.Name) {
		return Reply{}, starling.Errorf(starling.Invalid, op, "%q is no cluster name: use 1-32 of a-z, 0-9 and \"-\"", c.Name)
	}
	m, err := partmap.Initial(c.Partitions)
	if err != nil {
		return Reply{}, err
	}
	s.publish(func(t *Topology) { t.Cluster, t.Map = c.Name, m })
	return Reply{}, nil
}

func (s *State) changeMap(c *ChangeMap) (Reply, error) {
	const op = "change partition map"
	if c.Claim != 0 && c.Claim != s.claim.Index {
		return Reply{}, starling.Errorf(starling.Moved, op, "node %s leads since index %d: this plan is of an older leader", s.claim.Node, s.claim.Index)
	}
	if len(c.Changes) > starling.PartitionMax {
		return Reply{}, starling.Errorf(starling.TooLarge, op, "%d changes: use at most %d", len(c.Changes), starling.PartitionMax)
	}
	m := s.topology.Map.Clone()
	var reply Reply
	applied := 0
	for _, change := range c.Changes {
		err := s.checkOwner(change.To)
		if err == nil {
			err = m.Apply(change)
		}
		if err == nil {
			applied++
			continue
		}
		reply.Refused, reply.RefusedAs = append(reply.Refused, err.Error()), append(reply.RefusedAs, starling.KindOf(err))
	}
	if applied > 0 {
		s.publish(func(t *Topology) { t.Map = m })
	}
	return reply, nil
}

// checkOwner refuses an owner that cannot own.
func (s *State) checkOwner(id starling.NodeID) error {
	if n, ok := s.members.Node(id); id != 0 && (!ok || !n.Roles.Has(starling.RoleScheduler)) {
		return starling.Errorf(starling.NotFound, "change partition", "%s is no scheduler node of this cluster", id)
	}
	return nil
}

// Query answers q from the state as it is now. What the reply points at is shared and immutable.
func (s *State) Query(q Query) (Reply, error) {
	r := Reply{Index: s.index}
	ref := starling.FunctionRef{Account: q.Account, Name: q.Function}
	var err error
	switch q.What {
	case QueryVersion:
		r.Version, err = s.catalog.Version(q.Version)
	case QueryResolve:
		r.Version, err = s.catalog.Resolve(ref, q.Number)
	case QueryKey:
		var k starling.Key
		k, err = s.catalog.Key(q.Hash)
		r.Key = &k
	case QueryAccount:
		var a starling.Account
		a, err = s.catalog.Account(q.Account)
		r.Account = &a
	case QueryAccounts:
		r.Accounts, r.Next = s.catalog.Accounts(q.After, q.Limit)
	case QueryKeys:
		r.Keys, err = s.catalog.Keys(q.Account)
	case QueryFunctions:
		r.Functions, r.Next, err = s.catalog.Functions(q.Account, q.After, q.Limit)
	case QueryFunction:
		r.Function, r.Versions, err = s.catalog.Function(ref)
	case QueryTopology:
		r.Topology = s.topology
	case QueryClaim:
		r.Claim = &Claim{Index: s.claim.Index, Node: s.claim.Node}
	case QueryFloors:
		r.Versions, r.Next = s.catalog.Provisioned(q.After, q.Limit)
	case QueryIsolation:
		var i Reply
		i, err = s.isolation(q.Account)
		r.Isolation = i.Isolation
	case QueryLayer:
		r.Layers, err = s.catalog.Layer(q.Account, q.Layer, q.Number)
	case QueryLayers:
		r.Layers, r.Next, err = s.catalog.Layers(q.Account, q.After, q.Limit)
	case QueryNetwork:
		r.Network, err = s.catalog.Network(starling.NetworkRef{Account: q.Account, Name: q.Network})
	case QueryNetworks:
		r.Networks, err = s.catalog.Networks(q.Account)
	case QueryToken:
		err = s.members.FindToken(q.Hash)
	default:
		err = starling.Errorf(starling.Invalid, "query state", "query %d is not known here: upgrade this node", q.What)
	}
	if err != nil {
		return Reply{}, err
	}
	return r, nil
}

// Topology returns the newest topology. It is shared: do not change it.
func (s *State) Topology() *Topology { return s.topology }

// Index returns the index of the last command: of the Raft log, and in a restored cluster ahead of it by a constant.
func (s *State) Index() uint64 { return s.index }

// Changes returns what became stale after the command at index, oldest first. ok is false when the feed does
// not reach so far back: the asker must drop all it knows.
func (s *State) Changes(index uint64) (changes []Change, ok bool) { return s.feed.after(index) }
