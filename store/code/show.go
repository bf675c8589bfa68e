package code

import (
	"context"
	"io"
	"os"
	"time"

	"starling"
	"starling/store/image"
	"starling/store/image/tree"
	"starling/store/lazy"
)

const (
	inodeBytes  = 1 << 10          // of memory for one entry of a package in memory, beside its content
	calmMax     = 20               // times RestWait, for a reader who asks all the time
	restTime    = 10 * time.Minute // to fetch what nobody touched; it goes on when the package is next needed
	keepReading = 16               // opened blocks in memory while a package is unpacked
)

// makeImage makes a package ready from its image. fresh is the key, when this node has just made the image.
func (s *Store) makeImage(ctx context.Context, k key, p *pack, version starling.VersionID, fresh []byte) error {
	b, err := s.image(ctx, k)
	if err != nil {
		return err
	}
	p.blocks = b // given back with the pack, whatever happens
	secret := fresh
	if secret == nil {
		if secret, err = s.releaseKey(ctx, k, version, b.index.Wrapped); err != nil {
			return err
		}
	}
	c, err := image.NewCipher(secret, k.subject())
	if err != nil {
		return err
	}
	if err := c.Check(b.index); err != nil {
		return starling.Errorf(starling.Unavailable, "fetch code", "the image of package %s is not the one that was made of it: %w", k.hash, err).With("BadImage")
	}
	im := s.cfg.Images
	if p.form == asDisk && b.index.Size() > im.DiskBytes {
		return starling.Errorf(starling.Unavailable, "fetch code", "the package's image has %d bytes, and the code disk of a microVM %d: make the package smaller", b.index.Size(), im.DiskBytes).With("CodeTooLarge")
	}
	if p.form == asFolder {
		return s.inFolder(ctx, p, c)
	}
	if p.form == asMount && b.index.Size() <= im.SmallMax && int(b.index.Entries) <= im.SmallMany && s.reserveMemory(p, b.index) {
		return s.inMemory(ctx, p, c)
	}
	if s.helper != nil {
		return s.onDemand(ctx, k, p, secret)
	}
	return s.inFolder(ctx, p, c)
}

// inMemory fetches the whole image and unpacks it into memory that only this node and the sandboxes it is given to see.
func (s *Store) inMemory(ctx context.Context, p *pack, c *image.Cipher) error {
	b := p.blocks
	if err := b.complete(ctx); err != nil {
		return err
	}
	m, path, err := lazy.Memory(int64(b.index.Data)+1<<20, 0)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(path)
	if err == nil {
		err = unpackImage(ctx, root, b, c)
		root.Close()
	}
	if err == nil {
		err = lazy.Seal(m)
	}
	if err != nil {
		m.Close()
		return err
	}
	p.mount = m
	s.letGo(p)
	s.count.unpacked.Inc()
	return nil
}

// letGo gives back the blocks of a package that is unpacked: their file may go when room is needed.
func (s *Store) letGo(p *pack) {
	s.leave(p.blocks)
	p.blocks = nil
}

// inFolder fetches the whole image and unpacks it on disk, for sandboxes that take neither mounts nor disks.
func (s *Store) inFolder(ctx context.Context, p *pack, c *image.Cipher) error {
	b := p.blocks
	if err := b.complete(ctx); err != nil {
		return err
	}
	if err := s.reserve(p, int64(b.index.Data)+4096*int64(b.index.Entries)); err != nil {
		return err
	}
	if err := s.unpackTo(p, func(root *os.Root) error { return unpackImage(ctx, root, b, c) }); err != nil {
		return err
	}
	s.letGo(p)
	return nil
}

// unpackImage writes the files of an image below root.
func unpackImage(ctx context.Context, root *os.Root, b *blocks, c *image.Cipher) error {
	r := image.NewReader(c, b.index.Size(), keepReading, func(i int) ([]byte, error) { return b.read(i, 1) })
	meta, data := int64(b.index.Meta), int64(b.index.Data)
	return tree.Unpack(ctx, io.NewSectionReader(r, 0, meta), io.NewSectionReader(r, meta, data), root)
}

// onDemand shows the image before its blocks are here: the description is fetched, then what is touched, then the rest.
func (s *Store) onDemand(ctx context.Context, k key, p *pack, secret []byte) error {
	b := p.blocks
	for first := 0; first < b.index.MetaBlocks(); first += chunk {
		if err := b.row(ctx, first); err != nil {
			return err
		}
	}
	spec := lazy.Spec{Subject: k.subject(), Key: secret, Index: b.index, Blocks: b.file, Fetch: b.need, Lost: func() { s.lose(p) }}
	if p.form == asDisk {
		spec.Disk = s.cfg.Images.DiskBytes
	}
	shown, err := s.helper.Open(ctx, spec)
	if err != nil {
		return err
	}
	p.shown, p.mount = shown, shown.Mount
	s.count.shown.Inc()
	rest, stop := context.WithTimeout(s.ctx, restTime)
	p.stop = stop
	p.rest = make(chan struct{})
	s.working.Add(1)
	go func() {
		defer s.working.Done()
		defer close(p.rest)
		defer stop()
		b.awaitCalm(rest, s.cfg.Images.RestWait)
		if rest.Err() != nil {
			return
		}
		if err := b.complete(rest); err != nil && rest.Err() == nil {
			s.cfg.Log.Warn("fetch the rest of an image; what is touched is still fetched", "account", k.account, "hash", k.hash, "error", err)
		}
	}()
	return nil
}

// awaitCalm returns when nobody has asked for a block for so long, or ctx ended. How long a first call reads differs: an emulated
// machine takes seconds.
func (b *blocks) awaitCalm(ctx context.Context, wait time.Duration) {
	for left, last := calmMax, int64(-1); left > 0 && b.needs.Load() != last; left-- {
		last = b.needs.Load()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// reserveMemory counts a package against the memory of packages, after those that nobody uses have made room.
func (s *Store) reserveMemory(p *pack, x *image.Index) bool {
	need := int64(x.Data) + inodeBytes*int64(x.Entries)
	var victims []*pack
	s.mu.Lock()
	for s.memory+need > s.cfg.Images.MemoryMax {
		v := s.victim(func(p *pack) bool { return p.memory > 0 })
		if v == nil {
			break
		}
		victims = append(victims, v)
	}
	fits := s.memory+need <= s.cfg.Images.MemoryMax
	if fits {
		p.memory = need
		s.memory += need
	}
	s.mu.Unlock()
	for _, v := range victims {
		s.end(v)
		s.count.evicted.Inc()
	}
	return fits
}

// idle has a large package that nobody uses shown a while longer. The caller holds mu.
func (s *Store) idle(p *pack) {
	if p.shown == nil {
		return
	}
	p.timer = time.AfterFunc(s.cfg.Images.IdleTime, func() {
		s.mu.Lock()
		unused := p.refs == 0 && s.packages[p.packKey] == p
		if unused {
			s.strike(p)
		}
		s.mu.Unlock()
		if unused {
			s.end(p)
		}
	})
}

// end gives back what a pack that is in no book any more has, beside its folder.
func (s *Store) end(p *pack) {
	if p.stop != nil {
		p.stop()
		<-p.rest
	}
	switch {
	case p.shown != nil:
		p.shown.Close()
	case p.mount != nil:
		p.mount.Close()
	}
	if p.blocks != nil {
		s.leave(p.blocks)
	}
}
