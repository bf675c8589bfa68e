package code

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/store/blob"
	"starling/store/image"
	"starling/store/lazy"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "codefs" {
		if err := lazy.Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A town is some nodes with images. Node 0 keeps the keys and owns every partition; the first replicas+1 are origins of what is
// uploaded to it.
type town struct {
	wire   *wire
	stores []*Store
	dirs   []string

	mu     sync.Mutex
	placed map[starling.NodeID]bool // hosts on which version 7 is placed
	mixed  bool
}

const secretText = "the secret of this package"

func newTown(t *testing.T, n, replicas int, change func(*Config)) *town {
	t.Helper()
	if err := lazy.Supported(); err != nil {
		t.Skip(err)
	}
	w := &town{wire: &wire{nodes: map[string]*endpoint{}}, placed: map[starling.NodeID]bool{}}
	for i := range n {
		w.dirs = append(w.dirs, t.TempDir())
		w.placed[starling.NodeID(i+1)] = true
	}
	for i := range n {
		w.stores = append(w.stores, w.open(t, i, replicas, change))
	}
	return w
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// open starts a life of node i.
func (w *town) open(t *testing.T, i, replicas int, change func(*Config)) *Store {
	t.Helper()
	bucket, err := blob.Open(context.Background(), "file://"+filepath.Join(w.dirs[i], "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	images := DefaultImages()
	images.Self, images.Mounts, images.Helper = starling.NodeID(i+1), true, []string{"/proc/self/exe", "codefs"}
	images.SmallMax = 1 << 20
	images.Hosts = func() (out []Peer) {
		for j := range w.dirs {
			out = append(out, Peer{starling.NodeID(j + 1), nodeName(j)})
		}
		return out
	}
	images.Managers = func() []Peer { return []Peer{{1, nodeName(0)}} }
	images.Mixed = func(context.Context) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.mixed
	}
	images.Placed = func(v starling.VersionID, host starling.NodeID) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return v == 7 && w.placed[host]
	}
	cfg := DefaultConfig()
	cfg.Dir, cfg.Bucket, cfg.Log, cfg.Images, cfg.Replicas = filepath.Join(w.dirs[i], "code"), bucket, slog.New(slog.DiscardHandler), &images, replicas
	cfg.Peers = func() (out []string) {
		for j := range w.dirs {
			if j != i {
				out = append(out, nodeName(j))
			}
		}
		return out
	}
	if change != nil {
		change(&cfg)
	}
	s := New(cfg)
	if i == 0 {
		ring, err := image.NewRing(bytes.Repeat([]byte{9}, 32))
		if err != nil {
			t.Fatal(err)
		}
		images.Keeper = &Keeper{Ring: ring, Owners: func(starling.FunctionRef) []Peer { return []Peer{{1, nodeName(0)}} },
			Version: func(_ context.Context, id starling.VersionID) (*starling.Version, error) {
				for _, s := range w.stores {
					if v := versionOf(t, s); v != nil && id == 7 {
						return v, nil
					}
				}
				return nil, starling.Errorf(starling.NotFound, "find version", "no version %d", id)
			}}
	}
	s.Serve(w.wire.endpoint(nodeName(i), starling.NodeID(i+1)))
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); bucket.Close() })
	return s
}

// versionOf makes version 7 of what was uploaded to s; nil for nothing.
func versionOf(t *testing.T, s *Store) *starling.Version {
	found, err := filepath.Glob(filepath.Join(filepath.Dir(s.cfg.Dir), "bucket", "image", "acme", "*", "index"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		return nil
	}
	return version(starling.CodeHash(filepath.Base(filepath.Dir(found[0]))))
}

func version(hash starling.CodeHash) *starling.Version {
	return &starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: "f"}, Code: hash}
}

// large is a package of n MiB that cannot be compressed, and small is one of a few bytes.
func large(t *testing.T, n int) ([]byte, []byte) {
	noise := make([]byte, n<<20)
	rand.NewChaCha8([32]byte{5}).Read(noise)
	return pack1(t, item{"main.py", secretText, 0}, item{"big", string(noise), 0}), noise
}

func small(t *testing.T) []byte {
	return pack1(t, item{"main.py", secretText, 0}, item{"lib/x", "1", 0o755}, item{"link", "main.py", fs.ModeSymlink | 0o777})
}

