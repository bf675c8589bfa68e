package code

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"starling"
	"starling/store/image"
)

// blocks is what this host has of one image: sealed blocks in a file, each at its place. No key is needed: a host keeps
// blocks for others too.
type blocks struct {
	store  *Store
	key    key
	index  *image.Index
	digest image.Digest
	file   *os.File
	path   string

	needs   atomic.Int64    // how often a reader asked for a block
	mu      sync.Mutex      // a leaf; guards what follows
	right   []bool          // block was seen to be in the file, and whole, in this life
	coming  map[int]*coming // by block
	origins []string        // nodes that have the whole image, as far as known

	refs int    // guarded by Store.mu, like the next
	used uint64 // when it was last held, for the order of eviction
}

func (s *Store) blocksDir() string { return filepath.Join(s.cfg.Dir, "blocks") }

// blocksPath names the file of an image; the index lies beside it.
func (s *Store) blocksPath(k key, d image.Digest) string {
	return filepath.Join(s.blocksDir(), string(k.account), string(k.hash)+"-"+hex.EncodeToString(d[:]))
}

// image returns the blocks of k's image on this host, held until leave. Its index comes from this host, its bucket or another
// node, in this order; NotFound says that nobody has one.
func (s *Store) image(ctx context.Context, k key) (*blocks, error) {
	x, err := s.bucketIndex(ctx, k)
	var origins []string
	if err != nil {
		if starling.KindOf(err) != starling.NotFound {
			s.cfg.Log.Warn("the bucket's image cannot be used; asking other nodes", "account", k.account, "hash", k.hash, "error", err)
		}
		if x = s.indexHere(k); x == nil {
			var from string
			if x, from, err = s.fetchIndex(ctx, k); err != nil {
				return nil, err
			}
			origins = []string{from}
		}
	}
	return s.enter(k, x, origins)
}

// indexHere returns the index of an image of which this host has a file.
func (s *Store) indexHere(k key) *image.Index {
	found, err := filepath.Glob(filepath.Join(s.blocksDir(), string(k.account), string(k.hash)+"-*.index"))
	if err != nil {
		return nil
	}
	for _, p := range found {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if x, err := image.ParseIndex(b); err == nil && s.blocksPath(k, x.Digest())+".index" == p {
			return x
		}
	}
	return nil
}

// enter returns the blocks of x with one more user.
func (s *Store) enter(k key, x *image.Index, origins []string) (*blocks, error) {
	d := x.Digest()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, starling.Errorf(starling.Unavailable, "fetch code", "this node is stopping")
	}
	s.clock++
	b, ok := s.images[d]
	if !ok {
		b = &blocks{store: s, key: k, index: x, digest: d, path: s.blocksPath(k, d), right: make([]bool, x.Blocks()), coming: map[int]*coming{}}
		if err := b.open(); err != nil {
			return nil, diskError("keep blocks", err)
		}
		s.images[d] = b
		s.blockBytes += x.SealedSize()
	}
	b.refs++
	b.used = s.clock
	b.mu.Lock()
	b.origins = append(b.origins, origins...)
	b.mu.Unlock()
	s.trim()
	return b, nil
}

// open makes or opens the file, and writes the index beside it. What an earlier life left is checked block by block.
func (b *blocks) open() error {
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(b.index.SealedSize())
	if err == nil {
		err = os.WriteFile(b.path+".index", b.index.Append(nil), 0o600)
	}
	if err != nil {
		f.Close()
		return err
	}
	b.file = f
	return nil
}

// leave gives back what image or enter gave.
func (s *Store) leave(b *blocks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.refs--
	s.trim()
}

// trim removes files that nobody uses, the longest unused first, until the rest fits. The caller holds mu: it is rare, and an
// image must not be entered while its file goes.
func (s *Store) trim() {
	for s.blockBytes > s.cfg.UnpackedMax {
		var victim *blocks
		for _, b := range s.images {
			if b.refs == 0 && (victim == nil || b.used < victim.used) {
				victim = b
			}
		}
		if victim == nil {
			return
		}
		delete(s.images, victim.digest)
		s.blockBytes -= victim.index.SealedSize()
		victim.file.Close()
		if err := errors.Join(os.Remove(victim.path+".index"), os.Remove(victim.path)); err != nil {
			s.cfg.Log.Warn("evict blocks", "path", victim.path, "error", err)
		}
		s.count.evicted.Inc()
	}
}

// takeOver enters the files that an earlier life left, and removes what is none.
func (s *Store) takeOver() error {
	found, err := filepath.Glob(filepath.Join(s.blocksDir(), "*", "*"))
	if err != nil {
		return fmt.Errorf("open code store: %w", err)
	}
	whole := map[string]bool{}
	for _, p := range found {
		raw, err := os.ReadFile(p)
		if filepath.Ext(p) != ".index" || err != nil {
			continue
		}
		k := key{starling.AccountID(filepath.Base(filepath.Dir(p))), starling.CodeHash(filepath.Base(p)[:min(64, len(filepath.Base(p)))])}
		x, err := image.ParseIndex(raw)
		if err != nil || k.validate() != nil || s.blocksPath(k, x.Digest())+".index" != p {
			continue
		}
		b, err := s.enter(k, x, nil)
		if err != nil {
			return err
		}
		whole[p], whole[b.path] = true, true
		s.leave(b)
	}
	for _, p := range found {
		if !whole[p] {
			if err := os.RemoveAll(p); err != nil {
				return fmt.Errorf("open code store: %w", err)
			}
		}
	}
	return nil
}

// need has block i in the file, whole. A block that was seen before is looked at again: the caller could not open it.
func (b *blocks) need(ctx context.Context, i int) error {
	b.needs.Add(1)
	if _, err := b.read(i, 1); err == nil {
		return nil
	}
	return b.fetch(ctx, i, 1, true)
}

func (b *blocks) seen(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.right[i]
}

// read returns count blocks from first, if all of them are in the file and whole.
func (b *blocks) read(first, count int) ([]byte, error) {
	off, n := span(b.index, first, count)
	p := make([]byte, n)
	if _, err := b.file.ReadAt(p, off); err != nil {
		return nil, fmt.Errorf("read blocks: %w", err)
	}
	if bad := b.check(first, count, p); bad >= 0 {
		b.mark(bad, 1, false)
		return nil, starling.Errorf(starling.NotFound, "read blocks", "block %d is not here", bad)
	}
	b.mark(first, count, true)
	return p, nil
}

// check returns the first of count sealed blocks in p that is not what the index says; -1 for none.
func (b *blocks) check(first, count int, p []byte) int {
	start, total := span(b.index, first, count)
	if int64(len(p)) != total {
		return first
	}
	for i := first; i < first+count; i++ {
		off, n := b.index.Sealed(i)
		if !b.index.Right(i, p[off-start:off-start+int64(n)]) {
			return i
		}
	}
	return -1
}

func (b *blocks) mark(first, count int, right bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := first; i < first+count; i++ {
		b.right[i] = right
	}
}
