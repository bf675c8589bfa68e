package code

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/store/blob"
	"starling/transport"
)

// item is one entry of a test package.
type item struct {
	name, body string
	mode       fs.FileMode
}

func pack1(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, i := range items {
		h := &zip.FileHeader{Name: i.name, Method: zip.Deflate}
		if i.mode != 0 {
			h.SetMode(i.mode)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(t testing.TB, change func(*Config)) *Store {
	t.Helper()
	bucket, err := blob.Open(context.Background(), "file://"+filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Dir, cfg.Bucket, cfg.Log = t.TempDir(), bucket, slog.New(slog.DiscardHandler)
	if change != nil {
		change(&cfg)
	}
	s := New(cfg)
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); bucket.Close() })
	return s
}

// take returns the folder of a package that was uploaded before there were images.
func take(ctx context.Context, s *Store, account starling.AccountID, hash starling.CodeHash) (string, func(), error) {
	at, release, err := s.Take(ctx, &starling.Version{Function: starling.FunctionRef{Account: account}, Code: hash})
	return at.Dir, release, err
}

func put(t testing.TB, s *Store, account starling.AccountID, data []byte) starling.CodeHash {
	t.Helper()
	hash, size, err := s.Put(context.Background(), account, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(len(data)) {
		t.Fatalf("size %d, want %d", size, len(data))
	}
	return hash
}

func TestAPreparingStoreUnpacksBeforeAnybodyAsks(t *testing.T) {
	var dir string
	s := open(t, func(c *Config) { c.Prepare, dir = true, c.Dir })
	hash := put(t, s, "acme", pack1(t, item{"main.py", "x = 1\n", 0}))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(dir, "unpacked", "acme", string(hash)+"-*", "main.py")); len(found) == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing was unpacked")
		}
	}
}

func TestStoreUnpacksWhatWasUploaded(t *testing.T) {
	s := open(t, nil)
	hash := put(t, s, "acme", pack1(t,
		item{"main.py", "def handler(e, c): return e\n", 0o600},
		item{"bootstrap", "#!/bin/sh\n", 0},
		item{"lib/", "", fs.ModeDir | 0o700},
		item{"lib/a.so.1", "elf", 0o4777},
		item{"lib/a.so", "a.so.1", fs.ModeSymlink | 0o777},
		item{"bin/a", "../lib/a.so", fs.ModeSymlink | 0o777},
	))
	dir, release, err := take(context.Background(), s, "acme", hash)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for name, mode := range map[string]fs.FileMode{"main.py": 0o644, "bootstrap": 0o755, "lib": fs.ModeDir | 0o755, "lib/a.so.1": 0o755, ".": fs.ModeDir | 0o755} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "bin/a")); err != nil || string(b) != "elf" {
		t.Errorf("through two links: %q, %v", b, err)
	}
	if _, _, err := take(context.Background(), s, "other", hash); starling.KindOf(err) != starling.NotFound {
		t.Errorf("another account's package: %v", err)
	}
}

// overlapping returns a zip whose two directory entries share one body.
func overlapping(t testing.TB) []byte {
	data := pack1(t, item{"a", strings.Repeat("x", 100), 0}, item{"b", strings.Repeat("y", 100), 0})
	dir := bytes.Index(data, directorySignature)
	second := bytes.Index(data[dir+4:], directorySignature) + dir + 4
	binary.LittleEndian.PutUint32(data[second+42:], binary.LittleEndian.Uint32(data[dir+42:]))
	return data
}

// manyHeaders returns a zip whose directory holds n entries although its end record tells fewer.
func manyHeaders(t testing.TB, n int) []byte {
	var items []item
	for i := range n {
		items = append(items, item{fmt.Sprintf("f%d", i), "", 0})
	}
	return pack1(t, items...)
}

func lying(t testing.TB) []byte {
	data := pack1(t, item{"a", strings.Repeat("x", 100000), 0})
	dir := bytes.Index(data, directorySignature)
	binary.LittleEndian.PutUint32(data[dir+24:], 10) // claims 10 bytes
	return data
}

