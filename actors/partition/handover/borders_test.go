package handover

import (
	"testing"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// TestABorderIsAsOldAsItsCut: who was told of a cut knows when; who has just begun takes every border for new; a border that went with
// a merge and came back is a new one.
func TestABorderIsAsOldAsItsCut(t *testing.T) {
	m, _ := partmap.Initial(1)
	var b Borders
	start := time.Unix(1_700_000_000, 0)
	at := func(d time.Duration, changes ...partmap.Change) time.Time {
		t.Helper()
		m = m.Clone()
		for _, c := range changes {
			p, _ := m.ByID(c.Partition)
			c.Epoch = p.Epoch
			if c.With != 0 {
				with, _ := m.ByID(c.With)
				c.WithEpoch = with.Epoch
			}
			if err := m.Apply(c); err != nil {
				t.Fatal(err)
			}
		}
		b.Note(start.Add(d), m)
		return start.Add(d)
	}
	want := func(id starling.PartitionID, at time.Time) {
		t.Helper()
		p, _ := m.ByID(id)
		if got := b.Drawn(m, p); !got.Equal(at) {
			t.Errorf("the borders of %v were drawn at %v, want %v", id, got.Sub(start), at.Sub(start))
		}
	}
	first := at(0, partmap.Change{Kind: partmap.Assign, Partition: 1, To: 7}, partmap.Change{Kind: partmap.Split, Partition: 1, At: 1 << 62})
	want(1, first)
	second := at(time.Second, partmap.Change{Kind: partmap.Split, Partition: 2, At: 1 << 63})
	want(1, first)
	want(2, second)
	want(3, second)
	at(1500*time.Millisecond, partmap.Change{Kind: partmap.Assign, Partition: 2, To: 8}, partmap.Change{Kind: partmap.Assign, Partition: 2, To: 7})
	want(2, second)
	again := at(2*time.Second, partmap.Change{Kind: partmap.Merge, Partition: 2, With: 3}, partmap.Change{Kind: partmap.Split, Partition: 2, At: 1 << 63})
	want(2, again)
	at(time.Minute)
	want(1, again) // long ago is all that is kept of it
}
