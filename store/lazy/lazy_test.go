package lazy

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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/store/image"
	"starling/store/image/tree"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "codefs" {
		if err := Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// origin is a sealed image and the file that a host has of it, empty at first.
type origin struct {
	spec   Spec
	sealed []byte
	plain  []byte // the whole image
	body   []byte // of big

	mu      sync.Mutex
	fetched map[int]int
	refuse  int // so many fetches fail; -1 for all
}

// away has the next fetches fail.
func (o *origin) away(fetches int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse = fetches
}

// have returns how many blocks came and the most that one came.
func (o *origin) have() (blocks, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range o.fetched {
		most = max(most, n)
	}
	return len(o.fetched), most
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{body: make([]byte, 8<<20), fetched: map[int]int{}}
	rand.NewChaCha8([32]byte{7}).Read(o.body)
	text := func(name string, b []byte) tree.Entry {
		return tree.Entry{Name: name, Mode: 0o644, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
	}
	entries := []tree.Entry{text("big", o.body), text("main.py", []byte("answer = 42\n")),
		{Name: "link", Mode: fs.ModeSymlink | 0o777, Link: "main.py"}}
	files := make([]*os.File, 3)
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files[i] = f
	}
	if err := tree.Build(context.Background(), entries, files[0], files[1]); err != nil {
		t.Fatal(err)
	}
	var plain []byte
	var sizes [2]uint64
	for i, f := range files[:2] {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		plain, sizes[i] = append(plain, b...), uint64(len(b))
	}
	o.spec = Spec{Subject: image.Subject{Account: "acme", Hash: starling.CodeHash(strings.Repeat("ab", 32))}, Key: image.NewKey(), Blocks: files[2],
		Index: &image.Index{Meta: sizes[0], Data: sizes[1]}, Fetch: o.fetch}
	c, err := image.NewCipher(o.spec.Key, o.spec.Subject)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Seal(o.spec.Index, bytes.NewReader(plain), &out); err != nil {
		t.Fatal(err)
	}
	o.sealed, o.plain = out.Bytes(), plain
	return o
}

func (o *origin) fetch(_ context.Context, i int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refuse != 0 {
		o.refuse = max(o.refuse-1, -1)
		return fmt.Errorf("the origin is away")
	}
	off, n := o.spec.Index.Sealed(i)
	there := make([]byte, n)
	if _, err := o.spec.Blocks.ReadAt(there, off); err == nil && o.spec.Index.Right(i, there) {
		return nil // asked for by a second reader, just before it came
	}
	o.fetched[i]++
	_, err := o.spec.Blocks.WriteAt(o.sealed[off:off+int64(n)], off)
	return err
}

func newHelper(t *testing.T) *Helper {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	h := New(Config{Command: []string{"/proc/self/exe", "codefs"}, Patience: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(h.Close)
	return h
}

func show(t *testing.T, h *Helper, o *origin) *Image {
	t.Helper()
	i, err := h.Open(context.Background(), o.spec)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func read(i *Image, name string, off int64, n int) ([]byte, error) {
	f, err := os.Open(within(i.Mount, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	m, err := f.ReadAt(b, off)
	return b[:m], err
}

func TestOnlyWhatIsTouchedIsFetched(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	i := show(t, h, o)
	defer i.Close()
	if b, err := read(i, "link", 0, 12); err != nil || string(b) != "answer = 42\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if n, _ := o.have(); n > 4 {
		t.Errorf("%d blocks of %d were fetched for a listing and 12 bytes", n, o.spec.Index.Blocks())
	}
	var readers sync.WaitGroup
	for range 20 {
		readers.Go(func() {
			if b, err := read(i, "big", 0, len(o.body)); err != nil || !bytes.Equal(b, o.body) {
				t.Errorf("%d bytes are other ones, %v", len(b), err)
			}
		})
	}
	readers.Wait()
	if n, most := o.have(); n != o.spec.Index.Blocks() || most != 1 {
		t.Errorf("%d of %d blocks were fetched, one of them %d times", n, o.spec.Index.Blocks(), most)
	}
	if err := os.WriteFile(within(i.Mount, "x"), nil, 0o600); err == nil {
		t.Error("an image can be written")
	}
}

func TestABlockThatIsDamagedOnDiskIsFetchedAgain(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	for i := range o.spec.Index.Blocks() {
		if err := o.fetch(context.Background(), i); err != nil {
			t.Fatal(err)
		}
	}
	off, _ := o.spec.Index.Sealed(20)
	if _, err := o.spec.Blocks.WriteAt([]byte("flip"), off+1000); err != nil {
		t.Fatal(err)
	}
	i := show(t, h, o)
	defer i.Close()
	if b, err := read(i, "big", 0, len(o.body)); err != nil || !bytes.Equal(b, o.body) {
		t.Errorf("%d bytes are other ones, %v", len(b), err)
	}
	if o.fetched[20] != 2 || o.fetched[19] != 1 {
		t.Errorf("the damaged block came %d times, the one before it %d", o.fetched[20], o.fetched[19])
	}
}

// TestAnOriginThatIsAwayIsAnErrorAndNoMore: the image is lost, whoever reads on gets errors at once, and it can be shown anew.
func TestAnOriginThatIsAwayIsAnErrorAndNoMore(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	var told atomic.Int64
	o.spec.Lost = func() { told.Add(1) }
	i := show(t, h, o)
	defer i.Close()
	o.away(-1)
	if _, err := read(i, "big", 4<<20, 4096); err == nil {
		t.Error("bytes were read that are nowhere")
	}
	if !i.Broken() || told.Load() != 1 {
		t.Errorf("the reader has its error, and of the loss was told %d times", told.Load())
	}
	o.away(0)
	if _, err := read(i, "big", 6<<20, 4096); err == nil {
		t.Error("an image that is lost still fetches")
	}
	again := show(t, h, o)
	defer again.Close()
	if b, err := read(again, "big", 4<<20, 4096); err != nil || !bytes.Equal(b, o.body[4<<20:4<<20+4096]) {
		t.Errorf("the origin is back and %d bytes are read, %v", len(b), err)
	}
}

func TestAnOriginThatComesBackSoonWasNotAway(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	i := show(t, h, o)
	defer i.Close()
	o.away(1)
	if b, err := read(i, "big", 4<<20, 4096); err != nil || !bytes.Equal(b, o.body[4<<20:4<<20+4096]) || i.Broken() {
		t.Errorf("%d bytes are read, %v", len(b), err)
	}
}

// TestADiskIsTheImageAndZeros: what a virtual machine gets is description, content and zeros, fetched as it is read, and closing it asks nobody.
// Its helper has one processor: if it held that while it waits for an answer of its own, it would wait forever.
func TestADiskIsTheImageAndZeros(t *testing.T) {
	t.Setenv("GOMAXPROCS", "1")
	h, o := newHelper(t), newOrigin(t)
	size := o.spec.Index.Size()
	o.spec.Disk = 2*size + 512
	i := show(t, h, o)
	defer i.Close()
	if info, err := i.Mount.Stat(); err != nil || info.Size() != o.spec.Disk {
		t.Fatalf("the disk is %v, %v", info, err)
	}
	b := make([]byte, 4096)
	if _, err := i.Mount.ReadAt(b, size/2); err != nil || !bytes.Equal(b, o.plain[size/2:size/2+4096]) {
		t.Errorf("the middle is other bytes, %v", err)
	}
	if n, _ := o.have(); n > 4 {
		t.Errorf("%d blocks of %d were fetched for a page", n, o.spec.Index.Blocks())
	}
	all := make([]byte, o.spec.Disk)
	if _, err := i.Mount.ReadAt(all, 0); err != nil || !bytes.Equal(all[:size], o.plain) || bytes.ContainsFunc(all[size:], func(r rune) bool { return r != 0 }) {
		t.Errorf("the whole disk is other bytes, %v", err)
	}
	if _, err := i.Mount.WriteAt(b, 0); err == nil {
		t.Error("a disk can be written")
	}
}

func TestTheDeathOfTheHelperFreesReaders(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	i := show(t, h, o)
	if err := syscall.Kill(h.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := read(i, "big", 4<<20, 4096); err == nil {
		t.Error("bytes were read that nobody serves")
	}
	for end := time.Now().Add(10 * time.Second); !i.Broken(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody noticed the death")
		}
	}
	i.Close()
	again := show(t, h, o)
	defer again.Close()
	if b, err := read(again, "main.py", 0, 12); err != nil || string(b) != "answer = 42\n" {
		t.Errorf("the next helper shows %q, %v", b, err)
	}
}

func TestNothingIsLeftInTheFileTree(t *testing.T) {
	h, o := newHelper(t), newOrigin(t)
	i := show(t, h, o)
	for _, p := range []string{"self", fmt.Sprint(h.PID())} {
		b, err := os.ReadFile("/proc/" + p + "/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "starling-code") || strings.Contains(string(b), " - erofs ") {
			t.Errorf("a mount stands in the namespace of %s", p)
		}
	}
	pid := h.PID()
	i.Close()
	h.Close()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the helper is still there: %v", err)
	}
	if _, err := h.Open(context.Background(), o.spec); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a closed helper shows images: %v", err)
	}
}
