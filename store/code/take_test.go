package code

import (
	"bytes"
	"context"
	"testing"

	"starling"
)

// The layers of a version come with it, each once for all that share it, and by the version's own right only.
func TestLayersComeWithTheVersionThatHasThem(t *testing.T) {
	w := newTown(t, 2, 0, nil)
	big, noise := large(t, 2)
	code := put(t, w.stores[0], "acme", small(t))
	low := put(t, w.stores[0], "acme", pack1(t, item{"python/dep.py", "low", 0}))
	high := put(t, w.stores[0], "acme", big)
	v := version(code)
	v.LayerCode = []starling.CodeHash{low, high}
	w.mu.Lock()
	w.version = v
	w.mu.Unlock()
	s := w.stores[1]
	for range 2 {
		at, release, err := s.Take(context.Background(), v)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		wantText(t, at.Place)
		if len(at.Layers) != 2 {
			t.Fatalf("%d layers", len(at.Layers))
		}
		if b, err := at.Layers[0].read("python/dep.py", 0, 100); err != nil || string(b) != "low" {
			t.Errorf("the first layer has %q, %v", b, err)
		}
		if b, err := at.Layers[1].read("big", 0, len(noise)); err != nil || !bytes.Equal(b, noise) {
			t.Errorf("the second layer has %d bytes, %v", len(b), err)
		}
	}
	if n := w.stores[0].count.keysReleased.Get(); n != 3 {
		t.Errorf("%d keys were given for three packages", n)
	}
	if lies(t, w.dirs[1], "dep.py") {
		t.Error("a layer lies open on the disk of the host")
	}
	without := *v
	without.LayerCode = v.LayerCode[:1]
	other := newTown(t, 2, 0, nil)
	for _, stored := range [][]byte{small(t), pack1(t, item{"python/dep.py", "low", 0}), big} {
		put(t, other.stores[0], "acme", stored)
	}
	other.mu.Lock()
	other.version = &without
	other.mu.Unlock()
	if _, _, err := other.stores[1].Take(context.Background(), v); starling.KindOf(err) != starling.Denied {
		t.Errorf("a host got the key of a layer that its version does not have: %v", err)
	}
	if _, release, err := other.stores[1].Take(context.Background(), &without); err != nil {
		t.Errorf("a refusal is in the way of who has the right: %v", err)
	} else {
		release()
	}
}
