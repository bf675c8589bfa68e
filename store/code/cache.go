package code

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"starling"
	"starling/internal/crash"
)

// A pack is one package on this host: being unpacked until ready is closed, then unpacked or failed.
type pack struct {
	ready chan struct{}
	err   error  // set before ready is closed
	dir   string // set before ready is closed
	bytes int64  // on disk; 0 until known
	refs  int    // users of dir; guarded by Store.mu
	used  uint64
}

func (p *pack) done() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// Path returns the folder of the unpacked package, which stays until release is called. It fetches and
// unpacks once however many ask, from this host's bucket first and then from the other nodes. A package
// that nobody has is NotFound; a host whose cache is full of packages in use, or whose disk is full, is
// Unavailable, and works again once there is room.
func (s *Store) Path(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (dir string, release func(), err error) {
	k := key{account, hash}
	if err := k.validate(); err != nil {
		return "", nil, err
	}
	p, err := s.hold(k)
	if err != nil {
		return "", nil, err
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		s.drop(p)
		return "", nil, starling.Errorf(starling.Timeout, "fetch code", "the package did not come in time: %w", ctx.Err())
	}
	if p.err != nil {
		s.drop(p)
		return "", nil, p.err
	}
	var once sync.Once
	return p.dir, func() { once.Do(func() { s.drop(p) }) }, nil
}

// hold returns the pack of k with one more user and starts unpacking it when nobody has.
func (s *Store) hold(k key) (*pack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, starling.Errorf(starling.Unavailable, "fetch code", "this node is stopping")
	}
	s.clock++
	p, ok := s.packages[k]
	if ok && p.done() && p.err != nil {
		ok = false // a failure is told to those who waited for it, and tried again by the next
	}
	if ok {
		s.count.hits.Inc()
		p.refs++
		p.used = s.clock
		return p, nil
	}
	p = &pack{ready: make(chan struct{}), refs: 1, used: s.clock}
	s.packages[k] = p
	s.working.Add(1)
	go func() {
		defer s.working.Done()
		err := s.make(s.ctx, k, p)
		s.mu.Lock()
		if p.err = err; err != nil && s.packages[k] == p {
			delete(s.packages, k)
			s.bytes -= p.bytes
		}
		close(p.ready)
		s.mu.Unlock()
	}()
	return p, nil
}

// prepare unpacks k without waiting for it, where that is wanted. A failure is not told: the first who needs the
// package tries again.
func (s *Store) prepare(k key) {
	if !s.cfg.Prepare {
		return
	}
	if p, err := s.hold(k); err == nil {
		s.drop(p)
	}
}

func (s *Store) drop(p *pack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.refs--
}

// make fetches, checks and unpacks k. A full disk is met once by evicting everything not in use.
func (s *Store) make(ctx context.Context, k key, p *pack) error {
	f, size, err := s.fetch(ctx, k)
	if err != nil {
		return err
	}
	defer f.Close()
	plan, err := inspect(ctx, f, size, s.cfg.Limits)
	if err != nil {
		return err
	}
	if err := s.reserve(p, plan.blocks); err != nil {
		return err
	}
	p.dir, err = s.place(ctx, k, plan)
	if fullDisk(err) {
		s.evict(s.cfg.UnpackedMax)
		p.dir, err = s.place(ctx, k, plan)
	}
	if err != nil {
		return diskError("unpack code", err)
	}
	s.count.unpacked.Inc()
	return nil
}

// place unpacks beside the cache and renames: a folder in the cache is whole or not there. Its name ends in
// a random part, so that an eviction of the same package at the same time touches another folder.
func (s *Store) place(ctx context.Context, k key, plan *plan) (string, error) {
	tmp, err := os.MkdirTemp(s.spoolDir(), string(k.hash)+"-*")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.unpackedDir(), string(k.account), filepath.Base(tmp))
	if err := s.fill(ctx, tmp, dir, plan); err != nil {
		os.RemoveAll(tmp)
		return "", err
	}
	return dir, nil
}

func (s *Store) fill(ctx context.Context, tmp, dir string, plan *plan) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := plan.unpack(ctx, root); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	crash.Here(crash.BeforeCode)
	err = os.Rename(tmp, dir)
	crash.Here(crash.AfterCode)
	return err
}

