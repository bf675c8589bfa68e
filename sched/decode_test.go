package sched

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"starling"
)

// FuzzDecodeSnapshot: garbage is refused as Invalid, never with a panic, and what is accepted can be coded again, divided, joined
// and restored.
func FuzzDecodeSnapshot(f *testing.F) {
	w := newRing(1)
	_ = w.run(100)
	for _, p := range w.parts {
		s := p.s.Snapshot(w.now)
		raw, _ := EncodeSnapshot(&s)
		f.Add(raw)
		f.Add(raw[:len(raw)/2])
	}
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := DecodeSnapshot(raw)
		if err != nil {
			if starling.KindOf(err) != starling.Invalid {
				t.Fatalf("garbage is refused as %v: %v", starling.KindOf(err), err)
			}
			return
		}
		again, err := EncodeSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeSnapshot(again); err != nil || !reflect.DeepEqual(back, s) {
			t.Fatalf("%v: coded again it is\n%+v, was\n%+v", err, back, s)
		}
		now := time.Unix(1_700_000_000, 0)
		r := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
		r.Step(now, Restore{Partition: 1, Epoch: s.Epoch + 1, Range: s.Range, Snapshot: Join(s.Divide(s.Range.Lo + 1))})
		r.Step(now.Add(time.Second), LeaseUntil{now.Add(time.Hour)})
		r.Step(now.Add(2*time.Second), Tick{})
	})
}

// TestCutSnapshotIsRefused: at every byte.
func TestCutSnapshotIsRefused(t *testing.T) {
	w := newRing(4)
	if err := w.run(150); err != nil {
		t.Fatal(err)
	}
	s := w.parts[0].s.Snapshot(w.now)
	raw, err := EncodeSnapshot(&s)
	if err != nil {
		t.Fatal(err)
	}
	for n := range raw {
		if _, err := DecodeSnapshot(raw[:n]); starling.KindOf(err) != starling.Invalid {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(raw), err)
		}
	}
}

// TestTheLeastVersionIsRead: a state that ends with versions of which nothing is known is whole.
func TestTheLeastVersionIsRead(t *testing.T) {
	w := snapshotWriter{}
	w.version(&VersionState{Again: -1})
	if len(w.b) < versionBytes {
		t.Errorf("a version may take %d bytes, a count is believed for %d each", len(w.b), versionBytes)
	}
	coded(t, Snapshot{Versions: slices.Repeat([]VersionState{{Again: -1}}, 20)})
}
