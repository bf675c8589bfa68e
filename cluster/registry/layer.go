package registry

import (
	"maps"
	"slices"

	"starling"
)

// A layer is a name with the versions that were not deleted; there is at least one.
type layer struct {
	versions  map[starling.VersionNumber]starling.Layer
	published starling.VersionNumber // the highest number given
}

// PublishLayer numbers a version of a layer. When the newest one has the same content already, that one is the answer.
func (r *Registry) PublishLayer(l starling.Layer) (starling.Layer, error) {
	const op = "publish layer"
	if err := l.Validate(); err != nil {
		return l, err
	}
	a, err := r.account(op, l.Account)
	if err != nil {
		return l, err
	}
	if l.Unpacked > starling.CodeUnpackedMax {
		return l, starling.Errorf(starling.TooLarge, op, "the layer has %d bytes of files: use at most %d", l.Unpacked, starling.CodeUnpackedMax).With("LayersTooLarge")
	}
	known := a.layers[l.Name]
	switch {
	case known == nil && len(a.layers) >= LayerMax:
		return l, starling.Errorf(starling.Overloaded, op, "account %q has %d layers, its limit: delete one first", a.ID, LayerMax).With("LayerLimit")
	case known == nil:
		known = &layer{versions: map[starling.VersionNumber]starling.Layer{}}
	default:
		if newest, ok := known.versions[known.published]; ok && sameLayer(newest, l) {
			return newest, nil
		}
		if len(known.versions) >= LayerKeepMax {
			return l, starling.Errorf(starling.Overloaded, op, "layer %q has %d versions, its limit: delete one first", l.Name, LayerKeepMax).With("LayerLimit")
		}
	}
	known.published++
	l.Version = known.published
	a.keep(known, l)
	return l, nil
}

// keep enters a version.
func (a *account) keep(known *layer, l starling.Layer) {
	if a.layers == nil {
		a.layers = map[starling.LayerName]*layer{}
	}
	a.layers[l.Name] = known
	known.versions[l.Version] = l
}

func sameLayer(a, b starling.Layer) bool {
	return a.Code == b.Code && a.Description == b.Description && slices.Equal(a.Runtimes, b.Runtimes)
}

// DeleteLayer removes one version of a layer, and with its last one the name; Conflict while the latest or a published
// snapshot of a function uses it. One that was replaced and is kept for calls in flight does not count: it knows what its layers are made of.
func (r *Registry) DeleteLayer(id starling.AccountID, ref starling.LayerRef) error {
	const op = "delete layer"
	a, err := r.account(op, id)
	if err != nil {
		return err
	}
	if _, err := a.layer(op, ref); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a.functions)) {
		if n, ok := r.userOf(a.functions[name], ref); ok {
			return starling.Errorf(starling.Conflict, op, "layer %s is used by version %s of function %q: deploy it without, or delete it, first", ref, n, name).With("LayerInUse")
		}
	}
	known := a.layers[ref.Name]
	delete(known.versions, ref.Version)
	if len(known.versions) == 0 {
		delete(a.layers, ref.Name)
	}
	return nil
}

// userOf returns the lowest number under which f uses a layer, Latest before all others.
func (r *Registry) userOf(f *function, ref starling.LayerRef) (starling.VersionNumber, bool) {
	if slices.Contains(r.versions[f.Latest].Config.Layers, ref) {
		return starling.Latest, true
	}
	for _, n := range slices.Sorted(maps.Keys(f.Versions)) {
		if slices.Contains(r.versions[f.Versions[n]].Config.Layers, ref) {
			return n, true
		}
	}
	return 0, false
}

// layer returns one version of a layer of the account.
func (a *account) layer(op string, ref starling.LayerRef) (starling.Layer, error) {
	known := a.layers[ref.Name]
	if known == nil {
		return starling.Layer{}, starling.Errorf(starling.NotFound, op, "there is no layer %q in account %q", ref.Name, a.ID).With("NoLayer")
	}
	l, ok := known.versions[ref.Version]
	if !ok {
		return starling.Layer{}, starling.Errorf(starling.NotFound, op, "layer %q has no version %d", ref.Name, ref.Version).With("NoLayer")
	}
	return l, nil
}

