// Package registry is the catalog that all nodes agree on: accounts with their keys and layers, functions with their
// versions, and the members with the tokens by which they join. It is pure.
//
// Everything a tenant owns lies under its account, so that no lookup can cross from one tenant to another.
// Two maps are keyed otherwise, because their keys are unique in the cluster and are looked up before or
// without the account: keys by the hash of their secret, versions by their id.
//
// Every change is safe to apply twice: a command whose outcome was lost is proposed again, and finds its own
// work done. Deletions answer NotFound the second time; the proposer knows what it asked before.
package registry

import (
	"maps"
	"slices"

	"starling"
)

// The limits of the catalog. Each is answered with Overloaded, and nothing is changed.
const (
	AccountMax    = 100_000
	KeyMax        = 100    // keys of one account
	FunctionMax   = 1000   // functions of one account
	VersionMax    = 1000   // published versions of one function
	FloorMax      = 10_000 // functions of the cluster that want instances at all times
	LayerMax      = 100    // layers of one account
	LayerKeepMax  = 100    // versions of one layer that were not deleted
	SupersededMax = 8      // replaced snapshots of one function that calls in flight may still name
	PageMax       = 1000   // entries of one page
	PageDefault   = 100
)

// A Registry is the catalog. It has one caller at a time.
type Registry struct {
	accounts map[starling.AccountID]*account
	names    []starling.AccountID // of accounts, sorted
	keys     map[[32]byte]starling.Key
	versions map[starling.VersionID]*starling.Version // values are never edited
	floors   map[starling.VersionID]bool              // latest snapshots that want instances at all times
	policy   Policy
}

// An account is a tenant with what it owns.
type account struct {
	starling.Account
	keys      map[string][32]byte // by key id
	functions map[starling.FunctionName]*function
	layers    map[starling.LayerName]*layer              // nil for none
	networks  map[starling.NetworkName]*starling.Network // values are never edited
	reserved  int                                        // instances that they want at all times, each at its peak; at most ConcurrencyMax
}

// New returns an empty catalog.
func New() *Registry {
	return &Registry{
		accounts: map[starling.AccountID]*account{},
		keys:     map[[32]byte]starling.Key{},
		versions: map[starling.VersionID]*starling.Version{},
		floors:   map[starling.VersionID]bool{},
	}
}

// CreateAccount adds a tenant. An unset concurrency limit becomes the default.
func (r *Registry) CreateAccount(a starling.Account) (starling.Account, error) {
	const op = "create account"
	if err := a.ID.Validate(); err != nil {
		return a, err
	}
	if a.ConcurrencyMax == 0 {
		a.ConcurrencyMax = starling.ConcurrencyMax
	}
	if a.ConcurrencyMax < 1 || a.ConcurrencyMax > 1000*starling.ConcurrencyMax {
		return a, starling.Errorf(starling.Invalid, op, "concurrencyMax %d: use 1-%d", a.ConcurrencyMax, 1000*starling.ConcurrencyMax)
	}
	if err := (starling.IsolationPolicy{Default: a.Isolation, Least: a.IsolationLeast}).Validate(); err != nil {
		return a, err
	}
	if old := r.accounts[a.ID]; old != nil {
		if old.Account == a {
			return a, nil
		}
		return a, starling.Errorf(starling.Conflict, op, "account %q exists already: choose another name", a.ID)
	}
	if len(r.accounts) >= AccountMax {
		return a, starling.Errorf(starling.Overloaded, op, "the cluster holds %d accounts, its limit: delete one first", AccountMax).With("AccountLimit")
	}
	r.insert(a)
	return a, nil
}

// insert adds an account that is known to be new.
func (r *Registry) insert(a starling.Account) {
	r.accounts[a.ID] = &account{Account: a, keys: map[string][32]byte{}, functions: map[starling.FunctionName]*function{},
		networks: map[starling.NetworkName]*starling.Network{}}
	i, _ := slices.BinarySearch(r.names, a.ID)
	r.names = slices.Insert(r.names, i, a.ID)
}

