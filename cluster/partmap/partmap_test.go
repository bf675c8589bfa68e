package partmap

import (
	"slices"
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

// Whatever is applied, every key has exactly one partition, the epoch of its partition only rises, no id comes back,
// and a published map never changes.
func TestRandomChangesKeepTheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := Initial(rapid.IntRange(1, 20).Draw(t, "partitions"))
		if err != nil {
			t.Fatal(err)
		}
		ended := map[starling.PartitionID]bool{}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			published, before := m, m.Clone()
			m = m.Clone()
			c := drawChange(t, m)
			err := m.Apply(c)
			if err := m.Check(); err != nil {
				t.Fatalf("%+v: %v", c, err)
			}
			if !slices.Equal(before.Partitions, published.Partitions) || before.Last != published.Last {
				t.Fatal("a published map was edited")
			}
			if err != nil && !slices.Equal(before.Partitions, m.Partitions) {
				t.Fatalf("%+v was refused (%v) and changed the map", c, err)
			}
			k := starling.Key64(rapid.Uint64().Draw(t, "key"))
			old, _ := before.Lookup(k)
			now, ok := m.Lookup(k)
			if !ok || !now.Range.Contains(k) {
				t.Fatalf("key %016x lies in %v, said Lookup", uint64(k), now)
			}
			if now != old && now.Epoch <= old.Epoch || now.Since < old.Since {
				t.Fatalf("%+v took key %016x from %+v to %+v", c, uint64(k), old, now)
			}
			for _, p := range before.Partitions {
				if _, ok := m.ByID(p.ID); !ok {
					ended[p.ID] = true
				}
			}
			for _, p := range m.Partitions {
				if ended[p.ID] {
					t.Fatalf("%s came back", p.ID)
				}
			}
		}
	})
}

// drawChange draws a change that is often legal.
func drawChange(t *rapid.T, m *Map) Change {
	i := rapid.IntRange(0, len(m.Partitions)-1).Draw(t, "at")
	p := m.Partitions[i]
	c := Change{Kind: ChangeKind(rapid.IntRange(0, 5).Draw(t, "kind")), Partition: p.ID, Epoch: p.Epoch,
		To: starling.NodeID(rapid.IntRange(0, 3).Draw(t, "to")), At: starling.Key64(rapid.Uint64().Draw(t, "key"))}
	if rapid.Bool().Draw(t, "inside") {
		c.At = p.Range.Lo + (p.Range.Hi-p.Range.Lo)/2
	}
	if i+1 < len(m.Partitions) {
		c.With, c.WithEpoch = m.Partitions[i+1].ID, m.Partitions[i+1].Epoch
	}
	if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
		c.Epoch++
	}
	return c
}