// reserve counts n bytes for p and evicts until they fit.
func (s *Store) reserve(p *pack, n int64) error {
	s.mu.Lock()
	p.bytes = n
	s.bytes += n
	s.mu.Unlock()
	s.evict(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes <= s.cfg.UnpackedMax {
		return nil
	}
	return starling.Errorf(starling.Unavailable, "unpack code", "packages in use fill the %d bytes of this host's code cache: raise the limit or use another host", s.cfg.UnpackedMax).With("CodeCacheFull")
}

// evict removes packages without users, the longest unused first, until the cache is free bytes below its
// limit.
func (s *Store) evict(free int64) {
	for {
		dir := s.evictOne(free)
		if dir == "" {
			return
		}
		s.count.evicted.Inc()
		// Out of the cache first: a folder that a crash left half removed must not be taken for whole.
		trash := filepath.Join(s.spoolDir(), filepath.Base(dir)+".evicted")
		err := os.Rename(dir, trash)
		if err == nil {
			err = os.RemoveAll(trash)
		}
		if err != nil {
			s.cfg.Log.Warn("evict code", "dir", dir, "error", err)
		}
	}
}

// evictOne takes the longest unused package out of the books and returns its folder; "" when there is
// nothing to evict.
func (s *Store) evictOne(free int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes <= s.cfg.UnpackedMax-free {
		return ""
	}
	var victim key
	var found *pack
	for k, p := range s.packages {
		if p.refs == 0 && p.done() && (found == nil || p.used < found.used) {
			victim, found = k, p
		}
	}
	if found == nil {
		return ""
	}
	delete(s.packages, victim)
	s.bytes -= found.bytes
	return found.dir
}

// fetch returns the zip of k in a nameless file, its hash checked: from the bucket, else from a peer, whose
// copy is kept in the bucket so that this host is a holder from then on.
func (s *Store) fetch(ctx context.Context, k key) (*os.File, int64, error) {
	r, _, err := s.cfg.Bucket.Get(ctx, k.object())
	if err == nil {
		f, size, err := s.verified(k, r)
		r.Close()
		if err == nil {
			s.count.fetchedBucket.Inc()
			return f, size, nil
		}
		if starling.ReasonOf(err) != "HashMismatch" {
			return nil, 0, err
		}
		s.cfg.Log.Error("code in the bucket is damaged; asking other nodes", "account", k.account, "hash", k.hash)
	} else if starling.KindOf(err) != starling.NotFound {
		s.cfg.Log.Warn("bucket does not answer; asking other nodes", "error", err)
	}
	f, size, err := s.fetchPeer(ctx, k)
	if err != nil {
		return nil, 0, err
	}
	s.count.fetchedPeer.Inc()
	if err := s.cfg.Bucket.Put(ctx, k.object(), io.NewSectionReader(f, 0, size)); err != nil {
		s.cfg.Log.Warn("keep fetched code in the bucket", "account", k.account, "hash", k.hash, "error", err)
	}
	return f, size, nil
}

// verified spools r and refuses it unless its hash is k's.
func (s *Store) verified(k key, r io.Reader) (*os.File, int64, error) {
	f, size, sum, err := s.spool(r)
	if err != nil {
		return nil, 0, err
	}
	if sum != k.hash {
		f.Close()
		return nil, 0, starling.Errorf(starling.Unavailable, "fetch code", "the bytes of %s have hash %s: the copy is damaged", k.hash, sum).With("HashMismatch")
	}
	return f, size, nil
}

// sweep empties the spool and takes over or discards what is unpacked. Unpacked files are never flushed, so
// after a loss of power they may be short; within one boot the kernel still has every byte. The boot id
// tells the two apart.
func (s *Store) sweep() error {
	if err := emptyDir(s.spoolDir()); err != nil {
		return fmt.Errorf("open code store: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = nil // without a boot id nothing unpacked is trusted
	}
	mark := filepath.Join(s.cfg.Dir, "boot")
	last, err := os.ReadFile(mark)
	if err != nil || len(boot) == 0 || string(last) != string(boot) {
		if err := emptyDir(s.unpackedDir()); err != nil {
			return fmt.Errorf("open code store: %w", err)
		}
		return os.WriteFile(mark, boot, 0o600)
	}
	found, err := filepath.Glob(filepath.Join(s.unpackedDir(), "*", "*"))
	if err != nil {
		return fmt.Errorf("open code store: %w", err)
	}
	ready := make(chan struct{})
	close(ready)
	for _, dir := range found {
		hash, _, _ := strings.Cut(filepath.Base(dir), "-")
		k := key{starling.AccountID(filepath.Base(filepath.Dir(dir))), starling.CodeHash(hash)}
		if s.packages[k] != nil || k.validate() != nil {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("open code store: %w", err)
			}
			continue
		}
		p := &pack{ready: ready, dir: dir, bytes: diskBytes(dir)}
		s.packages[k] = p
		s.bytes += p.bytes
	}
	s.evict(0)
	return nil
}

func emptyDir(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.RemoveAll(filepath.Join(dir, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// diskBytes sums a folder as plan.blocks does.
func diskBytes(dir string) int64 {
	var n int64
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		switch {
		case err != nil:
		case d.IsDir():
			n += 4096
		default:
			n += (info.Size() + 4095) &^ 4095
		}
		return nil
	})
	return n
}