func (w *town) take(t *testing.T, i int, hash starling.CodeHash) (Place, func()) {
	t.Helper()
	at, release, err := w.stores[i].Take(context.Background(), version(hash))
	if err != nil {
		t.Fatalf("node %d: %v", i, err)
	}
	return at, release
}

func (at Place) read(name string, off int64, n int) ([]byte, error) {
	dir := at.Dir
	if at.Mount != nil {
		dir = fmt.Sprintf("/proc/self/fd/%d", at.Mount.Fd())
	}
	f, err := os.Open(dir + "/" + name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	m, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return b[:m], err
}

func wantText(t *testing.T, at Place) {
	t.Helper()
	if b, err := at.read("main.py", 0, 100); err != nil || string(b) != secretText {
		t.Errorf("main.py is %q, %v", b, err)
	}
}

// lies reports whether the text stands anywhere below dir.
func lies(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		found = found || bytes.Contains(b, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAPackageIsReadableInTheSandboxOnly(t *testing.T) {
	w := newTown(t, 3, 1, nil)
	stored := pack1(t, item{"main.py", secretText, 0}, item{"lib/x", "1", 0o755})
	hash := put(t, w.stores[0], "acme", stored)
	for i := range w.stores {
		at, release := w.take(t, i, hash)
		defer release()
		wantText(t, at)
		if at.Dir != "" {
			t.Errorf("node %d unpacked to %s", i, at.Dir)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/x", at.Mount.Fd()), nil, 0o600); err == nil {
			t.Errorf("node %d: the code can be written", i)
		}
	}
	for i, dir := range w.dirs {
		if lies(t, dir, secretText) || lies(t, dir, "lib/x") {
			t.Errorf("code or names lie open on the disk of node %d", i)
		}
	}
}

func TestALargePackageIsShownBeforeItIsThere(t *testing.T) {
	w := newTown(t, 2, 0, func(c *Config) { c.Images.RestWait = time.Hour })
	data, noise := large(t, 6)
	hash := put(t, w.stores[0], "acme", data)
	at, release := w.take(t, 1, hash)
	defer release()
	wantText(t, at)
	if b, err := at.read("big", 3<<20, 4096); err != nil || !bytes.Equal(b, noise[3<<20:3<<20+4096]) {
		t.Errorf("%d bytes from the middle, %v", len(b), err)
	}
	s := w.stores[1]
	if n := s.count.fetchedHost.Get() + s.count.fetchedOrigin.Get(); n > 3<<20 {
		t.Errorf("%d bytes came for two reads", n)
	}
	if lies(t, w.dirs[1], secretText) {
		t.Error("code lies open on the disk of the host")
	}
}

func TestTheRestOfALargePackageComesByItself(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	data, noise := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	at, release := w.take(t, 1, hash)
	defer release()
	s := w.stores[1]
	for end := time.Now().Add(20 * time.Second); s.count.fetchedHost.Get()+s.count.fetchedOrigin.Get() < 3<<20; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the rest does not come")
		}
	}
	if b, err := at.read("big", 0, len(noise)); err != nil || !bytes.Equal(b, noise) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestAHostWithoutThePlacementGetsNoKey(t *testing.T) {
	w := newTown(t, 3, 0, nil)
	hash := put(t, w.stores[0], "acme", small(t))
	w.mu.Lock()
	delete(w.placed, 3)
	w.mu.Unlock()
	if _, _, err := w.stores[2].Take(context.Background(), version(hash)); starling.KindOf(err) != starling.Denied {
		t.Fatalf("the host it is not placed on: %v", err)
	}
	other := version(hash)
	other.ID = 8
	if _, _, err := w.stores[1].Take(context.Background(), other); err == nil {
		t.Error("a version that does not exist opened the package")
	}
	at, release := w.take(t, 1, hash)
	defer release()
	wantText(t, at)
	if n := w.stores[0].count.keysReleased.Get(); n != 1 {
		t.Errorf("%d keys were given", n)
	}
	w.mu.Lock()
	w.placed[3] = true
	w.mu.Unlock()
	at, release = w.take(t, 2, hash)
	defer release()
	wantText(t, at)
}

func TestKeysAreForTheirRoles(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	hash := put(t, w.stores[0], "acme", small(t))
	k := key{"acme", hash}
	x, err := w.stores[0].bucketIndex(context.Background(), k)
	if err != nil {
		t.Fatal(err)
	}
	w.wire.nodes[nodeName(1)].roles = starling.RoleScheduler
	for name, ask := range map[string]func() error{
		"make":    func() error { _, _, err := w.stores[1].makeKey(context.Background(), k); return err },
		"release": func() error { _, err := w.stores[1].releaseKey(context.Background(), k, 7, x.Wrapped); return err },
	} {
		if err := ask(); starling.KindOf(err) != starling.Denied {
			t.Errorf("%s: a node that is neither frontend nor host: %v", name, err)
		}
	}
}

func TestManyInstancesFetchOnce(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	data, _ := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			at, release, err := w.stores[1].Take(context.Background(), version(hash))
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if b, err := at.read("big", 0, 3<<20); len(b) != 3<<20 || err != nil {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	x, err := w.stores[0].bucketIndex(context.Background(), key{"acme", hash})
	if err != nil {
		t.Fatal(err)
	}
	if n := w.stores[1].count.fetchedHost.Get() + w.stores[1].count.fetchedOrigin.Get(); int64(n) > x.SealedSize()*5/4 {
		t.Errorf("%d bytes came for an image of %d", n, x.SealedSize())
	}
}

func TestHostsShareWhatTheyFetch(t *testing.T) {
	w := newTown(t, 9, 0, nil)
	data, noise := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	w.stores[0].cfg.Images.Hosts = nil // the origin runs nothing and asks nobody
	hosts := func() (out []Peer) {
		for i := 1; i < 9; i++ {
			out = append(out, Peer{starling.NodeID(i + 1), nodeName(i)})
		}
		return out
	}
	for _, s := range w.stores[1:] {
		s.cfg.Images.Hosts = hosts
	}
	var wg sync.WaitGroup
	for i := 1; i < 9; i++ {
		wg.Go(func() {
			at, release, err := w.stores[i].Take(context.Background(), version(hash))
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if b, err := at.read("big", 0, len(noise)); !bytes.Equal(b, noise) || err != nil {
				t.Errorf("host %d: %d bytes, %v", i, len(b), err)
			}
		})
	}
	wg.Wait()
	x, err := w.stores[0].bucketIndex(context.Background(), key{"acme", hash})
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(w.stores[0].count.servedOrigin.Get()); n < x.SealedSize() || n > x.SealedSize()*3/2 {
		t.Errorf("the origin served %d bytes of an image of %d", n, x.SealedSize())
	}
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *town) object(i int, hash starling.CodeHash, part string) string {
	return filepath.Join(w.dirs[i], "bucket", "image", "acme", string(hash), part)
}

func TestAFlippedBitAtAnOriginIsSeenAndFetchedElsewhere(t *testing.T) {
	w := newTown(t, 3, 1, nil)
	data, noise := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	flip(t, w.object(0, hash, "blocks"))
	w.stores[2].cfg.Images.Hosts = func() []Peer { return []Peer{{3, nodeName(2)}} } // it asks the origins itself, node 0 first
	at, release := w.take(t, 2, hash)
	defer release()
	if b, err := at.read("big", 0, len(noise)); !bytes.Equal(b, noise) || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if w.stores[2].count.damaged.Get() == 0 {
		t.Error("nobody saw the damage")
	}
}

func TestABlobThatIsReplacedIsRefused(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	hash := put(t, w.stores[0], "acme", small(t))
	evil := put(t, w.stores[0], "evil", pack1(t, item{"main.py", "evil", 0}))
	for _, part := range []string{"index", "blocks"} {
		from := filepath.Join(w.dirs[0], "bucket", "image", "evil", string(evil), part)
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(w.object(0, hash, part), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := w.stores[1].Take(context.Background(), version(hash)); err == nil {
		t.Error("another account's package runs as this one")
	}
}

func TestABlockThatRotsOnTheHostIsFetchedAgain(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	data, noise := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	_, release := w.take(t, 1, hash)
	s := w.stores[1]
	for end := time.Now().Add(20 * time.Second); s.count.fetchedHost.Get()+s.count.fetchedOrigin.Get() < 3<<20; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the rest does not come")
		}
	}
	release()
	s.Close()
	found, err := filepath.Glob(filepath.Join(w.dirs[1], "code", "blocks", "acme", string(hash)+"-*[0-9a-f]"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	flip(t, found[0])
	w.stores[1] = w.open(t, 1, 0, nil)
	given := w.stores[0].count
	before := given.servedOrigin.Get() + given.servedHost.Get()
	at, release := w.take(t, 1, hash)
	defer release()
	if b, err := at.read("big", 0, len(noise)); !bytes.Equal(b, noise) || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if n := given.servedOrigin.Get() + given.servedHost.Get() - before; n == 0 || n > chunk*(image.BlockSize+image.Overhead) {
		t.Errorf("%d bytes came again for one bit", n)
	}
}

func TestPackagesOfTheReleaseBeforeStillRun(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	zips := w.stores[0]
	images := zips.cfg.Images
	zips.cfg.Images = nil // as the release before did
	hash := put(t, zips, "acme", small(t))
	zips.cfg.Images = images
	for i := range w.stores {
		at, release := w.take(t, i, hash)
		defer release()
		wantText(t, at)
	}
	if n, err := w.stores[1].Size(context.Background(), "acme", hash); n == 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestWhileNodesOfTheReleaseBeforeLiveTheZipIsKeptToo(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	w.mixed = true
	hash := put(t, w.stores[0], "acme", small(t))
	old := w.stores[1]
	old.cfg.Images = nil
	at, release := w.take(t, 1, hash)
	defer release()
	wantText(t, at)
}

func TestAnUploadOutlivesTheNodeThatTookIt(t *testing.T) {
	w := newTown(t, 4, 1, nil)
	data := small(t)
	hash := put(t, w.stores[1], "acme", data) // its copy is on node 0
	w.wire.mu.Lock()
	delete(w.wire.nodes, nodeName(1))
	w.wire.mu.Unlock()
	if n, err := w.stores[3].Size(context.Background(), "acme", hash); n != int64(len(data)) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	at, release := w.take(t, 2, hash)
	defer release()
	wantText(t, at)
}

func TestALargePackageSurvivesItsHelper(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	data, noise := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	_, release := w.take(t, 1, hash)
	s := w.stores[1]
	if err := syscall.Kill(s.helper.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		broken := s.packages[key{"acme", hash}].shown.Broken()
		s.mu.Unlock()
		if broken {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody noticed the death")
		}
	}
	at, again := w.take(t, 1, hash)
	defer again()
	if b, err := at.read("big", 0, len(noise)); !bytes.Equal(b, noise) || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	release()
}

func TestALargePackageThatNobodyRunsIsPutAway(t *testing.T) {
	w := newTown(t, 1, 0, func(c *Config) { c.Images.IdleTime = 10 * time.Millisecond })
	data, _ := large(t, 3)
	hash := put(t, w.stores[0], "acme", data)
	_, release := w.take(t, 0, hash)
	s := w.stores[0]
	shown := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.packages)
	}
	time.Sleep(50 * time.Millisecond)
	if shown() != 1 {
		t.Fatal("it was put away while it ran")
	}
	release()
	for end := time.Now().Add(10 * time.Second); shown() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is still shown")
		}
	}
	at, release := w.take(t, 0, hash)
	defer release()
	wantText(t, at)
}

func TestMemoryForPackagesIsBounded(t *testing.T) {
	w := newTown(t, 1, 0, func(c *Config) { c.Images.MemoryMax = 600 << 10 })
	s := w.stores[0]
	var hashes []starling.CodeHash
	for i := range 3 {
		noise := make([]byte, 250<<10)
		rand.NewChaCha8([32]byte{byte(i)}).Read(noise)
		hashes = append(hashes, put(t, s, "acme", pack1(t, item{"main.py", secretText, 0}, item{"x", string(noise), 0})))
	}
	hold := func(h starling.CodeHash) func() {
		k := key{"acme", h}
		x, err := s.bucketIndex(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := s.cfg.Images.Keeper.Ring.Unwrap(x.Wrapped, k.subject())
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.hold(k, 0, secret)
		if err != nil {
			t.Fatal(err)
		}
		if <-p.ready; p.err != nil {
			t.Fatal(p.err)
		}
		wantText(t, Place{p.dir, p.mount})
		return func() { s.drop(p) }
	}
	first, second := hold(hashes[0]), hold(hashes[1])
	third := hold(hashes[2]) // no memory is free: it is shown on demand
	if n := s.count.shown.Get(); n != 1 || s.memory > 600<<10 {
		t.Errorf("%d packages are shown, %d bytes are in memory", n, s.memory)
	}
	first()
	second()
	third()
}
