package cluster

import (
	"cmp"
	"slices"

	"starling"
	"starling/cluster/partmap"
)

// A Command changes the replicated state. Each has a number and a version on the wire that are only ever
// added to; times in it come from the proposer, so that Apply reads no clock.
type Command interface{ CommandKind() uint16 }

// CreateAccount adds a tenant; Conflict when it exists.
type CreateAccount struct {
	Account starling.Account `cbor:"1,keyasint"`
}

// DeleteAccount removes a tenant with its keys; Conflict while it owns functions.
type DeleteAccount struct {
	ID starling.AccountID `cbor:"1,keyasint"`
}

// CreateKey adds an API key by its hash.
type CreateKey struct {
	Key starling.Key `cbor:"1,keyasint"`
}

// DeleteKey revokes the key of an account that has this id.
type DeleteKey struct {
	Account starling.AccountID `cbor:"1,keyasint"`
	ID      string             `cbor:"2,keyasint"`
}

// PutFunction creates a function or replaces its latest snapshot. Reply.Version is the new snapshot.
type PutFunction struct {
	Function starling.FunctionRef `cbor:"1,keyasint"`
	Config   starling.Config      `cbor:"2,keyasint"`
	Code     starling.CodeHash    `cbor:"3,keyasint"`
	CodeSize int64                `cbor:"4,keyasint"`
	Now      int64                `cbor:"5,keyasint"`
	Create   bool                 `cbor:"6,keyasint"` // Conflict when it exists
	Update   bool                 `cbor:"7,keyasint"` // NotFound when it does not
	Expect   starling.VersionID   `cbor:"8,keyasint"` // Conflict unless this is the latest snapshot; 0 for any

	Unpacked int64 `cbor:"9,keyasint,omitempty"` // bytes of the package's files; said of a function with layers only, so that another is the same bytes as an older release's
}

// DeleteFunction removes a function and all its versions.
type DeleteFunction struct {
	Function starling.FunctionRef `cbor:"1,keyasint"`
}

// PublishVersion numbers a copy of the latest snapshot. Publishing an unchanged one answers the same number.
type PublishVersion struct {
	Function starling.FunctionRef `cbor:"1,keyasint"`
	Now      int64                `cbor:"2,keyasint"`
}

// PublishLayer numbers a version of a layer; Reply.Layers is that one. Publishing the newest one's content again answers the newest.
type PublishLayer struct {
	Layer starling.Layer `cbor:"1,keyasint"` // without its number
}

// DeleteLayer removes one version of a layer; Conflict while a function uses it.
type DeleteLayer struct {
	Account starling.AccountID `cbor:"1,keyasint"`
	Layer   starling.LayerRef  `cbor:"2,keyasint"`
}

// AddToken permits one node to join until Expires.
type AddToken struct {
	Hash    [32]byte       `cbor:"1,keyasint"` // SHA-256 of the token
	Roles   starling.Roles `cbor:"2,keyasint"` // the most a joiner may have
	Expires int64          `cbor:"3,keyasint"` // Unix seconds
	Now     int64          `cbor:"4,keyasint"` // Unix seconds; tokens that expired before are forgotten
}

// AddNode makes a node a member; Reply.Node carries its id. A token is spent by it; the very same command
// again (same token, same public key) answers the same node.
type AddNode struct {
	Token     [32]byte      `cbor:"1,keyasint"` // zero for the first node of a cluster
	PublicKey [32]byte      `cbor:"2,keyasint"` // SHA-256 of the joiner's public key
	Node      starling.Node `cbor:"3,keyasint"`
	Now       int64         `cbor:"4,keyasint"`
}

// UpdateNode changes the addresses, zone or name of a member.
type UpdateNode struct {
	Node starling.Node `cbor:"1,keyasint"`
}

// RemoveNode ends a membership; its certificate is worthless from then on.
type RemoveNode struct {
	ID starling.NodeID `cbor:"1,keyasint"`
}

