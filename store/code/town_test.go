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
	"testing"

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

	version *starling.Version // that the catalog has; nil for one of what was uploaded
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
				w.mu.Lock()
				said := w.version
				w.mu.Unlock()
				if said != nil && id == said.ID {
					return said, nil
				}
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
	return at.Place, release
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