func rawEntry(t testing.TB, name string, method uint16, flags uint16, body []byte) []byte {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	f, err := w.CreateRaw(&zip.FileHeader{Name: name, Method: method, Flags: flags, CRC32: 1, CompressedSize64: uint64(len(body)), UncompressedSize64: uint64(len(body))})
	if err != nil {
		t.Fatal(err)
	}
	f.Write(body)
	w.Close()
	return buf.Bytes()
}

func TestStoreRefusesHostilePackages(t *testing.T) {
	link := fs.ModeSymlink | 0o777
	long := strings.Repeat("a", 300)
	cases := []struct {
		name string
		data []byte
		kind starling.Kind
		says string
	}{
		{"no zip", []byte("hello"), starling.Invalid, "no zip"},
		{"nothing", nil, starling.Invalid, ""},
		{"empty zip", pack1(t), starling.Invalid, "empty"},
		{"dot dot", pack1(t, item{"../x", "1", 0}), starling.Invalid, `"../x"`},
		{"inner dot dot", pack1(t, item{"a/../../x", "1", 0}), starling.Invalid, ".."},
		{"absolute", pack1(t, item{"/etc/x", "1", 0}), starling.Invalid, "absolute"},
		{"drive", pack1(t, item{"C:/x", "1", 0}), starling.Invalid, "drive"},
		{"backslash", pack1(t, item{"a\\..\\x", "1", 0}), starling.Invalid, "backslash"},
		{"NUL", pack1(t, item{"a\x00b", "1", 0}), starling.Invalid, "control"},
		{"not UTF-8", pack1(t, item{"a\xff", "1", 0}), starling.Invalid, "UTF-8"},
		{"long element", pack1(t, item{long, "1", 0}), starling.Invalid, "255"},
		{"long name", pack1(t, item{strings.Repeat("a/", 600) + "a", "1", 0}), starling.Invalid, "1024"},
		{"deep", pack1(t, item{strings.Repeat("a/", 64) + "a", "1", 0}), starling.Invalid, "64"},
		{"wide dots", pack1(t, item{"．．／x", "1", 0}), starling.Invalid, "looks like"},
		{"two-dot leader", pack1(t, item{"‥/x", "1", 0}), starling.Invalid, "looks like"},
		{"same look", pack1(t, item{"e\u0301.py", "1", 0}, item{"\u00e9.py", "2", 0}), starling.Invalid, "looks the same"},
		{"same look of folders", pack1(t, item{"ａ/x", "1", 0}, item{"a/y", "2", 0}), starling.Invalid, "looks the same"},
		{"twice", pack1(t, item{"a", "1", 0}, item{"a", "2", 0}), starling.Invalid, "twice"},
		{"file and folder", pack1(t, item{"a", "1", 0}, item{"a/b", "2", 0}), starling.Invalid, "both"},
		{"folder and file", pack1(t, item{"a/b", "2", 0}, item{"a", "1", 0}), starling.Invalid, "twice"},
		{"below a link", pack1(t, item{"a", ".", link}, item{"a/b", "2", 0}), starling.Invalid, "both"},
		{"link outside", pack1(t, item{"a", "../../etc", link}), starling.Invalid, "leaves"},
		{"absolute link", pack1(t, item{"a", "/etc/passwd", link}), starling.Invalid, "absolute"},
		{"link through a link outside", pack1(t, item{"p/q/d", "../..", link}, item{"p/q/e", "d/..", link}), starling.Invalid, "leaves"},
		{"circle", pack1(t, item{"a", "b", link}, item{"b", "a", link}), starling.Invalid, "circle"},
		{"self", pack1(t, item{"a", "a", link}), starling.Invalid, "circle"},
		{"dangling", pack1(t, item{"a", "nothing", link}), starling.Invalid, "nothing"},
		{"long link", pack1(t, item{"a", long, link}), starling.Invalid, "255"},
		{"device", pack1(t, item{"a", "", fs.ModeDevice | 0o666}), starling.Invalid, "device"},
		{"pipe", pack1(t, item{"a", "", fs.ModeNamedPipe | 0o666}), starling.Invalid, "device"},
		{"socket", pack1(t, item{"a", "", fs.ModeSocket | 0o666}), starling.Invalid, "device"},
		{"encrypted", rawEntry(t, "a", zip.Store, 1, []byte("x")), starling.Invalid, "encrypted"},
		{"method", rawEntry(t, "a", 12, 0, []byte("x")), starling.Invalid, "method"},
		{"checksum", rawEntry(t, "a", zip.Store, 0, []byte("x")), starling.Invalid, "damaged"},
		{"overlap", overlapping(t), starling.Invalid, "overlaps"},
		{"lying size", lying(t), starling.Invalid, ""},
		{"entries", manyHeaders(t, 120), starling.TooLarge, "entries"},
		{"ratio", pack1(t, item{"a", strings.Repeat("x", 2<<20), 0}), starling.TooLarge, "bomb"},
		{"unpacked", bigZip(t), starling.TooLarge, "unpacks to more"},
		{"zip size", bytes.Repeat([]byte("x"), 70<<10), starling.TooLarge, "zip has more"},
	}
	s := open(t, func(c *Config) {
		c.Limits = Limits{Zip: 64 << 10, Unpacked: 4 << 20, Entries: 100, Ratio: 200, Time: 5 * time.Second}
	})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := s.Put(context.Background(), "acme", bytes.NewReader(c.data))
			if err == nil {
				t.Fatal("accepted")
			}
			if starling.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v: %v; want %v saying %q", starling.KindOf(err), err, c.kind, c.says)
			}
		})
	}
	empty(t, s.spoolDir())
}

