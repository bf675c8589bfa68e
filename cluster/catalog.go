package cluster

import (
	"context"
	"sync"

	"starling"
)

// A catalog is the view's cache of the replicated catalog, kept true by the feed. A snapshot never changes, so
// it is dropped only when it is gone; what a number or "latest" of a function means can change, so all numbers
// of one function lie in one shard and are dropped together.
type catalog struct {
	read     func(context.Context, Query) (Reply, error)
	versions *cache[starling.VersionID, *starling.Version]
	numbers  *cache[numberKey, *starling.Version]
	keys     *cache[[32]byte, starling.Key]
	accounts *cache[starling.AccountID, starling.Account]
	networks *cache[starling.NetworkRef, *starling.Network] // those of one account lie in one shard
	ahead    func(starling.FunctionRef)                     // reads what was deployed here before it is called
	mu       sync.Mutex                                     // a leaf: guards what follows
	to       uint64                                         // the feed was taken up to this index
	deployed map[starling.FunctionRef]struct{}
}

// deployedMax bounds the functions whose change the feed still has to tell of.
const deployedMax = 1024

// A numberKey is what Resolve is asked for.
type numberKey struct {
	function starling.FunctionRef
	number   starling.VersionNumber
}

func newCatalog(v *View, entries int) *catalog {
	byFunction, byAccount := hasher[starling.FunctionRef](), hasher[starling.AccountID]()
	return &catalog{
		read:     v.Read,
		ahead:    v.readAhead,
		deployed: map[starling.FunctionRef]struct{}{},
		versions: newCache[starling.VersionID, *starling.Version](entries, v.cfg.Now, hasher[starling.VersionID]()),
		numbers:  newCache[numberKey, *starling.Version](entries, v.cfg.Now, func(k numberKey) uint64 { return byFunction(k.function) }),
		keys:     newCache[[32]byte, starling.Key](entries, v.cfg.Now, hasher[[32]byte]()),
		accounts: newCache[starling.AccountID, starling.Account](entries, v.cfg.Now, hasher[starling.AccountID]()),
		networks: newCache[starling.NetworkRef, *starling.Network](entries, v.cfg.Now, func(r starling.NetworkRef) uint64 { return byAccount(r.Account) }),
	}
}

// Version returns one immutable snapshot. See Catalog.
func (v *View) Version(ctx context.Context, id starling.VersionID) (*starling.Version, error) {
	return v.cache.versions.get(ctx, id, v.cache.readVersion)
}

// Resolve finds a version by function and number. See Catalog.
func (v *View) Resolve(ctx context.Context, f starling.FunctionRef, n starling.VersionNumber) (*starling.Version, error) {
	return v.cache.numbers.get(ctx, numberKey{f, n}, v.cache.readNumber)
}

// Key finds an API key by the SHA-256 of its secret. See Catalog.
func (v *View) Key(ctx context.Context, hash [32]byte) (starling.Key, error) {
	return v.cache.keys.get(ctx, hash, v.cache.readKey)
}

// Account returns a tenant. See Catalog.
func (v *View) Account(ctx context.Context, id starling.AccountID) (starling.Account, error) {
	return v.cache.accounts.get(ctx, id, v.cache.readAccount)
}

// Network returns a network of an account. It is the same pointer until the network changes, shared: do not change it.
func (v *View) Network(ctx context.Context, ref starling.NetworkRef) (*starling.Network, error) {
	return v.cache.networks.get(ctx, ref, v.cache.readNetwork)
}

// Provisioned returns all snapshots that want instances at all times, by id. It asks the manager each time.
func (v *View) Provisioned(ctx context.Context) ([]starling.Version, error) {
	var all []starling.Version
	for q := (Query{What: QueryFloors, Limit: 1000}); ; {
		r, err := v.Read(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, r.Versions...)
		if q.After = r.Next; r.Next == "" {
			return all, nil
		}
	}
}

func (c *catalog) readVersion(ctx context.Context, id starling.VersionID) (*starling.Version, error) {
	r, err := c.read(ctx, Query{What: QueryVersion, Version: id})
	return r.Version, orEmpty(err, r.Version)
}

func (c *catalog) readNumber(ctx context.Context, k numberKey) (*starling.Version, error) {
	began := c.versions.drops.Load()
	r, err := c.read(ctx, Query{What: QueryResolve, Account: k.function.Account, Function: k.function.Name, Number: k.number})
	if err = orEmpty(err, r.Version); err == nil {
		c.versions.put(r.Version.ID, r.Version, began) // partition and host of a first call need not ask again
	}
	return r.Version, err
}

