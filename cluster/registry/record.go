package registry

import (
	"maps"
	"slices"

	"starling"
)

// A FunctionRecord is a function as a snapshot of the state holds it.
type FunctionRecord struct {
	Function   starling.Function      `cbor:"1,keyasint"`
	Superseded []starling.VersionID   `cbor:"2,keyasint"`
	Published  starling.VersionNumber `cbor:"3,keyasint"` // the highest number ever given
}

// Each calls f with every record of the catalog in an order that depends on its content only: an account
// before its keys, its keys before its layers, these before its networks and these before its functions, a function before its
// versions. A record is a starling.Account, a starling.Key, a LayerRecord, a starling.Network, a FunctionRecord or a *starling.Version.
func (r *Registry) Each(f func(record any) error) error {
	for _, name := range r.names {
		a := r.accounts[name]
		if err := f(a.Account); err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(a.keys)) {
			if err := f(r.keys[a.keys[id]]); err != nil {
				return err
			}
		}
		if err := a.eachLayer(f); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(a.networks)) {
			if err := f(*a.networks[name]); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(a.functions)) {
			if err := r.eachOf(a.functions[name], f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Registry) eachOf(fn *function, f func(record any) error) error {
	if err := f(FunctionRecord{Function: fn.Function, Superseded: fn.superseded, Published: fn.published}); err != nil {
		return err
	}
	for _, id := range fn.snapshots() {
		if err := f(r.versions[id]); err != nil {
			return err
		}
	}
	return nil
}

// LoadAccount, LoadKey, LoadFunction and LoadVersion put records back in the order of Each. They check that
// what a record belongs to came before it and that it is there once; Check tells whether anything is missing.
func (r *Registry) LoadAccount(a starling.Account) error {
	if r.accounts[a.ID] != nil {
		return starling.Errorf(starling.Internal, "load account", "account %q is there twice", a.ID)
	}
	r.insert(a)
	return nil
}

// LoadKey puts back one key. See LoadAccount.
func (r *Registry) LoadKey(k starling.Key) error {
	a, err := r.account("load key", k.Account)
	if err != nil {
		return err
	}
	if _, ok := r.keys[k.Hash]; ok || a.keys[k.ID] != ([32]byte{}) {
		return starling.Errorf(starling.Internal, "load key", "key %q is there twice", k.ID)
	}
	a.keys[k.ID] = k.Hash
	r.keys[k.Hash] = k
	return nil
}

// LoadFunction puts back one function without its versions. See LoadAccount.
func (r *Registry) LoadFunction(rec FunctionRecord) error {
	a, err := r.account("load function", rec.Function.Ref.Account)
	if err != nil {
		return err
	}
	if a.functions[rec.Function.Ref.Name] != nil {
		return starling.Errorf(starling.Internal, "load function", "function %q is there twice", rec.Function.Ref)
	}
	if rec.Function.Versions == nil {
		rec.Function.Versions = map[starling.VersionNumber]starling.VersionID{}
	}
	a.functions[rec.Function.Ref.Name] = &function{Function: rec.Function, superseded: rec.Superseded, published: rec.Published}
	return nil
}

// LoadVersion puts back one snapshot. See LoadAccount.
func (r *Registry) LoadVersion(v *starling.Version) error {
	f, err := r.function("load version", v.Function)
	if err != nil {
		return err
	}
	if r.versions[v.ID] != nil {
		return starling.Errorf(starling.Internal, "load version", "version %d is there twice", v.ID)
	}
	r.versions[v.ID] = v
	if f.Latest == v.ID {
		r.addFloor(v)
	}
	return nil
}

// LoadNode and LoadToken put back members; the counters LastNode and LastReplica are the caller's to set.
func (m *Members) LoadNode(n starling.Node) { m.nodes[n.ID] = n }

// LoadToken puts back one token.
func (m *Members) LoadToken(t Token) { m.tokens[t.Hash] = t }

// Check reports the first broken invariant: every function's snapshots exist, and no others do.
func (r *Registry) Check() error {
	const op = "check catalog"
	count := 0
	for _, name := range r.names {
		a := r.accounts[name]
		for _, fname := range slices.Sorted(maps.Keys(a.functions)) {
			f := a.functions[fname]
			for _, id := range f.snapshots() {
				v := r.versions[id]
				if v == nil || v.Function != f.Ref {
					return starling.Errorf(starling.Internal, op, "snapshot %d of function %q is missing or another's", id, f.Ref)
				}
				count++
			}
		}
	}
	if err := r.checkFloors(); err != nil {
		return err
	}
	if count != len(r.versions) {
		return starling.Errorf(starling.Internal, op, "%d snapshots belong to no function", len(r.versions)-count)
	}
	return nil
}