// bigZip unpacks to 5 MiB and packs well below the ratio.
func bigZip(t testing.TB) []byte {
	line := make([]byte, 512)
	for i := range line {
		line[i] = byte(i * 7)
	}
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	w.RegisterCompressor(zip.Deflate, func(o io.Writer) (io.WriteCloser, error) { return flate.NewWriter(o, 1) })
	f, _ := w.Create("a")
	for i := range 5 << 11 {
		line[i%512] = byte(i)
		f.Write(line)
	}
	w.Close()
	return out.Bytes()
}

func empty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		t.Errorf("left behind: %s", l.Name())
	}
}

func TestInspectHasATimeBound(t *testing.T) {
	data := pack1(t, item{"a", strings.Repeat("x", 1<<20), 0})
	lim := DefaultLimits()
	lim.Time = time.Nanosecond
	_, err := inspect(context.Background(), bytes.NewReader(data), int64(len(data)), lim)
	if starling.KindOf(err) != starling.TooLarge {
		t.Fatalf("%v", err)
	}
}

func TestPathUnpacksOnceForMany(t *testing.T) {
	s := open(t, nil)
	hash := put(t, s, "acme", pack1(t, item{"a", "1", 0}))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			dir, release, err := take(context.Background(), s, "acme", hash)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
				t.Error(err)
			}
			release()
			release() // twice is harmless
		})
	}
	wg.Wait()
	if n := s.count.unpacked.Get(); n != 1 {
		t.Fatalf("unpacked %d times", n)
	}
}

