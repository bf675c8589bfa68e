package code

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
)

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
		broken := s.packages[packKey{key{"acme", hash}, asMount}].shown.Broken()
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
		p, err := s.hold(packKey{k, asMount}, 0, secret)
		if err != nil {
			t.Fatal(err)
		}
		if <-p.ready; p.err != nil {
			t.Fatal(p.err)
		}
		wantText(t, Place{p.dir, p.mount})
		return func() { s.drop(p, nil) }
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