// SetDraining marks a member, or takes the mark off: its partitions move away and no new instances are placed on it.
type SetDraining struct {
	ID       starling.NodeID `cbor:"1,keyasint"`
	Draining bool            `cbor:"2,keyasint"`
}

// RenewReplica gives a node whose copy of the replicated state was lost a new one, under a number that was never used:
// a replica that forgot its votes must not vote again. Reply.Node carries the number; asking again answers the same.
type RenewReplica struct {
	Node starling.NodeID `cbor:"1,keyasint"`
	Lost uint64          `cbor:"2,keyasint"` // the number of the lost one
}

// SetIsolation replaces what the operator says of isolation: of one account's functions, or of all when Account is empty.
// Snapshots that exist keep what they have. Reply.Isolation is what was made of it.
type SetIsolation struct {
	Account      starling.AccountID       `cbor:"1,keyasint,omitempty"`
	Policy       starling.IsolationPolicy `cbor:"2,keyasint"`
	SharedKernel bool                     `cbor:"3,keyasint,omitempty"` // of all: accounts may share a kernel
}

// PutNetwork creates a network or replaces it. Reply.Network is what is there then.
type PutNetwork struct {
	Network starling.Network `cbor:"1,keyasint"`
	Create  bool             `cbor:"2,keyasint,omitempty"` // Conflict when another one of the name exists
}

// DeleteNetwork removes a network; Conflict while a version names it.
type DeleteNetwork struct {
	Ref starling.NetworkRef `cbor:"1,keyasint"`
}

// InitCluster sets the cluster's name and cuts the key space into partitions. Once only.
type InitCluster struct {
	Name       string `cbor:"1,keyasint"`
	Partitions int    `cbor:"2,keyasint"`
}

// ChangeMap applies partition changes, each refused on its own when its epoch has passed. All are refused as
// Moved when Claim is not 0 and not the newest claim: its proposer is no leader any more.
type ChangeMap struct {
	Changes []partmap.Change `cbor:"1,keyasint"`
	Claim   uint64           `cbor:"2,keyasint"`
}

// ClaimLead begins the reign of a manager: its Raft index is the claim, and every older claim ends with it.
// A manager that leads knows that it still does by reading its own claim back (QueryClaim).
type ClaimLead struct {
	Node starling.NodeID `cbor:"1,keyasint"`
}

// A Query asks the replicated state; its zero fields match all.
type Query struct {
	What     What                   `cbor:"1,keyasint"`
	Account  starling.AccountID     `cbor:"2,keyasint"`
	Function starling.FunctionName  `cbor:"3,keyasint"`
	Number   starling.VersionNumber `cbor:"4,keyasint"`
	Version  starling.VersionID     `cbor:"5,keyasint"`
	Hash     [32]byte               `cbor:"6,keyasint"`
	After    string                 `cbor:"7,keyasint"` // page: names greater than this
	Limit    int                    `cbor:"8,keyasint"` // page: at most so many, 1–1000; 0 means 100
	Layer    starling.LayerName     `cbor:"9,keyasint,omitempty"`
	Network  starling.NetworkName   `cbor:"10,keyasint,omitempty"`
}

// What names a query.
type What uint8

const (
	QueryVersion   What = 1 // by Version
	QueryResolve   What = 2 // by Account, Function, Number
	QueryKey       What = 3 // by Hash
	QueryAccount   What = 4 // by Account
	QueryAccounts  What = 5 // a page
	QueryKeys      What = 6 // of Account
	QueryFunctions What = 7 // of Account, a page
	QueryFunction  What = 8 // by Account, Function, with its versions
	QueryTopology  What = 9 // map, nodes, cluster name
	QueryClaim     What = 10
	QueryToken     What = 11 // by Hash; NotFound when nobody may join with it
	QueryFloors    What = 12 // a page of the latest snapshots that want instances at all times, in Versions
	QueryIsolation What = 13 // of Account; of all when it is empty
	QueryLayer     What = 14 // by Account, Layer and Number, 0 for all versions, the newest first; in Layers
	QueryLayers    What = 15 // of Account, a page: the newest version of each, in Layers
	QueryNetwork   What = 16 // by Account, Network
	QueryNetworks  What = 17 // of Account, all
)

