// Package code keeps the packages that functions are made of: zips, checked before a byte of them is
// unpacked, named by their SHA-256, kept in a bucket, fetched from another node where the bucket lacks
// them, and unpacked once per host into a bounded cache.
package code

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/store/blob"
	"starling/store/image"
	"starling/store/lazy"
	"starling/transport"
)

// Config says where packages are and how much of them is kept.
type Config struct {
	Dir         string          // folder of the cache and of uploads in progress; ours alone
	Bucket      *blob.Bucket    // where zips live; closed by its opener
	UnpackedMax int64           // bytes of unpacked packages on this host; those in use may not be evicted
	UploadMax   int             // uploads checked at once
	Limits      Limits          // of one package
	Replicas    int             // other nodes that get a copy of an upload, when the bucket is this node's own
	Peers       func() []string // QUIC addresses of the other nodes, the likeliest holder first; nil for none
	Prepare     bool            // make ready here what is uploaded here or handed over, before anybody calls it
	Images      *Images         // nil: packages are kept as zips
	Log         *slog.Logger
}

// DefaultConfig returns the limits of DESIGN; Dir, Bucket, Peers and Log are the caller's.
func DefaultConfig() Config {
	return Config{UnpackedMax: 10 << 30, UploadMax: 8, Limits: DefaultLimits(), Replicas: 2}
}

// Store is one node's packages. Create it with New, Serve it on the endpoint before that opens, Open it,
// Close it. Its only goroutines are those of unpacking in progress, which Close waits for.
type Store struct {
	cfg     Config
	uploads chan struct{} // one token for each upload being checked
	peers   opener        // nil when not served on an endpoint
	set     *metrics.Set
	count   counters

	mu       sync.Mutex // guards what follows; a leaf, never held over a read or write
	packages map[packKey]*pack
	bytes    int64  // of all packages, unpacked or being unpacked
	clock    uint64 // rises with every use, for the order of eviction
	closed   bool
	working  sync.WaitGroup
	memory   int64 // of packages in memory

	images     map[image.Digest]*blocks
	blockBytes int64                         // of all images' files, as if they were whole
	kept       map[image.Digest]*image.Index // of images in the bucket that were asked for
	sulking    map[string]time.Time          // nodes that failed to share, until when

	helper *lazy.Helper    // nil for none
	ctx    context.Context // ends with Close: unpacking belongs to the store, not to whom asked first
	cancel context.CancelFunc
}

type counters struct {
	uploads, refused, hits, unpacked, evicted, fetchedBucket, fetchedPeer, served *metrics.Counter

	sealed, shown, damaged, keysReleased, keysRefused                 *metrics.Counter
	bucketBytes, fetchedHost, fetchedOrigin, servedHost, servedOrigin *metrics.Counter // bytes of blocks
}

// A key names a package of one account: two accounts that upload the same zip share nothing, so neither
// can learn from a quick answer that the other has it.
type key struct {
	account starling.AccountID
	hash    starling.CodeHash
}

func (k key) object() string { return "code/" + string(k.account) + "/" + string(k.hash) + ".zip" }

var hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (k key) validate() error {
	if err := k.account.Validate(); err != nil {
		return err
	}
	if !hashPattern.MatchString(string(k.hash)) {
		return starling.Errorf(starling.Invalid, "find code", "%q is no code hash: use the 64 hex digits that the upload answered", string(k.hash))
	}
	return nil
}