// layerCode returns what the layers of a put are made of, in their order. A layer that is not there, or not meant for the
// function's runtime, is Invalid: the function is, not the layer, what was asked for.
func (a *account) layerCode(op string, p Put) ([]starling.CodeHash, error) {
	var code []starling.CodeHash
	total := p.Unpacked
	for _, ref := range p.Config.Layers {
		l, err := a.layer(op, ref)
		if err != nil {
			return nil, starling.Errorf(starling.Invalid, op, "account %q has no layer %s: publish it first", a.ID, ref).With("NoLayer")
		}
		if !l.Fits(p.Config.Runtime) {
			return nil, starling.Errorf(starling.Invalid, op, "layer %s is for %v, the function's runtime is %s", ref, l.Runtimes, p.Config.Runtime).With("LayerRuntime")
		}
		total += l.Unpacked
		code = append(code, l.Code)
	}
	if len(code) > 0 && total > starling.CodeUnpackedMax {
		return nil, starling.Errorf(starling.TooLarge, op, "the function's code and its layers have %d bytes unpacked: use at most %d", total, starling.CodeUnpackedMax).With("LayersTooLarge")
	}
	return code, nil
}

// Layer returns the versions of a layer that were not deleted, the newest first; or the one that is named when n is not 0.
func (r *Registry) Layer(id starling.AccountID, name starling.LayerName, n starling.VersionNumber) ([]starling.Layer, error) {
	const op = "read layer"
	a, err := r.account(op, id)
	if err != nil {
		return nil, err
	}
	if n != 0 || a.layers[name] == nil {
		l, err := a.layer(op, starling.LayerRef{Name: name, Version: n})
		return []starling.Layer{l}, err
	}
	list := slices.Collect(maps.Values(a.layers[name].versions))
	slices.SortFunc(list, func(x, y starling.Layer) int { return int(y.Version) - int(x.Version) })
	return list, nil
}

// Layers returns one page of the newest versions of an account's layers, by name, and what to pass as after for the next;
// "" at the end.
func (r *Registry) Layers(id starling.AccountID, after string, limit int) (page []starling.Layer, next string, err error) {
	a, err := r.account("list layers", id)
	if err != nil {
		return nil, "", err
	}
	names := slices.Sorted(maps.Keys(a.layers))
	names = slices.DeleteFunc(names, func(n starling.LayerName) bool { return string(n) <= after })
	names, more := cutPage(names, limit)
	for _, name := range names {
		page = append(page, a.layers[name].versions[slices.Max(slices.Collect(maps.Keys(a.layers[name].versions)))])
	}
	if more {
		next = string(names[len(names)-1])
	}
	return page, next, nil
}

// A LayerRecord is a layer as a snapshot of the state holds it.
type LayerRecord struct {
	Versions  []starling.Layer       `cbor:"1,keyasint"` // by number, at least one
	Published starling.VersionNumber `cbor:"2,keyasint"` // the highest number given
}

// eachLayer calls f with every layer of an account, by name.
func (a *account) eachLayer(f func(record any) error) error {
	for _, name := range slices.Sorted(maps.Keys(a.layers)) {
		known := a.layers[name]
		rec := LayerRecord{Published: known.published}
		for _, n := range slices.Sorted(maps.Keys(known.versions)) {
			rec.Versions = append(rec.Versions, known.versions[n])
		}
		if err := f(rec); err != nil {
			return err
		}
	}
	return nil
}

// LoadLayer puts back one layer. See LoadAccount.
func (r *Registry) LoadLayer(rec LayerRecord) error {
	const op = "load layer"
	if len(rec.Versions) == 0 {
		return starling.Errorf(starling.Internal, op, "a layer without versions")
	}
	first := rec.Versions[0]
	a, err := r.account(op, first.Account)
	if err != nil {
		return err
	}
	if a.layers[first.Name] != nil {
		return starling.Errorf(starling.Internal, op, "layer %q is there twice", first.Name)
	}
	known := &layer{versions: map[starling.VersionNumber]starling.Layer{}, published: rec.Published}
	for _, l := range rec.Versions {
		if l.Account != first.Account || l.Name != first.Name || l.Version == 0 || l.Version > rec.Published {
			return starling.Errorf(starling.Internal, op, "version %d of layer %q does not belong to it", l.Version, first.Name)
		}
		a.keep(known, l)
	}
	return nil
}
