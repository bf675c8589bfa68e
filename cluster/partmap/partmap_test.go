package partmap

import (
	"testing"

	"pgregory.net/rapid"

	"starling"
)

func TestInitialTilesForEverySize(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 64, 1000, starling.PartitionMax} {
		m, err := Initial(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatalf("%d partitions: %v", n, err)
		}
	}
	for _, n := range []int{-1, 0, starling.PartitionMax + 1} {
		if _, err := Initial(n); starling.KindOf(err) != starling.Invalid {
			t.Fatalf("%d partitions: got %v, want Invalid", n, err)
		}
	}
}

func TestSpanOfAFunctionIsNotCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := Initial(rapid.IntRange(1, starling.PartitionMax).Draw(t, "partitions"))
		if err != nil {
			t.Fatal(err)
		}
		ref := starling.FunctionRef{Account: "a", Name: starling.FunctionName(rapid.String().Draw(t, "name"))}
		first, _ := m.Lookup(starling.KeyOf(ref, 0))
		last, _ := m.Lookup(starling.KeyOf(ref, 1<<32-1))
		if first.ID != last.ID {
			t.Fatalf("a new cluster splits the span of %q over %s and %s", ref, first.ID, last.ID)
		}
	})
}

// Whatever is applied, every key has exactly one partition, epochs only rise, each by one for each change
// that was taken, and a published map never changes.
func TestRandomChangesKeepTheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := Initial(rapid.IntRange(1, 50).Draw(t, "partitions"))
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			published := m
			before := published.Clone()
			m = m.Clone()
			c := Change{
				Kind:      ChangeKind(rapid.IntRange(0, 2).Draw(t, "kind")),
				Partition: starling.PartitionID(rapid.IntRange(0, 52).Draw(t, "partition")),
				Epoch:     starling.Epoch(rapid.IntRange(0, 4).Draw(t, "epoch")),
				To:        starling.NodeID(rapid.IntRange(0, 4).Draw(t, "to")),
			}
			old, exists := m.ByID(c.Partition)
			err := m.Apply(c)
			legal := exists && c.Kind == Assign && old.Epoch == c.Epoch
			if (err == nil) != legal {
				t.Fatalf("change %+v of %+v: got %v", c, old, err)
			}
			want := old
			if legal {
				want.Epoch, want.Owner = old.Epoch+1, c.To
			}
			if now, _ := m.ByID(c.Partition); now != want {
				t.Fatalf("change %+v of %+v left %+v", c, old, now)
			}
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			for i := range before.Partitions {
				if before.Partitions[i] != published.Partitions[i] {
					t.Fatal("a published map was edited")
				}
			}
			k := starling.Key64(rapid.Uint64().Draw(t, "key"))
			p, ok := m.Lookup(k)
			if !ok || !p.Range.Contains(k) {
				t.Fatalf("key %016x lies in %v, said Lookup", uint64(k), p)
			}
		}
	})
}

func TestCheckSeesDamage(t *testing.T) {
	damage := map[string]func(m *Map){
		"a gap":            func(m *Map) { m.Partitions[1].Range.Lo++ },
		"an overlap":       func(m *Map) { m.Partitions[0].Range.Hi++ },
		"a missing end":    func(m *Map) { m.Partitions = m.Partitions[:3] },
		"a missing start":  func(m *Map) { m.Partitions = m.Partitions[1:] },
		"an id used twice": func(m *Map) { m.Partitions[1].ID = 1 },
		"an id of 0":       func(m *Map) { m.Partitions[1].ID = 0 },
		"an early end":     func(m *Map) { m.Partitions[1].Range.Hi = 0 },
		"no epoch":         func(m *Map) { m.Partitions[1].Owner = 3 },
	}
	for name, f := range damage {
		m, err := Initial(4)
		if err != nil {
			t.Fatal(err)
		}
		f(m)
		if m.Check() == nil {
			t.Errorf("%s was not noticed", name)
		}
	}
}

func TestOwnedByFollowsChanges(t *testing.T) {
	m, _ := Initial(4)
	for _, id := range []starling.PartitionID{2, 4} {
		if err := m.Apply(Change{Kind: Assign, Partition: id, To: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.OwnedBy(7); len(got) != 2 || got[0].ID != 2 || got[1].ID != 4 || got[0].Epoch != 1 {
		t.Fatalf("got %+v", got)
	}
	if got := (&Map{}); got.Check() != nil {
		t.Fatal("the map of a cluster that is not made yet is whole")
	}
	if _, ok := (&Map{}).Lookup(1); ok {
		t.Fatal("an empty map holds no key")
	}
}

func BenchmarkLookup(b *testing.B) {
	m, _ := Initial(starling.PartitionMax)
	b.ReportAllocs()
	k := starling.Key64(1)
	for b.Loop() {
		k = k*6364136223846793005 + 1442695040888963407
		if _, ok := m.Lookup(k); !ok {
			b.Fatal("no partition")
		}
	}
}