// New returns a store that does nothing yet.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg, uploads: make(chan struct{}, max(cfg.UploadMax, 1)), packages: map[packKey]*pack{}, set: metrics.NewSet(),
		images: map[image.Digest]*blocks{}, kept: map[image.Digest]*image.Index{}, sulking: map[string]time.Time{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	c := s.set.NewCounter
	s.count = counters{
		uploads: c("starling_code_uploads_total"), refused: c("starling_code_uploads_refused_total"),
		hits: c("starling_code_hits_total"), unpacked: c("starling_code_unpacked_total"), evicted: c("starling_code_evicted_total"),
		fetchedBucket: c(`starling_code_fetched_total{from="bucket"}`), fetchedPeer: c(`starling_code_fetched_total{from="peer"}`),
		served: c("starling_code_served_total"),
		sealed: c("starling_code_sealed_total"), shown: c("starling_code_shown_total"), damaged: c("starling_code_blocks_damaged_total"),
		keysReleased: c(`starling_code_keys_total{given="yes"}`), keysRefused: c(`starling_code_keys_total{given="no"}`),
		bucketBytes: c(`starling_code_block_bytes_total{from="bucket"}`), fetchedHost: c(`starling_code_block_bytes_total{from="host"}`),
		fetchedOrigin: c(`starling_code_block_bytes_total{from="origin"}`), servedHost: c(`starling_code_block_bytes_served_total{as="host"}`),
		servedOrigin: c(`starling_code_block_bytes_served_total{as="origin"}`),
	}
	if cfg.Images != nil && len(cfg.Images.Helper) > 0 {
		s.helper = lazy.New(lazy.Config{Command: cfg.Images.Helper, Patience: cfg.Images.Patience, Log: cfg.Log})
	}
	s.set.NewGauge("starling_code_unpacked_bytes", func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(s.bytes)
	})
	return s
}

// Metrics are the store's counters.
func (s *Store) Metrics() *metrics.Set { return s.set }

// Open prepares the folder and takes over what an earlier life of this boot left unpacked.
func (s *Store) Open(ctx context.Context) error {
	for _, dir := range []string{s.spoolDir(), s.unpackedDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("open code store: %w", err)
		}
	}
	if err := os.Chmod(s.spoolDir(), 0o700); err != nil {
		return fmt.Errorf("open code store: %w", err)
	}
	return errors.Join(s.sweep(), s.takeOver())
}

// Close ends unpacking in progress and waits for it. The cache stays on disk.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.working.Wait()
	s.mu.Lock()
	packs, images := s.packages, s.images
	s.packages, s.images = map[packKey]*pack{}, map[image.Digest]*blocks{}
	s.mu.Unlock()
	for _, p := range packs {
		s.end(p)
	}
	if s.helper != nil {
		s.helper.Close()
	}
	for _, b := range images {
		b.file.Close()
	}
	return nil
}

func (s *Store) spoolDir() string    { return filepath.Join(s.cfg.Dir, "spool") }
func (s *Store) unpackedDir() string { return filepath.Join(s.cfg.Dir, "unpacked") }

// Put checks one zip and keeps it for account, as a sealed image where this store makes them. When it returns nil the package survives a loss of power
// here and, if the bucket is this node's own, lies on Replicas other nodes as far as they answered. A
// package that breaks a rule is Invalid or TooLarge and named by its entry; too many uploads at once are
// Overloaded; a full disk is Unavailable.
func (s *Store) Put(ctx context.Context, account starling.AccountID, r io.Reader) (starling.CodeHash, int64, error) {
	if err := account.Validate(); err != nil {
		return "", 0, err
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		return "", 0, starling.Errorf(starling.Overloaded, "upload code", "%d uploads are being checked: try again in a moment", cap(s.uploads)).RetryAfter(time.Second)
	}
	s.count.uploads.Inc()
	f, size, sum, err := s.spool(r)
	if err != nil {
		s.count.refused.Inc()
		return "", 0, err
	}
	defer f.Close()
	k := key{account, sum}
	plan, err := inspect(ctx, f, size, s.cfg.Limits)
	if err != nil {
		s.count.refused.Inc()
		return "", 0, err
	}
	if s.cfg.Images != nil {
		if err := s.putImage(ctx, k, plan, size); err != nil {
			return "", 0, err
		}
		if s.cfg.Images.Mixed == nil || !s.cfg.Images.Mixed(ctx) {
			return sum, size, nil
		}
	}
	if err := s.cfg.Bucket.Put(ctx, k.object(), io.NewSectionReader(f, 0, size)); err != nil {
		return "", 0, err
	}
	if s.cfg.Images == nil {
		s.prepare(k, nil)
	}
	s.replicate(ctx, k, f, size)
	return sum, size, nil
}