func TestCacheEvictsTheLongestUnusedButNothingInUse(t *testing.T) {
	s := open(t, func(c *Config) { c.UnpackedMax = 3 * 4096 })
	var hashes []starling.CodeHash
	for i := range 5 {
		hashes = append(hashes, put(t, s, "acme", pack1(t, item{"a", fmt.Sprint(i), 0})))
	}
	ctx := context.Background()
	use := func(i int) (string, func()) {
		dir, release, err := take(ctx, s, "acme", hashes[i])
		if err != nil {
			t.Fatal(err)
		}
		return dir, release
	}
	dir0, release0 := use(0)
	dir1, release1 := use(1)
	release1()
	_, release2 := use(2)
	_, release3 := use(3) // evicts 1: 0 and 2 are in use
	if _, err := os.Stat(dir1); !os.IsNotExist(err) {
		t.Errorf("package 1 is still there: %v", err)
	}
	if _, err := os.Stat(dir0); err != nil {
		t.Errorf("package 0 is in use and gone: %v", err)
	}
	if _, _, err := take(ctx, s, "acme", hashes[4]); starling.ReasonOf(err) != "CodeCacheFull" {
		t.Errorf("with everything in use: %v", err)
	}
	release0()
	release2()
	release3()
	_, release4 := use(4)
	release4()
	empty(t, s.spoolDir())
}

func TestReopenKeepsThisBootsPackagesOnly(t *testing.T) {
	s := open(t, nil)
	hash := put(t, s, "acme", pack1(t, item{"a", "1", 0}))
	dir, release, err := take(context.Background(), s, "acme", hash)
	if err != nil {
		t.Fatal(err)
	}
	release()
	os.WriteFile(filepath.Join(s.spoolDir(), "left"), nil, 0o600)
	s.Close()

	again := New(s.cfg)
	if err := again.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	same, release, err := take(context.Background(), again, "acme", hash)
	if err != nil || same != dir || again.count.unpacked.Get() != 0 {
		t.Fatalf("same boot: %q (was %q), %v", same, dir, err)
	}
	release()
	empty(t, again.spoolDir())
	again.Close()

	os.WriteFile(filepath.Join(s.cfg.Dir, "boot"), []byte("another"), 0o600)
	third := New(s.cfg)
	if err := third.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("unflushed package of an earlier boot is kept: %v", err)
	}
}

func TestDamagedBlobIsNeverUnpacked(t *testing.T) {
	s := open(t, nil)
	hash := put(t, s, "acme", pack1(t, item{"a", "good", 0}))
	evil := pack1(t, item{"a", "evil", 0})
	if err := s.cfg.Bucket.Put(context.Background(), key{"acme", hash}.object(), bytes.NewReader(evil)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := take(context.Background(), s, "acme", hash); err == nil {
		t.Fatal("unpacked a replaced package")
	}
	empty(t, s.unpackedDir())
}

func TestCollectDeletesWhatNobodyWants(t *testing.T) {
	s := open(t, nil)
	old := put(t, s, "acme", pack1(t, item{"a", "old", 0}))
	kept := put(t, s, "acme", pack1(t, item{"a", "kept", 0}))
	live := func(_ starling.AccountID, h starling.CodeHash) bool { return h == kept }
	if n, err := s.Collect(context.Background(), time.Hour, time.Now(), live); n != 0 || err != nil {
		t.Fatalf("young packages: %d, %v", n, err)
	}
	if n, err := s.Collect(context.Background(), time.Hour, time.Now().Add(2*time.Hour), live); n != 1 || err != nil {
		t.Fatalf("old packages: %d, %v", n, err)
	}
	if _, _, err := take(context.Background(), s, "acme", old); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("collected: %v", err)
	}
	if _, release, err := take(context.Background(), s, "acme", kept); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
}

// A full disk is told as such, leaves nothing half-made, and is forgotten once there is room.
func TestFullDiskIsToldAndRecovered(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small disk needs root: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	s := open(t, func(c *Config) { c.Dir = dir })
	ctx := context.Background()
	noise := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	first := put(t, s, "acme", pack1(t, item{"a", string(noise), 0}))
	second := put(t, s, "acme", pack1(t, item{"b", string(noise), 0}))
	_, release1, err := take(ctx, s, "acme", first)
	if err != nil {
		t.Fatal(err)
	}
	release1()
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, noise, 0o600); err != nil { // 300 KiB left: the zip fits, the files only after evicting
		t.Fatal(err)
	}
	_, release2, err := take(ctx, s, "acme", second)
	if err != nil {
		t.Fatalf("with something to evict: %v", err)
	}
	if _, _, err := take(ctx, s, "acme", first); starling.ReasonOf(err) != "DiskFull" || starling.KindOf(err) != starling.Unavailable {
		t.Fatalf("with everything in use: %v", err)
	}
	if _, _, err := s.Put(ctx, "acme", bytes.NewReader(pack1(t, item{"c", string(noise) + string(noise[:200<<10]), 0}))); starling.ReasonOf(err) != "DiskFull" {
		t.Fatalf("upload: %v", err)
	}
	empty(t, s.spoolDir())
	release2()
	os.Remove(filler)
	_, release1, err = take(ctx, s, "acme", first)
	if err != nil {
		t.Fatalf("with room again: %v", err)
	}
	release1()
}

