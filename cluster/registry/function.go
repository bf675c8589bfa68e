package registry

import (
	"maps"
	"slices"

	"starling"
)

// A function is a name with the snapshots it still answers for.
type function struct {
	starling.Function
	superseded []starling.VersionID // replaced but kept for calls in flight, oldest first, ≤ SupersededMax
	published  starling.VersionNumber
}

// A Put is one wish to create a function or to replace its latest snapshot.
type Put struct {
	ID       starling.VersionID // of the new snapshot, never used before
	Function starling.FunctionRef
	Config   starling.Config
	Code     starling.CodeHash
	CodeSize int64 // bytes, 1 to starling.CodeZipMax
	Now      int64 // Unix seconds
	Create   bool  // Conflict when it exists
	Update   bool  // NotFound when it does not
	Expect   starling.VersionID
	Unpacked int64 // bytes of the package's files; for a function with layers only
}

// PutFunction creates a function or replaces its latest snapshot. It returns the snapshot and which older one
// was forgotten, 0 for none. A put that finds its own content made at its own second is a repeat of itself
// and answers what the first one made.
func (r *Registry) PutFunction(p Put) (*starling.Version, starling.VersionID, error) {
	const op = "deploy function"
	p.Config = p.Config.WithDefaults()
	if err := p.validate(op); err != nil {
		return nil, 0, err
	}
	a, err := r.account(op, p.Function.Account)
	if err != nil {
		return nil, 0, err
	}
	if p.Config.Isolation, err = r.policyOf(a).Resolve(p.Config.Isolation); err != nil {
		return nil, 0, err
	}
	layers, err := a.layerCode(op, p)
	if err != nil {
		return nil, 0, err
	}
	p.Config.Network = p.Config.Network.Stored()
	if err := a.admitNetwork(op, p.Config.Network); err != nil {
		return nil, 0, err
	}
	f := a.functions[p.Function.Name]
	if f != nil {
		if latest := r.versions[f.Latest]; latest.Created == p.Now && sameContent(latest, p.Config, p.Code) {
			return latest, 0, nil
		}
	}
	switch {
	case f != nil && p.Create:
		return nil, 0, starling.Errorf(starling.Conflict, op, "function %q exists already: update it or choose another name", p.Function)
	case f == nil && (p.Update || p.Expect != 0):
		return nil, 0, starling.Errorf(starling.NotFound, op, "there is no function %q: create it first", p.Function)
	case p.Expect != 0 && f.Latest != p.Expect:
		return nil, 0, starling.Errorf(starling.Conflict, op, "function %q changed meanwhile: read it again", p.Function)
	case f == nil && len(a.functions) >= FunctionMax:
		return nil, 0, starling.Errorf(starling.Overloaded, op, "account %q has %d functions, its limit: delete one first", a.ID, FunctionMax).With("FunctionLimit")
	}
	if err := r.admitFloor(op, a, f, &p.Config); err != nil {
		return nil, 0, err
	}
	if f == nil {
		f = &function{Function: starling.Function{Ref: p.Function, Created: p.Now, Versions: map[starling.VersionNumber]starling.VersionID{}}}
		a.functions[p.Function.Name] = f
	}
	v := &starling.Version{ID: p.ID, Function: p.Function, Number: starling.Latest, Config: p.Config, Code: p.Code, CodeSize: p.CodeSize, Created: p.Now, LayerCode: layers}
	return v, r.replace(f, v), nil
}

// replace makes v the latest snapshot and forgets the oldest superseded one when there are too many.
func (r *Registry) replace(f *function, v *starling.Version) (forgotten starling.VersionID) {
	if f.Latest != 0 {
		f.superseded = append(f.superseded, f.Latest)
	}
	if len(f.superseded) > SupersededMax {
		forgotten = f.superseded[0]
		f.superseded = slices.Delete(f.superseded, 0, 1)
		delete(r.versions, forgotten)
	}
	r.dropFloor(r.versions[f.Latest])
	f.Latest, f.Updated = v.ID, v.Created
	r.versions[v.ID] = v
	r.addFloor(v)
	return forgotten
}

func (p *Put) validate(op string) error {
	if err := p.Function.Name.Validate(); err != nil {
		return err
	}
	if err := p.Config.Validate(); err != nil {
		return err
	}
	if err := p.Code.Validate(); err != nil {
		return err
	}
	if p.CodeSize < 1 || p.CodeSize > starling.CodeZipMax {
		return starling.Errorf(starling.TooLarge, op, "the package has %d bytes: use 1-%d", p.CodeSize, starling.CodeZipMax)
	}
	return nil
}