// Size returns the bytes of a package of account; NotFound when the account never uploaded it, even if another
// one did. A package that another node took is fetched, so that the answer holds when that node is gone.
func (s *Store) Size(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error) {
	k := key{account, hash}
	if err := k.validate(); err != nil {
		return 0, err
	}
	if s.cfg.Images != nil {
		x, err := s.bucketIndex(ctx, k)
		if starling.KindOf(err) == starling.NotFound {
			x, err = s.adopt(ctx, k)
		}
		if err == nil {
			return int64(x.Zip), nil
		}
		if starling.KindOf(err) != starling.NotFound {
			return 0, err
		}
	}
	n, err := s.cfg.Bucket.Size(ctx, k.object())
	if err == nil || starling.KindOf(err) != starling.NotFound {
		return n, err
	}
	f, n, err := s.fetch(ctx, k)
	if err != nil {
		return 0, err
	}
	f.Close()
	return n, nil
}

// Unpacked returns how many bytes the files of a package of account have, in blocks of 4 KiB. It is for packages of which Size was asked.
func (s *Store) Unpacked(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error) {
	k := key{account, hash}
	if err := k.validate(); err != nil {
		return 0, err
	}
	if s.cfg.Images != nil {
		x, err := s.bucketIndex(ctx, k)
		if err == nil {
			return int64(x.Data), nil
		}
		if starling.KindOf(err) != starling.NotFound {
			return 0, err
		}
	}
	f, size, err := s.fetch(ctx, k)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	plan, err := inspect(ctx, f, size, s.cfg.Limits)
	if err != nil {
		return 0, err
	}
	return plan.blocks, nil
}

// spool copies r to a file that has no name any more and hashes it. The caller closes it.
func (s *Store) spool(r io.Reader) (*os.File, int64, starling.CodeHash, error) {
	f, err := os.CreateTemp(s.spoolDir(), "upload-*")
	if err != nil {
		return nil, 0, "", diskError("upload code", err)
	}
	os.Remove(f.Name())
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, s.cfg.Limits.Zip+1))
	if err != nil {
		f.Close()
		return nil, 0, "", diskError("upload code", err)
	}
	if size > s.cfg.Limits.Zip {
		f.Close()
		return nil, 0, "", refuseSize("the zip has more than %d bytes: leave out what the function does not need", s.cfg.Limits.Zip)
	}
	return f, size, hexSum(h), nil
}

func hexSum(h hash.Hash) starling.CodeHash {
	return starling.CodeHash(hex.EncodeToString(h.Sum(nil)))
}

// Delete removes a package from the bucket. Instances that run it keep their copy.
func (s *Store) Delete(ctx context.Context, account starling.AccountID, hash starling.CodeHash) error {
	k := key{account, hash}
	if err := k.validate(); err != nil {
		return err
	}
	for _, object := range []string{k.index(), k.blocks(), k.object()} {
		if err := s.cfg.Bucket.Delete(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// Collect deletes packages that live does not want and that are older than keep, which must be longer than
// the time between an upload and the function made of it. It returns how many it deleted.
func (s *Store) Collect(ctx context.Context, keep time.Duration, now time.Time, live func(starling.AccountID, starling.CodeHash) bool) (int, error) {
	dead := map[key]bool{}
	for _, prefix := range []string{"code/", "image/"} {
		err := s.cfg.Bucket.List(ctx, prefix, func(o blob.Object) error {
			account, rest, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
			hash, _, _ := strings.Cut(rest, "/")
			k := key{starling.AccountID(account), starling.CodeHash(strings.TrimSuffix(hash, ".zip"))}
			if k.validate() == nil && now.Sub(o.Changed) > keep && !live(k.account, k.hash) {
				dead[k] = true
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	for k := range dead {
		if err := s.Delete(ctx, k.account, k.hash); err != nil {
			return len(dead), err
		}
	}
	return len(dead), nil
}

// diskError gives a full disk the kind that callers act on.
func diskError(op string, err error) error {
	if err == nil {
		return nil
	}
	if fullDisk(err) {
		return starling.Errorf(starling.Unavailable, op, "the disk of the code store is full: free space or lower the cache's limit: %w", err).With("DiskFull")
	}
	return fmt.Errorf("%s: %w", op, err)
}

func fullDisk(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// opener is the part of an endpoint that fetching needs.
type opener interface {
	Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error)
}
