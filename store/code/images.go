package code

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"starling"
	"starling/store/image"
	"starling/store/image/tree"
)

// Images says how packages are kept and shown as sealed images. Without it packages are zips, and hosts unpack them.
type Images struct {
	Self     starling.NodeID
	Hosts    func() []Peer // living nodes with the role host, this one included: they share what they fetch
	Managers func() []Peer // nodes that keep keys, this one included if it does
	Keeper   *Keeper       // of keys; nil on a node that is no manager
	// Placed reports whether a partition of this node has placed the version on the host lately; nil without partitions.
	Placed func(version starling.VersionID, host starling.NodeID) bool
	// Mixed reports whether a living node may be of a release that knows only zips. Then uploads are kept as both. nil for never.
	Mixed func(ctx context.Context) bool
	// Helper is the command that calls lazy.Main; nil for none: then large packages are unpacked as small ones are.
	Helper []string
	// Mounts says that sandboxes take mounts that stand in no namespace. Without it packages are unpacked into folders.
	Mounts bool
	// DiskBytes is the size of the disk by which microVMs take a package, with a Helper; 0 for none. Then they get folders.
	DiskBytes int64

	MemoryMax int64         // bytes of packages unpacked in memory on this host
	SmallMax  int64         // plain bytes up to which an image is fetched whole and unpacked in memory
	SmallMany int           // entries up to which it is
	Patience  time.Duration // for so long a block that a reader waits for is asked for again: an origin that is started anew comes back
	IdleTime  time.Duration // a large package that nobody runs is shown for so long
	RestWait  time.Duration // so long nobody must have asked for a part of a large package until the rest of it is fetched: the first call comes first
}

// DefaultImages returns the limits; the rest is the caller's.
func DefaultImages() Images {
	return Images{MemoryMax: 512 << 20, SmallMax: 32 << 20, SmallMany: 4000, Patience: 3 * time.Second, IdleTime: 5 * time.Minute, RestWait: 500 * time.Millisecond}
}

// A Peer is another node, or this one.
type Peer struct {
	ID   starling.NodeID
	Addr string
}

func (k key) folder() string         { return "image/" + string(k.account) + "/" + string(k.hash) + "/" }
func (k key) index() string          { return k.folder() + "index" }
func (k key) blocks() string         { return k.folder() + "blocks" }
func (k key) subject() image.Subject { return image.Subject{Account: k.account, Hash: k.hash} }

// A sealed is a package on its way to a bucket or a peer.
type sealed struct {
	index *image.Index
	file  *os.File // the sealed blocks, without a name
	key   []byte   // nil where only the blocks came
}

// putImage makes the image of a checked package, unless this bucket has one, keeps it here and on other nodes.
func (s *Store) putImage(ctx context.Context, k key, plan *plan, size int64) error {
	if ok, err := s.cfg.Bucket.Exists(ctx, k.index()); err != nil || ok {
		return err
	}
	im, err := s.seal(ctx, k, plan, size)
	if err != nil {
		return err
	}
	defer im.file.Close()
	if err := s.keepImage(ctx, k, im); err != nil {
		return err
	}
	s.count.sealed.Inc()
	s.prepare(k, im)
	s.replicateTo(ctx, k, func(ctx context.Context, addr string) error { return s.sendImage(ctx, addr, k, im) })
	return nil
}

// keepImage stores an image in the bucket. The index is last: an image that has one is whole.
func (s *Store) keepImage(ctx context.Context, k key, im *sealed) error {
	if err := s.cfg.Bucket.Put(ctx, k.blocks(), io.NewSectionReader(im.file, 0, im.index.SealedSize())); err != nil {
		return err
	}
	return s.cfg.Bucket.Put(ctx, k.index(), bytes.NewReader(im.index.Append(nil)))
}

// seal builds the image of a package and seals it with a fresh key.
func (s *Store) seal(ctx context.Context, k key, plan *plan, size int64) (*sealed, error) {
	const op = "seal code"
	meta, err := s.nameless()
	if err != nil {
		return nil, diskError(op, err)
	}
	defer meta.Close()
	data, err := s.nameless()
	if err != nil {
		return nil, diskError(op, err)
	}
	defer data.Close()
	if err := tree.Build(ctx, plan.tree(), meta, data); err != nil {
		return nil, diskError(op, err)
	}
	x := &image.Index{Zip: uint64(size), Entries: uint32(len(plan.entries))}
	for f, n := range map[*os.File]*uint64{meta: &x.Meta, data: &x.Data} {
		info, err := f.Stat()
		if err != nil {
			return nil, diskError(op, err)
		}
		*n = uint64(info.Size())
	}
	im := &sealed{index: x}
	if im.key, x.Wrapped, err = s.makeKey(ctx, k); err != nil {
		return nil, err
	}
	c, err := image.NewCipher(im.key, k.subject())
	if err != nil {
		return nil, err
	}
	if im.file, err = s.nameless(); err != nil {
		return nil, diskError(op, err)
	}
	plain := io.MultiReader(io.NewSectionReader(meta, 0, int64(x.Meta)), io.NewSectionReader(data, 0, int64(x.Data)))
	if err := c.Seal(x, plain, im.file); err != nil {
		im.file.Close()
		return nil, diskError(op, err)
	}
	return im, nil
}

// tree lists the package for the builder of images.
func (p *plan) tree() []tree.Entry {
	out := make([]tree.Entry, len(p.entries))
	for i := range p.entries {
		e := &p.entries[i]
		out[i] = tree.Entry{Name: e.name, Mode: e.mode, Link: e.target}
		switch e.kind {
		case kindFolder:
			out[i].Mode |= os.ModeDir
		case kindLink:
			out[i].Mode |= os.ModeSymlink
		case kindFile:
			out[i].Open = e.file.Open
		}
	}
	return out
}

// nameless returns a file of the spool that is gone when it is closed.
func (s *Store) nameless() (*os.File, error) {
	f, err := os.CreateTemp(s.spoolDir(), "upload-*")
	if err == nil {
		os.Remove(f.Name())
	}
	return f, err
}

// bucketIndex reads the index of an image that this node's bucket has.
func (s *Store) bucketIndex(ctx context.Context, k key) (*image.Index, error) {
	r, size, err := s.cfg.Bucket.Get(ctx, k.index())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > image.IndexMax {
		return nil, starling.Errorf(starling.Unavailable, "read image index", "it has %d bytes", size).With("BadImage")
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	return image.ParseIndex(b)
}

// bucketBlocks reads sealed blocks from this node's bucket, unchecked.
func (s *Store) bucketBlocks(ctx context.Context, k key, x *image.Index, first, count int) ([]byte, error) {
	off, n := span(x, first, count)
	return s.cfg.Bucket.Range(ctx, k.blocks(), off, n)
}

// span returns where count blocks from first lie in the row of sealed blocks.
func span(x *image.Index, first, count int) (off, n int64) {
	off, _ = x.Sealed(first)
	end, size := x.Sealed(first + count - 1)
	return off, end + int64(size) - off
}

// adopt brings a whole image from another node into this node's bucket, so that this node is an origin too.
func (s *Store) adopt(ctx context.Context, k key) (*image.Index, error) {
	b, err := s.image(ctx, k)
	if err != nil {
		return nil, err
	}
	defer s.leave(b)
	if err := b.complete(ctx); err != nil {
		return nil, err
	}
	return b.index, s.keepImage(ctx, k, &sealed{index: b.index, file: b.file})
}