// A Reply answers a command or a query; only the fields that belong to it are set.
type Reply struct {
	Index     uint64             `cbor:"1,keyasint,omitempty"` // Raft index of the command
	Version   *starling.Version  `cbor:"2,keyasint,omitempty"`
	Versions  []starling.Version `cbor:"3,keyasint,omitempty"`
	Function  *starling.Function `cbor:"4,keyasint,omitempty"`
	Functions []starling.Version `cbor:"5,keyasint,omitempty"` // the latest snapshot of each
	Account   *starling.Account  `cbor:"6,keyasint,omitempty"`
	Accounts  []starling.Account `cbor:"7,keyasint,omitempty"`
	Key       *starling.Key      `cbor:"8,keyasint,omitempty"`
	Keys      []starling.Key     `cbor:"9,keyasint,omitempty"`
	Node      *starling.Node     `cbor:"10,keyasint,omitempty"`
	Topology  *Topology          `cbor:"11,keyasint,omitempty"`
	Next      string             `cbor:"12,keyasint,omitempty"` // page: pass as After for more
	Refused   []string           `cbor:"13,keyasint,omitempty"` // ChangeMap: why each refused change was
	Claim     *Claim             `cbor:"14,keyasint,omitempty"`
	RefusedAs []starling.Kind    `cbor:"15,keyasint,omitempty"` // ChangeMap: the kind of each of Refused
	Isolation *Isolation         `cbor:"16,keyasint,omitempty"`
	Layers    []starling.Layer   `cbor:"17,keyasint,omitempty"`
	Network   *starling.Network  `cbor:"18,keyasint,omitempty"`
	Networks  []starling.Network `cbor:"19,keyasint,omitempty"`
}

// An Isolation is what counts for one account's functions, or for all.
type Isolation struct {
	Policy       starling.IsolationPolicy `cbor:"1,keyasint"`
	SharedKernel bool                     `cbor:"2,keyasint,omitempty"` // accounts may share a kernel
	Accounts     int                      `cbor:"3,keyasint,omitempty"` // how many there are
	Mixes        bool                     `cbor:"4,keyasint,omitempty"` // of all: they do or may share one, and nobody said so
	MixesNext    bool                     `cbor:"5,keyasint,omitempty"` // the same with one account more
}

// refusedAs returns the kind of one refused change; Moved when an older release did not say.
func (r Reply) refusedAs(i int) starling.Kind {
	if i < len(r.RefusedAs) {
		return r.RefusedAs[i]
	}
	return starling.Moved
}

// A Claim says which manager leads. A higher Index ends every lower one.
type Claim struct {
	Index uint64          `cbor:"1,keyasint"`
	Node  starling.NodeID `cbor:"2,keyasint"`
}

// A Topology is the part of the state that is pushed to every node.
type Topology struct {
	Index   uint64          `cbor:"1,keyasint"` // of the last change; rises
	Cluster string          `cbor:"2,keyasint"`
	Map     *partmap.Map    `cbor:"3,keyasint"`
	Nodes   []starling.Node `cbor:"4,keyasint"` // by id
	Last    starling.NodeID `cbor:"5,keyasint"` // the highest id ever given: a lower one that is not in Nodes was removed
}

// Node returns a member.
func (t *Topology) Node(id starling.NodeID) (starling.Node, bool) {
	i, ok := slices.BinarySearchFunc(t.Nodes, id, func(n starling.Node, id starling.NodeID) int { return cmp.Compare(n.ID, id) })
	if !ok {
		return starling.Node{}, false
	}
	return t.Nodes[i], true
}