func (c *catalog) readKey(ctx context.Context, hash [32]byte) (starling.Key, error) {
	r, err := c.read(ctx, Query{What: QueryKey, Hash: hash})
	if err := orEmpty(err, r.Key); err != nil {
		return starling.Key{}, err
	}
	return *r.Key, nil
}

func (c *catalog) readAccount(ctx context.Context, id starling.AccountID) (starling.Account, error) {
	r, err := c.read(ctx, Query{What: QueryAccount, Account: id})
	if err := orEmpty(err, r.Account); err != nil {
		return starling.Account{}, err
	}
	return *r.Account, nil
}

func (c *catalog) readNetwork(ctx context.Context, ref starling.NetworkRef) (*starling.Network, error) {
	r, err := c.read(ctx, Query{What: QueryNetwork, Account: ref.Account, Network: ref.Name})
	return r.Network, orEmpty(err, r.Network)
}

// orEmpty returns err, or an error when an answer came that holds nothing.
func orEmpty[T any](err error, found *T) error {
	if err == nil && found == nil {
		return starling.Errorf(starling.Internal, "read catalog", "the manager answered without a result")
	}
	return err
}

// readAhead reads what a function is now. Its first call here would wait for that.
func (v *View) readAhead(f starling.FunctionRef) {
	v.group.Go(func(ctx context.Context) { _, _ = v.Resolve(ctx, f, starling.Latest) }) // in vain at worst: the call asks itself
}

// reached returns up to which index the feed was taken.
func (c *catalog) reached() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.to
}

// take drops what a push of the feed names.
func (c *catalog) take(p FeedPush) {
	if p.Reset {
		c.versions.dropAll()
		c.numbers.dropAll()
		c.keys.dropAll()
		c.accounts.dropAll()
		c.networks.dropAll()
	}
	for _, change := range p.Changes {
		c.drop(change)
		if c.told(change.Function) {
			c.ahead(change.Function)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.to = max(c.to, p.To)
}

// told reports whether f was deployed here and the feed has not told of it before.
func (c *catalog) told(f starling.FunctionRef) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ours := c.deployed[f]
	delete(c.deployed, f)
	return ours
}

// deploy drops what f was before and reads ahead what it is, now and when the feed has told of it: that drops it again.
func (c *catalog) deploy(f starling.FunctionRef) {
	c.mu.Lock()
	if len(c.deployed) >= deployedMax {
		clear(c.deployed)
	}
	c.deployed[f] = struct{}{}
	c.mu.Unlock()
	c.drop(Change{Function: f})
	c.ahead(f)
}

func (c *catalog) drop(change Change) {
	if f := change.Function; f != (starling.FunctionRef{}) {
		c.numbers.dropLike(numberKey{function: f}, func(k numberKey) bool { return k.function == f })
	}
	for _, id := range change.Versions {
		c.versions.drop(id)
	}
	for _, hash := range change.Keys {
		c.keys.drop(hash)
	}
	if id := change.Account; id != "" {
		c.accounts.drop(id)
		c.networks.dropLike(starling.NetworkRef{Account: id}, func(r starling.NetworkRef) bool { return r.Account == id })
	}
	if change.Network != (starling.NetworkRef{}) {
		c.networks.drop(change.Network)
	}
}

// touch drops what this node's own command made stale, before the feed tells.
func (c *catalog) touch(cmd Command) {
	raw, err := EncodeCommand(cmd)
	if err != nil {
		return
	}
	if cmd, err = DecodeCommand(raw); err != nil { // commands come as values and as pointers; decoded ones are pointers
		return
	}
	switch cmd := cmd.(type) {
	case *CreateAccount:
		c.drop(Change{Account: cmd.Account.ID})
	case *DeleteAccount:
		c.keys.dropAll()
		c.drop(Change{Account: cmd.ID})
	case *CreateKey:
		c.drop(Change{Keys: [][32]byte{cmd.Key.Hash}})
	case *DeleteKey:
		c.keys.dropAll() // the command names the key by its id only
	case *PutFunction:
		c.deploy(cmd.Function)
	case *PutNetwork:
		c.drop(Change{Network: cmd.Network.Ref})
	case *DeleteNetwork:
		c.drop(Change{Network: cmd.Ref})
	case *PublishVersion:
		c.drop(Change{Function: cmd.Function})
	case *DeleteFunction:
		c.versions.dropAll()
		c.drop(Change{Function: cmd.Function})
	}
}