func sameContent(v *starling.Version, c starling.Config, code starling.CodeHash) bool {
	env := maps.Equal(v.Config.Env, c.Env)
	a, b := v.Config, c
	return env && v.Code == code && a.Runtime == b.Runtime && a.Handler == b.Handler && a.MemoryMiB == b.MemoryMiB &&
		a.TimeoutMS == b.TimeoutMS && a.Concurrency == b.Concurrency && a.InstanceMax == b.InstanceMax && a.Description == b.Description &&
		a.Isolation == b.Isolation && a.Network == b.Network && a.Provisioned == b.Provisioned && slices.Equal(a.Schedule, b.Schedule) && slices.Equal(a.Layers, b.Layers)
}

// PublishVersion numbers a copy of the latest snapshot, under id. When the newest published version has the
// same content already, that one is the answer.
func (r *Registry) PublishVersion(id starling.VersionID, ref starling.FunctionRef, now int64) (*starling.Version, error) {
	const op = "publish version"
	f, err := r.function(op, ref)
	if err != nil {
		return nil, err
	}
	latest := r.versions[f.Latest]
	if newest := r.versions[f.Versions[f.published]]; newest != nil && sameContent(newest, latest.Config, latest.Code) {
		return newest, nil
	}
	if len(f.Versions) >= VersionMax {
		return nil, starling.Errorf(starling.Overloaded, op, "function %q has %d published versions, its limit", ref, VersionMax).With("VersionLimit")
	}
	v := *latest
	f.published++
	v.ID, v.Number, v.Created = id, f.published, now
	f.Versions[v.Number] = id
	r.versions[id] = &v
	return &v, nil
}

// DeleteFunction removes a function and returns the ids of its snapshots, all of which are gone, in order.
func (r *Registry) DeleteFunction(ref starling.FunctionRef) ([]starling.VersionID, error) {
	f, err := r.function("delete function", ref)
	if err != nil {
		return nil, err
	}
	r.dropFloor(r.versions[f.Latest])
	gone := f.snapshots()
	for _, id := range gone {
		delete(r.versions, id)
	}
	delete(r.accounts[ref.Account].functions, ref.Name)
	return gone, nil
}

// snapshots returns the ids of everything the function answers for, in order.
func (f *function) snapshots() []starling.VersionID {
	ids := append(slices.Collect(maps.Values(f.Versions)), f.superseded...)
	ids = append(ids, f.Latest)
	slices.Sort(ids)
	return ids
}

func (r *Registry) function(op string, ref starling.FunctionRef) (*function, error) {
	a, err := r.account(op, ref.Account)
	if err != nil {
		return nil, err
	}
	f := a.functions[ref.Name]
	if f == nil {
		return nil, starling.Errorf(starling.NotFound, op, "there is no function %q", ref)
	}
	return f, nil
}

// Version returns one snapshot. It is shared: do not change it.
func (r *Registry) Version(id starling.VersionID) (*starling.Version, error) {
	v := r.versions[id]
	if v == nil {
		return nil, starling.Errorf(starling.NotFound, "read version", "there is no version with id %d", id)
	}
	return v, nil
}

// Resolve returns the snapshot that a function has under a number. It is shared: do not change it.
func (r *Registry) Resolve(ref starling.FunctionRef, n starling.VersionNumber) (*starling.Version, error) {
	const op = "resolve version"
	f, err := r.function(op, ref)
	if err != nil {
		return nil, err
	}
	if n == starling.Latest {
		return r.versions[f.Latest], nil
	}
	v := r.versions[f.Versions[n]]
	if v == nil {
		return nil, starling.Errorf(starling.NotFound, op, "function %q has no version %s", ref, n)
	}
	return v, nil
}

// Function returns a function and its snapshots: the latest first, then the published ones by number.
func (r *Registry) Function(ref starling.FunctionRef) (*starling.Function, []starling.Version, error) {
	f, err := r.function("read function", ref)
	if err != nil {
		return nil, nil, err
	}
	c := f.Function
	c.Versions = maps.Clone(f.Versions)
	versions := []starling.Version{*r.versions[f.Latest]}
	for _, n := range slices.Sorted(maps.Keys(f.Versions)) {
		versions = append(versions, *r.versions[f.Versions[n]])
	}
	return &c, versions, nil
}

// Functions returns one page of the latest snapshots of an account's functions, by name, and what to pass as
// after for the next page; "" at the end.
func (r *Registry) Functions(id starling.AccountID, after string, limit int) (page []starling.Version, next string, err error) {
	a, err := r.account("list functions", id)
	if err != nil {
		return nil, "", err
	}
	var names []starling.FunctionName
	for name := range a.functions {
		if string(name) > after {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names, more := cutPage(names, limit)
	for _, name := range names {
		page = append(page, *r.versions[a.functions[name].Latest])
	}
	if more {
		next = string(names[len(names)-1])
	}
	return page, next, nil
}
