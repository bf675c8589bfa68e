package code

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"starling"
	"starling/internal/crash"
	"starling/store/lazy"
)

// A form is how a package is made ready.
type form uint8

const (
	asFolder form = iota // unpacked on disk
	asMount              // shown or in memory as a mount that stands in no namespace, or as a folder where no image can be had
	asDisk               // shown as the file under a disk of a fixed size, or as a folder where no image can be had
)

// A packKey names a package in one form: sandboxes and microVMs take different ones of a package that both run.
type packKey struct {
	key
	form form
}

// A pack is one package on this host: being made ready until ready is closed, then ready or failed.
type pack struct {
	packKey
	ready chan struct{}
	err   error  // set before ready is closed, like what follows
	dir   string // of a package that is unpacked on disk
	bytes int64  // on disk; 0 until known

	mount  *os.File           // of a package that is unpacked in memory or shown on demand; asDisk it is the file
	memory int64              // bytes of it in memory; 0 for one that is shown
	shown  *lazy.Image        // of one that is shown
	blocks *blocks            // of one that comes from an image, held
	stop   context.CancelFunc // ends fetching what nobody touched, nil for none; rest is closed when it ended
	rest   chan struct{}

	refs  int // users; guarded by Store.mu, like what follows
	used  uint64
	timer *time.Timer // of a pack that is shown and not used
	// losers are called when what is shown is lost, by the channel of who took it.
	losers map[chan struct{}]func()
}

func (p *pack) done() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// hold returns the pack of k with one more user and starts making it ready when nobody has. The key of its image is asked for in the
// name of version, unless it is known.
func (s *Store) hold(k packKey, version starling.VersionID, fresh []byte) (*pack, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, starling.Errorf(starling.Unavailable, "fetch code", "this node is stopping")
	}
	s.clock++
	p, ok := s.packages[k]
	if ok && p.done() && (p.err != nil || p.shown != nil && p.shown.Broken()) {
		// A failure is told to those who waited for it, and tried again by the next. What was shown and is lost is shown anew.
		s.strike(p)
		if ok = false; p.err == nil && p.refs == 0 {
			lost := p // p is the next one's soon
			s.working.Go(func() { s.end(lost) })
		}
	}
	if ok {
		s.count.hits.Inc()
		p.refs++
		p.used = s.clock
		if p.timer != nil {
			p.timer.Stop() // one that has fired sees the user
		}
		return p, nil
	}
	p = &pack{packKey: k, ready: make(chan struct{}), refs: 1, used: s.clock}
	s.packages[k] = p
	s.working.Add(1)
	go func() {
		defer s.working.Done()
		err := s.make(s.ctx, p, version, fresh)
		if err != nil {
			s.end(p)
		}
		s.mu.Lock()
		if p.err = err; err != nil && s.packages[k] == p {
			s.strike(p)
		}
		close(p.ready)
		if p.refs == 0 {
			s.unused(p)
		}
		s.mu.Unlock()
	}()
	return p, nil
}

// strike takes p out of the books. The caller holds mu, and sees to what p has.
func (s *Store) strike(p *pack) {
	if s.packages[p.packKey] == p {
		delete(s.packages, p.packKey)
		s.bytes -= p.bytes
		s.memory -= p.memory
	}
}

// prepare makes k ready without waiting for it, where that is wanted. A failure is not told: the first who needs the
// package tries again. Of an image that was not made here the key is not known, and a large one needs no preparation.
func (s *Store) prepare(k key, im *sealed) {
	if !s.cfg.Prepare || im != nil && im.index.Size() > s.cfg.Images.SmallMax {
		return
	}
	var fresh []byte
	if im != nil {
		fresh = im.key
	}
	if p, err := s.hold(packKey{k, s.form()}, 0, fresh); err == nil {
		s.drop(p, nil)
	}
}

// drop gives up one use of p, with what who took it was to be told by.
func (s *Store) drop(p *pack, lost chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(p.losers, lost)
	if p.refs--; p.refs == 0 && p.done() {
		s.unused(p)
	}
}

// unused is called when nobody uses p any more, under mu.
func (s *Store) unused(p *pack) {
	switch {
	case s.closed || p.err != nil:
	case s.packages[p.packKey] != p: // it was lost, and another has taken its place
		s.working.Go(func() { s.end(p) })
	default:
		s.idle(p)
	}
}

// make fetches k and makes it ready, from its image or, for one that was uploaded to an older release, from its zip.
func (s *Store) make(ctx context.Context, p *pack, version starling.VersionID, fresh []byte) error {
	if s.cfg.Images != nil {
		err := s.makeImage(ctx, p.key, p, version, fresh)
		if starling.KindOf(err) != starling.NotFound || p.blocks != nil {
			return err
		}
	}
	f, size, err := s.fetch(ctx, p.key)
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
	return s.unpackTo(p, func(root *os.Root) error { return plan.unpack(ctx, root) })
}

// unpackTo has fill write p's files to a folder of the cache. A full disk is met once by evicting everything not in use.
func (s *Store) unpackTo(p *pack, fill func(root *os.Root) error) error {
	var err error
	p.dir, err = s.place(p.key, fill)
	if fullDisk(err) {
		s.evict(s.cfg.UnpackedMax)
		p.dir, err = s.place(p.key, fill)
	}
	if err != nil {
		return diskError("unpack code", err)
	}
	s.count.unpacked.Inc()
	return nil
}

// place unpacks beside the cache and renames: a folder in the cache is whole or not there. Its name ends in
// a random part, so that an eviction of the same package at the same time touches another folder.
func (s *Store) place(k key, fill func(root *os.Root) error) (string, error) {
	tmp, err := os.MkdirTemp(s.spoolDir(), string(k.hash)+"-*")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.unpackedDir(), string(k.account), filepath.Base(tmp))
	if err := fillAndMove(tmp, dir, fill); err != nil {
		os.RemoveAll(tmp)
		return "", err
	}
	return dir, nil
}

func fillAndMove(tmp, dir string, fill func(root *os.Root) error) error {
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := fill(root); err != nil {
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
	p := s.victim(func(p *pack) bool { return p.dir != "" })
	if p == nil {
		return ""
	}
	return p.dir
}

// victim strikes the longest unused of the packages that may go; nil for none. The caller holds mu, and ends it.
func (s *Store) victim(may func(*pack) bool) *pack {
	var found *pack
	for _, p := range s.packages {
		if p.refs == 0 && p.done() && may(p) && (found == nil || p.used < found.used) {
			found = p
		}
	}
	if found != nil {
		s.strike(found)
	}
	return found
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
		k := packKey{key{starling.AccountID(filepath.Base(filepath.Dir(dir))), starling.CodeHash(hash)}, asFolder}
		if s.packages[k] != nil || k.validate() != nil {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("open code store: %w", err)
			}
			continue
		}
		p := &pack{packKey: k, ready: ready, dir: dir, bytes: diskBytes(dir)}
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