// wire is a network of endpoints in this process.
type wire struct {
	mu    sync.Mutex
	nodes map[string]*endpoint
	opens atomic.Int64
}

type endpoint struct {
	net     *wire
	addr    string
	node    starling.NodeID
	roles   starling.Roles
	handler map[transport.Channel]func(transport.Stream)
}

func (w *wire) endpoint(addr string, node starling.NodeID) *endpoint {
	e := &endpoint{w, addr, node, ^starling.Roles(0), map[transport.Channel]func(transport.Stream){}}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[addr] = e
	return e
}

func (e *endpoint) Handle(ch transport.Channel, f func(transport.Stream)) { e.handler[ch] = f }
func (e *endpoint) Addr() string                                          { return e.addr }
func (e *endpoint) Close() error                                          { return nil }
func (e *endpoint) Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	to, ok := e.net.nodes[addr]
	if !ok {
		return nil, starling.Errorf(starling.Unavailable, "open stream", "%s is away", addr)
	}
	e.net.opens.Add(1)
	up, down := newPipe(), newPipe()
	go to.handler[ch](&stream{in: up, out: down, peer: transport.Peer{Node: e.node, Roles: e.roles}})
	return &stream{in: down, out: up, peer: transport.Peer{Node: to.node}}, nil
}

// stream is a pair of half-closable pipes.
type stream struct {
	in, out *pipe
	peer    transport.Peer
}

type pipe struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func newPipe() *pipe { r, w := io.Pipe(); return &pipe{r, w} }

func (s *stream) Read(p []byte) (int, error)  { return s.in.r.Read(p) }
func (s *stream) Write(p []byte) (int, error) { return s.out.w.Write(p) }
func (s *stream) CloseWrite() error           { return s.out.w.Close() }
func (s *stream) Cancel() {
	s.in.r.CloseWithError(net.ErrClosed)
	s.out.w.CloseWithError(net.ErrClosed)
}
func (s *stream) SetReadDeadline(t time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(t time.Time) error { return nil }
func (s *stream) Peer() transport.Peer               { return s.peer }

func cluster(t *testing.T, n int) (*wire, []*Store) {
	w := &wire{nodes: map[string]*endpoint{}}
	var stores []*Store
	for i := range n {
		s := open(t, func(c *Config) {
			c.Replicas = 1
			c.Peers = func() []string {
				var out []string
				for j := range n {
					if j != i {
						out = append(out, fmt.Sprintf("node%d", j))
					}
				}
				return out
			}
		})
		s.Serve(w.endpoint(fmt.Sprintf("node%d", i), starling.NodeID(i+1)))
		stores = append(stores, s)
	}
	return w, stores
}

func TestPackageOutlivesTheNodeThatTookIt(t *testing.T) {
	w, s := cluster(t, 3)
	hash := put(t, s[0], "acme", pack1(t, item{"a", "1", 0}))
	w.mu.Lock()
	delete(w.nodes, "node0") // node 1 holds the copy, node 2 has none
	w.mu.Unlock()
	before := w.opens.Load()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, release, err := take(context.Background(), s[2], "acme", hash)
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
	}
	wg.Wait()
	if n := w.opens.Load() - before; n != 1 {
		t.Errorf("fetched by %d streams, want 1", n)
	}
	if ok, _ := s[2].cfg.Bucket.Exists(context.Background(), key{"acme", hash}.object()); !ok {
		t.Error("the fetched package is not kept")
	}
	if _, _, err := take(context.Background(), s[2], "other", hash); err == nil {
		t.Error("another account fetched it")
	}
}

