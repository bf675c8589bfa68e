package code

import (
	"context"
	"os"
	"sync"

	"starling"
)

// A Place is where the files of a package are: in a folder, or in a mount that stands in no namespace.
type Place struct {
	Dir   string
	Mount *os.File // nil for a folder; the store's, to be duplicated by who keeps it longer than until release
}

// A Taken is what a version is made of, where it lies on this host.
type Taken struct {
	Place
	Layers []Place // in the order of the version's: a later one lies over an earlier one
}

// Take returns the package of v and its layers, which stay until release is called. Each is fetched and made ready once however many
// ask, from this host's bucket first and then from the other nodes. A package that nobody has is NotFound; a host whose cache is full of
// packages in use, or whose disk is full, is Unavailable, and works again once there is room. Denied says that v is not placed on this host.
func (s *Store) Take(ctx context.Context, v *starling.Version) (at Taken, release func(), err error) {
	held := make([]*pack, 0, 1+len(v.LayerCode))
	give := sync.OnceFunc(func() {
		for _, p := range held {
			s.drop(p)
		}
	})
	for i := range 1 + len(v.LayerCode) { // all are under way before any is waited for
		hash := v.Code
		if i > 0 {
			hash = v.LayerCode[i-1]
		}
		k := key{v.Function.Account, hash}
		if err = k.validate(); err != nil {
			break
		}
		var p *pack
		if p, err = s.hold(k, v.ID, nil); err != nil {
			break
		}
		held = append(held, p)
	}
	for i := 0; i < len(held) && err == nil; i++ {
		var place Place
		place, err = held[i].wait(ctx)
		if i == 0 {
			at.Place = place
		} else {
			at.Layers = append(at.Layers, place)
		}
	}
	if err != nil {
		give()
		return Taken{}, nil, err
	}
	return at, give, nil
}

// wait returns where p is, once it is ready.
func (p *pack) wait(ctx context.Context) (Place, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return Place{}, starling.Errorf(starling.Timeout, "fetch code", "the package did not come in time: %w", ctx.Err())
	}
	return Place{p.dir, p.mount}, p.err
}
