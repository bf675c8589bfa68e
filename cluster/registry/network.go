package registry

import (
	"maps"
	"slices"

	"starling"
)

// PutNetwork creates a network or replaces it; with create it is a Conflict when another one of the name exists.
func (r *Registry) PutNetwork(n starling.Network, create bool) (*starling.Network, error) {
	const op = "create network"
	n = n.WithDefaults()
	if err := n.Validate(); err != nil {
		return nil, err
	}
	a, err := r.account(op, n.Ref.Account)
	if err != nil {
		return nil, err
	}
	old := a.networks[n.Ref.Name]
	switch {
	case old != nil && sameNetwork(*old, n):
		return old, nil
	case old != nil && create:
		return nil, starling.Errorf(starling.Conflict, op, "network %q exists already: choose another name, or delete it first", n.Ref)
	case old == nil && len(a.networks) >= starling.NetworkMax:
		return nil, starling.Errorf(starling.Overloaded, op, "account %q has %d networks, its limit: delete one first", a.ID, starling.NetworkMax).With("NetworkLimit")
	}
	if old != nil {
		n.Created = old.Created
	}
	a.networks[n.Ref.Name] = &n
	return &n, nil
}

// sameNetwork ignores when they were made.
func sameNetwork(a, b starling.Network) bool {
	return a.Ref == b.Ref && a.Egress == b.Egress && a.ConnMax == b.ConnMax && a.RateMax == b.RateMax && slices.Equal(a.CIDRs, b.CIDRs) &&
		slices.Equal(a.DNS, b.DNS) && slices.Equal(a.Allow, b.Allow) && slices.Equal(a.Deny, b.Deny)
}

// DeleteNetwork removes a network; Conflict while the latest snapshot or a published version of a function names it.
func (r *Registry) DeleteNetwork(ref starling.NetworkRef) error {
	const op = "delete network"
	if _, err := r.network(op, ref); err != nil {
		return err
	}
	a := r.accounts[ref.Account]
	for _, name := range slices.Sorted(maps.Keys(a.functions)) {
		f := a.functions[name]
		for _, id := range append(slices.Sorted(maps.Values(f.Versions)), f.Latest) {
			if r.versions[id].Config.Network == ref.Name {
				return starling.Errorf(starling.Conflict, op, "function %q has network %q in version %s: delete it, or give it another", f.Ref, ref.Name, r.versions[id].Number)
			}
		}
	}
	delete(a.networks, ref.Name)
	return nil
}

// Network returns one network. It is shared: do not change it.
func (r *Registry) Network(ref starling.NetworkRef) (*starling.Network, error) {
	return r.network("read network", ref)
}

// Networks returns all networks of an account, by name.
func (r *Registry) Networks(id starling.AccountID) ([]starling.Network, error) {
	a, err := r.account("list networks", id)
	if err != nil {
		return nil, err
	}
	out := make([]starling.Network, 0, len(a.networks))
	for _, name := range slices.Sorted(maps.Keys(a.networks)) {
		out = append(out, *a.networks[name])
	}
	return out, nil
}

func (r *Registry) network(op string, ref starling.NetworkRef) (*starling.Network, error) {
	a, err := r.account(op, ref.Account)
	if err != nil {
		return nil, err
	}
	n := a.networks[ref.Name]
	if n == nil {
		return nil, starling.Errorf(starling.NotFound, op, "there is no network %q", ref)
	}
	return n, nil
}

// admitNetwork refuses a version that names a network which its account does not have.
func (a *account) admitNetwork(op string, name starling.NetworkName) error {
	if name == starling.NoNetwork || name == starling.Internet || a.networks[name] != nil {
		return nil
	}
	return starling.Errorf(starling.Invalid, op, "account %q has no network %q: create it first, or use none or internet", a.ID, name).With("NoNetwork")
}

// LoadNetwork puts back one network. See LoadAccount.
func (r *Registry) LoadNetwork(n starling.Network) error {
	a, err := r.account("load network", n.Ref.Account)
	if err != nil {
		return err
	}
	if a.networks[n.Ref.Name] != nil {
		return starling.Errorf(starling.Internal, "load network", "network %q is there twice", n.Ref)
	}
	a.networks[n.Ref.Name] = &n
	return nil
}