func TestSizeKnowsUploadsToOtherNodes(t *testing.T) {
	_, s := cluster(t, 3)
	data := pack1(t, item{"a", "1", 0})
	hash := put(t, s[0], "acme", data)
	for i := range s {
		if n, err := s[i].Size(context.Background(), "acme", hash); n != int64(len(data)) || err != nil {
			t.Errorf("node %d: %d, %v", i, n, err)
		}
	}
	if _, err := s[2].Size(context.Background(), "other", hash); starling.KindOf(err) != starling.NotFound {
		t.Errorf("another account: %v", err)
	}
}

func TestLyingPeerIsNotBelieved(t *testing.T) {
	w, s := cluster(t, 2)
	hash := put(t, s[0], "acme", pack1(t, item{"a", "1", 0}))
	_ = s[1].cfg.Bucket.Delete(context.Background(), key{"acme", hash}.object())
	evil := pack1(t, item{"a", "evil", 0})
	if err := s[0].cfg.Bucket.Put(context.Background(), key{"acme", hash}.object(), bytes.NewReader(evil)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := take(context.Background(), s[1], "acme", hash); starling.ReasonOf(err) != "CodeUnreachable" {
		t.Fatalf("%v", err)
	}
	if w.opens.Load() == 0 {
		t.Fatal("no peer was asked")
	}
}

func TestStrangerGetsNoCode(t *testing.T) {
	w, s := cluster(t, 1)
	hash := put(t, s[0], "acme", pack1(t, item{"a", "1", 0}))
	stranger := w.endpoint("stranger", 0)
	st, err := stranger.Open(context.Background(), "node0", transport.ChannelCode)
	if err != nil {
		t.Fatal(err)
	}
	st.Write(appendRequest(nil, operationGet, key{"acme", hash}))
	if b, err := io.ReadAll(st); len(b) > 0 || err == nil {
		t.Fatalf("answered %d bytes, %v", len(b), err)
	}
}

func FuzzZip(f *testing.F) {
	link := fs.ModeSymlink | 0o777
	f.Add(pack1(f, item{"a/b", "1", 0o755}, item{"c", "a/b", link}))
	f.Add(pack1(f, item{"../x", "1", 0}))
	f.Add(pack1(f, item{"p/q/d", "../..", link}, item{"p/q/e", "d/..", link}))
	f.Add(overlapping(f))
	f.Add(lying(f))
	f.Fuzz(unpackedStaysInside)
}

// unpackedStaysInside unpacks what passes the checks and looks at everything that is there afterwards.
func unpackedStaysInside(t *testing.T, data []byte) {
	lim := Limits{Zip: 1 << 20, Unpacked: 1 << 20, Entries: 64, Ratio: 200, Time: 5 * time.Second}
	p, err := inspect(context.Background(), bytes.NewReader(data), int64(len(data)), lim)
	if err != nil {
		if k := starling.KindOf(err); k != starling.Invalid && k != starling.TooLarge {
			t.Fatalf("refusal of kind %v: %v", k, err)
		}
		return
	}
	outer := t.TempDir()
	inner := filepath.Join(outer, "in")
	os.Mkdir(inner, 0o755)
	root, err := os.OpenRoot(inner)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := p.unpack(context.Background(), root); err != nil {
		t.Fatalf("passed the checks and does not unpack: %v", err)
	}
	if names, _ := os.ReadDir(outer); len(names) != 1 {
		t.Fatal("something was written outside")
	}
	var total int64
	filepath.WalkDir(inner, func(path string, d fs.DirEntry, err error) error {
		info, _ := d.Info()
		if info.Mode().IsRegular() {
			total += info.Size()
		}
		if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice|fs.ModeNamedPipe) != 0 || info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSymlink == 0 {
			t.Fatalf("%s has mode %v", path, info.Mode())
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || !strings.HasPrefix(real, inner) {
			t.Fatalf("%s leads to %q, %v", path, real, err)
		}
		return nil
	})
	if total > lim.Unpacked {
		t.Fatalf("%d bytes unpacked", total)
	}
}

// FuzzPackage makes whole packages, so that the fuzzer need not find checksums: each line is a kind, a name and a body.
func FuzzPackage(f *testing.F) {
	f.Add("f main.py|x\nl a|main.py\nd lib/|")
	f.Add("l p/q/d|../..\nl p/q/e|d/..\nf p/q/e/x|boo")
	f.Add("l a|b\nl b|c\nl c|./d/../d\nd d/|\nx d/run|#!")
	f.Add("f ．．／x|1\nf e\u0301|2\nf \u00e9|3")
	f.Add("d a|\nf a/|\nf a//b|1\nf a/./b|2")
	modes := map[byte]fs.FileMode{'f': 0o644, 'x': 0o6777, 'd': fs.ModeDir | 0o700, 'l': fs.ModeSymlink | 0o777}
	f.Fuzz(func(t *testing.T, script string) {
		var items []item
		for line := range strings.Lines(script) {
			line = strings.TrimSuffix(line, "\n")
			head, body, _ := strings.Cut(line, "|")
			if len(head) < 2 || modes[head[0]] == 0 || head[0] == 'd' && body != "" || strings.HasSuffix(head, "/") && body != "" {
				return
			}
			items = append(items, item{strings.TrimPrefix(head[1:], " "), body, modes[head[0]]})
		}
		if len(items) == 0 || len(items) > 20 {
			return
		}
		unpackedStaysInside(t, pack1(t, items...))
	})
}

func FuzzBlocksRequest(f *testing.F) {
	f.Add(blocksRequest{first: 3, count: 8, relay: true}.append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := readBlocksRequest(bytes.NewReader(data))
		if err != nil {
			return
		}
		if again := q.append(nil); !bytes.Equal(again, data[:len(again)]) || q.count > rowMax {
			t.Fatalf("%x became %x", data, again)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(appendRequest(nil, operationGet, key{"acme", starling.CodeHash(strings.Repeat("ab", 32))}))
	f.Fuzz(func(t *testing.T, data []byte) {
		op, k, err := readRequest(bytes.NewReader(data))
		if err != nil {
			return
		}
		if again := appendRequest(nil, op, k); !bytes.Equal(again, data[:len(again)]) {
			t.Fatalf("%x became %x", data, again)
		}
		if strings.ContainsAny(k.object(), "\\ \x00") || strings.Count(k.object(), "/") != 2 {
			t.Fatalf("object %q", k.object())
		}
	})
}

// BenchmarkColdPackage takes in, fetches and unpacks a package of 1,000 files and 8 MiB.
func BenchmarkColdPackage(b *testing.B) {
	noise := make([]byte, 8<<10)
	var items []item
	for i := range 1000 {
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(noise)
		items = append(items, item{fmt.Sprintf("lib/%d/%d.py", i%20, i), string(noise), 0})
	}
	data := pack1(b, items...)
	s := open(b, nil)
	ctx := context.Background()
	b.SetBytes(int64(len(data)))
	n := 0
	for b.Loop() {
		account := starling.AccountID(fmt.Sprintf("a%d", n))
		n++
		_, release, err := take(ctx, s, account, put(b, s, account, data))
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}

// BenchmarkWarmPackage asks for a package that is unpacked.
func BenchmarkWarmPackage(b *testing.B) {
	s := open(b, nil)
	hash := put(b, s, "acme", pack1(b, item{"a", "1", 0}))
	b.ReportAllocs()
	for b.Loop() {
		_, release, err := take(context.Background(), s, "acme", hash)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}
