package code

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"starling"
	"starling/store/image"
)

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
