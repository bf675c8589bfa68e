// Package cluster holds what all nodes agree on: the partition map, the catalog of accounts, functions and
// versions, and the members. State is the pure machine that the manager replicates; View is what every
// node sees of it.
package cluster

import (
	"context"

	"starling"
)

// A Client proposes commands to the replicated state and reads it. On a manager node it is the local
// replica; elsewhere it asks the manager over the transport, following the leader.
type Client interface {
	// Propose returns after the command is applied on a majority's disks. A refusal by the state is an
	// *starling.Error; when no leader answers before ctx ends the error is Unavailable and the command may
	// or may not have been applied.
	Propose(ctx context.Context, cmd Command) (Reply, error)
	// Read answers a query linearizably.
	Read(ctx context.Context, q Query) (Reply, error)
}

// A Catalog answers what the data path asks of the replicated state. View implements it with a cache that
// the change feed keeps true; a miss costs one read from the manager.
type Catalog interface {
	// Version returns one immutable snapshot. The result is shared: do not change it.
	Version(ctx context.Context, id starling.VersionID) (*starling.Version, error)
	// Resolve finds a version by function and number. The result is shared: do not change it.
	Resolve(ctx context.Context, f starling.FunctionRef, n starling.VersionNumber) (*starling.Version, error)
	// Key finds an API key by the SHA-256 of its secret.
	Key(ctx context.Context, hash [32]byte) (starling.Key, error)
	// Account returns a tenant.
	Account(ctx context.Context, id starling.AccountID) (starling.Account, error)
}