func TestMoveSplitMerge(t *testing.T) {
	m, _ := Initial(2)
	must := func(c Change) {
		t.Helper()
		if err := m.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	must(Change{Kind: Assign, Partition: 1, To: 7})
	must(Change{Kind: Assign, Partition: 2, To: 8})
	must(Change{Kind: Move, Partition: 1, Epoch: 1, To: 8})
	must(Change{Kind: Split, Partition: 1, Epoch: 2, At: 1 << 62})
	must(Change{Kind: Merge, Partition: 3, Epoch: 3, With: 2, WithEpoch: 1})
	want := []Partition{
		{ID: 1, Range: starling.Range{Hi: 1 << 62}, Epoch: 3, Owner: 8, Since: 1},
		{ID: 3, Range: starling.Range{Lo: 1 << 62}, Epoch: 4, Owner: 8, Since: 1},
	}
	if !slices.Equal(m.Partitions, want) || m.Last != 3 {
		t.Fatalf("got %+v, last %d", m.Partitions, m.Last)
	}
	for _, refused := range []struct {
		c    Change
		kind starling.Kind
	}{
		{Change{Kind: Move, Partition: 1, Epoch: 3, To: 8}, starling.Invalid},
		{Change{Kind: Move, Partition: 1, Epoch: 2, To: 7}, starling.Moved},
		{Change{Kind: Split, Partition: 1, Epoch: 3, At: 1 << 62}, starling.Invalid},
		{Change{Kind: Split, Partition: 1, Epoch: 3, At: 0}, starling.Invalid},
		{Change{Kind: Merge, Partition: 1, Epoch: 3, With: 2, WithEpoch: 1}, starling.Conflict},
		{Change{Kind: Merge, Partition: 1, Epoch: 3, With: 3, WithEpoch: 3}, starling.Moved},
		{Change{Kind: Merge, Partition: 3, Epoch: 4, With: 1, WithEpoch: 3}, starling.Conflict},
		{Change{Kind: 99, Partition: 1, Epoch: 3}, starling.Invalid},
	} {
		if err := m.Apply(refused.c); starling.KindOf(err) != refused.kind {
			t.Errorf("%+v: got %v, want %v", refused.c, err, refused.kind)
		}
	}
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
		"an id not given":  func(m *Map) { m.Last = 3 },
		"a late recovery":  func(m *Map) { m.Partitions[1].Since = 3 },
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

// After a change the map shows that it was made, and shows it of no other change.
func TestMadeTellsWhatWasDone(t *testing.T) {
	changes := []Change{{Kind: Assign, Partition: 1, Epoch: 1, To: 7}, {Kind: Move, Partition: 1, Epoch: 1, To: 7}, {Kind: Split, Partition: 1, Epoch: 1, At: 1 << 40}, {Kind: Merge, Partition: 1, Epoch: 1, With: 2, WithEpoch: 1}}
	for _, done := range changes {
		m, _ := Initial(4)
		for i := range m.Partitions {
			m.Partitions[i].Owner, m.Partitions[i].Epoch, m.Partitions[i].Since = 6, 1, 1
		}
		if m.Made(done) {
			t.Fatalf("%v seems to be made before it is", done.Kind)
		}
		if m.Beaten(done) {
			t.Fatalf("%v seems to be beaten before anything happened", done.Kind)
		}
		if err := m.Apply(done); err != nil {
			t.Fatal(err)
		}
		for _, other := range changes {
			if m.Made(other) != (other == done) {
				t.Errorf("after %v, made(%v) is %t", done.Kind, other.Kind, m.Made(other))
			}
			if m.Beaten(other) != (other != done) {
				t.Errorf("after %v, beaten(%v) is %t", done.Kind, other.Kind, m.Beaten(other))
			}
		}
	}
}

// TestNobodyCanTellAfterALaterChange: a change that was made, and one that was not, look alike once more happened.
func TestNobodyCanTellAfterALaterChange(t *testing.T) {
	m, _ := Initial(4)
	for i := range m.Partitions {
		m.Partitions[i].Owner, m.Partitions[i].Epoch, m.Partitions[i].Since = 6, 1, 1
	}
	move := Change{Kind: Move, Partition: 1, Epoch: 1, To: 7}
	for _, c := range []Change{move, {Kind: Move, Partition: 1, Epoch: 2, To: 6}} {
		if err := m.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	if m.Made(move) || m.Beaten(move) {
		t.Errorf("of a move with another one behind it the map says made %t, beaten %t", m.Made(move), m.Beaten(move))
	}
}

// How many partitions the cluster was made with can be told while the last of them is there, whatever else was done.
func TestFirstIsWhatTheClusterWasMadeWith(t *testing.T) {
	for _, n := range []int{1, 2, 64, 1000, starling.PartitionMax - 8} {
		m, _ := Initial(n)
		for i := range m.Partitions {
			m.Partitions[i].Owner, m.Partitions[i].Epoch = 1, 1
		}
		for i := range 7 { // cut here and there, and join what was there first, but for the last
			p := m.Partitions[i*len(m.Partitions)/7]
			at := p.Range.Lo + (p.Range.Hi-p.Range.Lo-1)/3
			if err := m.Apply(Change{Kind: Split, Partition: p.ID, Epoch: p.Epoch, At: at}); err != nil {
				t.Fatal(err)
			}
			low, high := m.Partitions[0], m.Partitions[1]
			if n > 2 && i%2 == 1 {
				if err := m.Apply(Change{Kind: Merge, Partition: low.ID, Epoch: low.Epoch, With: high.ID, WithEpoch: high.Epoch}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := m.First(); got != n {
			t.Errorf("made with %d, and the map says %d", n, got)
		}
	}
	if got := new(Map).First(); got != 0 {
		t.Errorf("the empty map was made with %d partitions", got)
	}
}