// DeleteAccount removes a tenant, its networks and its keys, whose hashes it returns; Conflict while it owns functions or layers.
func (r *Registry) DeleteAccount(id starling.AccountID) ([][32]byte, error) {
	const op = "delete account"
	a, err := r.account(op, id)
	if err != nil {
		return nil, err
	}
	if n := len(a.functions); n > 0 {
		return nil, starling.Errorf(starling.Conflict, op, "account %q owns %d functions: delete them first", id, n)
	}
	if n := len(a.layers); n > 0 {
		return nil, starling.Errorf(starling.Conflict, op, "account %q owns %d layers: delete them first", id, n)
	}
	hashes := make([][32]byte, 0, len(a.keys))
	for _, keyID := range slices.Sorted(maps.Keys(a.keys)) {
		hashes = append(hashes, a.keys[keyID])
		delete(r.keys, a.keys[keyID])
	}
	delete(r.accounts, id)
	i, _ := slices.BinarySearch(r.names, id)
	r.names = slices.Delete(r.names, i, i+1)
	return hashes, nil
}

// Account returns a tenant.
func (r *Registry) Account(id starling.AccountID) (starling.Account, error) {
	a, err := r.account("read account", id)
	if err != nil {
		return starling.Account{}, err
	}
	return a.Account, nil
}

func (r *Registry) account(op string, id starling.AccountID) (*account, error) {
	a := r.accounts[id]
	if a == nil {
		return nil, starling.Errorf(starling.NotFound, op, "there is no account %q", id)
	}
	return a, nil
}

// Accounts returns one page of tenants, by name, and what to pass as after for the next; "" at the end.
func (r *Registry) Accounts(after string, limit int) (page []starling.Account, next string) {
	i, found := slices.BinarySearch(r.names, starling.AccountID(after))
	if found {
		i++
	}
	names, more := cutPage(r.names[i:], limit)
	for _, name := range names {
		page = append(page, r.accounts[name].Account)
	}
	if more {
		next = string(names[len(names)-1])
	}
	return page, next
}

// cutPage returns the first page of a sorted list and whether more follows.
func cutPage[T any](all []T, limit int) (page []T, more bool) {
	if limit <= 0 {
		limit = PageDefault
	}
	limit = min(limit, PageMax)
	if len(all) <= limit {
		return all, false
	}
	return all[:limit], true
}

// CreateKey adds an API key to its account.
func (r *Registry) CreateKey(k starling.Key) error {
	const op = "create key"
	if k.Hash == ([32]byte{}) || k.ID == "" || len(k.ID) > 64 {
		return starling.Errorf(starling.Invalid, op, "a key needs the hash of its secret and an id of 1-64 bytes")
	}
	if k.Role != starling.KeyAdmin && k.Role != starling.KeyUser {
		return starling.Errorf(starling.Invalid, op, "%q is no role of a key: use %q or %q", k.Role, starling.KeyAdmin, starling.KeyUser)
	}
	a, err := r.account(op, k.Account)
	if err != nil {
		return err
	}
	if old, ok := r.keys[k.Hash]; ok && old == k {
		return nil
	} else if ok {
		return starling.Errorf(starling.Conflict, op, "this secret is in use already: draw another")
	}
	if _, ok := a.keys[k.ID]; ok {
		return starling.Errorf(starling.Conflict, op, "account %q has a key %q already: draw another secret", k.Account, k.ID)
	}
	if len(a.keys) >= KeyMax {
		return starling.Errorf(starling.Overloaded, op, "account %q has %d keys, its limit: delete one first", k.Account, KeyMax).With("KeyLimit")
	}
	a.keys[k.ID] = k.Hash
	r.keys[k.Hash] = k
	return nil
}

// DeleteKey revokes a key by its id and returns its hash.
func (r *Registry) DeleteKey(id starling.AccountID, keyID string) ([32]byte, error) {
	const op = "delete key"
	a, err := r.account(op, id)
	if err != nil {
		return [32]byte{}, err
	}
	hash, ok := a.keys[keyID]
	if !ok {
		return [32]byte{}, starling.Errorf(starling.NotFound, op, "account %q has no key %q", id, keyID)
	}
	delete(a.keys, keyID)
	delete(r.keys, hash)
	return hash, nil
}

// Key finds an API key by the hash of its secret. The error does not tell a wrong key from a revoked one.
func (r *Registry) Key(hash [32]byte) (starling.Key, error) {
	k, ok := r.keys[hash]
	if !ok {
		return k, starling.Errorf(starling.NotFound, "read key", "there is no such key")
	}
	return k, nil
}

// Keys returns all keys of an account, by id.
func (r *Registry) Keys(id starling.AccountID) ([]starling.Key, error) {
	a, err := r.account("list keys", id)
	if err != nil {
		return nil, err
	}
	keys := make([]starling.Key, 0, len(a.keys))
	for _, keyID := range slices.Sorted(maps.Keys(a.keys)) {
		keys = append(keys, r.keys[a.keys[keyID]])
	}
	return keys, nil
}
