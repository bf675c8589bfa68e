package registry

import (
	"starling"
)

// A Policy is what the operator says of the isolation of all functions.
type Policy struct {
	starling.IsolationPolicy
	// SharedKernel says in words that functions of several accounts may share the kernel of a host.
	SharedKernel bool `cbor:"3,keyasint,omitempty"`
}

// SetPolicy replaces what is said of all functions. Snapshots that exist keep what they have.
func (r *Registry) SetPolicy(p Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	r.policy = p
	return nil
}

// Policy returns what is said of all functions.
func (r *Registry) Policy() Policy { return r.policy }

// SetIsolation replaces what is said of one account's functions. Snapshots that exist keep what they have.
func (r *Registry) SetIsolation(id starling.AccountID, p starling.IsolationPolicy) (starling.Account, error) {
	a, err := r.account("set isolation", id)
	if err != nil {
		return starling.Account{}, err
	}
	if err := p.Validate(); err != nil {
		return starling.Account{}, err
	}
	a.Isolation, a.IsolationLeast = p.Default, p.Least
	return a.Account, nil
}

// PolicyOf returns what counts for the functions of one account: its own word under the cluster's.
func (r *Registry) PolicyOf(id starling.AccountID) (starling.IsolationPolicy, error) {
	a, err := r.account("read isolation", id)
	if err != nil {
		return starling.IsolationPolicy{}, err
	}
	return r.policyOf(a), nil
}

func (r *Registry) policyOf(a *account) starling.IsolationPolicy {
	own := starling.IsolationPolicy{Default: a.Isolation, Least: a.IsolationLeast}
	return own.Under(r.policy.IsolationPolicy)
}

// AccountCount returns how many accounts there are.
func (r *Registry) AccountCount() int { return len(r.accounts) }

// Mixes reports whether functions of several accounts would share a kernel although nobody said that they may, if there were
// so many accounts. It looks through all snapshots when the policy alone does not tell.
func (r *Registry) Mixes(accounts int) bool {
	switch {
	case accounts < 2 || r.policy.SharedKernel:
		return false
	case !starling.IsolationProcess.WeakerThan(r.policy.Least):
		return true
	}
	for _, v := range r.versions { // deployed before the policy asked for more
		if v.Isolation() == starling.IsolationProcess {
			return true
		}
	}
	return false
}
