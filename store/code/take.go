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

// A Disk is a package as the file under a disk: the description of its file system, its content, zeros.
type Disk struct {
	File *os.File // the store's, as a Mount is. To be handed on, never read by this process: the reader would wait for the helper
	Meta int64    // bytes of the description
	Data int64    // bytes of the content
}

// A Taken is what a version is made of, where it lies on this host.
type Taken struct {
	Place
	Disk   *Disk   // instead of the place, of a version that runs in microVMs
	Layers []Place // in the order of the version's: a later one lies over an earlier one
	// Lost is closed, before release, when part of it was asked for and cannot be had: what runs of it must end. Who asked is told after.
	Lost <-chan struct{}
}

// Take returns the package of v and its layers, which stay until release is called. Each is fetched and made ready once however many
// ask, from this host's bucket first and then from the other nodes. A package that nobody has is NotFound; a host whose cache is full of
// packages in use, or whose disk is full, is Unavailable, and works again once there is room. Denied says that v is not placed on this host.
func (s *Store) Take(ctx context.Context, v *starling.Version) (at Taken, release func(), err error) {
	held := make([]*pack, 0, 1+len(v.LayerCode))
	lost := make(chan struct{})
	give := sync.OnceFunc(func() {
		for _, p := range held {
			s.drop(p, lost)
		}
	})
	form := s.formOf(v)
	for i := range 1 + len(v.LayerCode) { // all are under way before any is waited for
		hash := v.Code
		if i > 0 {
			hash = v.LayerCode[i-1]
		}
		k := packKey{key{v.Function.Account, hash}, form}
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
	if p := held[0]; p.form == asDisk && p.mount != nil {
		at.Disk, at.Place = &Disk{p.mount, int64(p.blocks.index.Meta), int64(p.blocks.index.Data)}, Place{}
	}
	at.Lost = lost
	s.watchLoss(held, lost)
	return at, give, nil
}

// form is that of packages for all but microVMs.
func (s *Store) form() form {
	if s.cfg.Images != nil && s.cfg.Images.Mounts {
		return asMount
	}
	return asFolder
}

// formOf is that of v's packages. A microVM has one disk for code: its image of a package with layers is made of folders.
func (s *Store) formOf(v *starling.Version) form {
	switch im := s.cfg.Images; {
	case v.Isolation() != starling.IsolationKata:
		return s.form()
	case im != nil && im.DiskBytes > 0 && s.helper != nil && len(v.LayerCode) == 0:
		return asDisk
	}
	return asFolder
}

// watchLoss has lost closed when one of packs is lost while it is held.
func (s *Store) watchLoss(packs []*pack, lost chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lose := sync.OnceFunc(func() { close(lost) })
	for _, p := range packs {
		switch {
		case p.shown == nil:
		case p.shown.Broken():
			lose()
		default:
			if p.losers == nil {
				p.losers = map[chan struct{}]func(){}
			}
			p.losers[lost] = lose
		}
	}
}

// lose tells those who took p that it cannot be read any more.
func (s *Store) lose(p *pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lose := range p.losers {
		lose()
	}
	p.losers = nil
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
