package partition

import (
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/wire"
)

// answers asks a node and sends what it answers, nil for nothing within two seconds.
func (f *frontend) answers(to starling.NodeID, e starling.Epoch, v starling.VersionID) <-chan wire.Message {
	got := make(chan wire.Message, 1)
	go func() { got <- f.ask(to, e, v, 2*time.Second) }()
	return got
}

// TestACallThatComesBeforeTheMapWaits: a frontend hears of the next owner before that one does. Its call is served as soon as the
// map comes, on an instance that is started at once: the node remembers what room the host reported before.
func TestACallThatComesBeforeTheMapWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, _ := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		time.Sleep(50 * time.Millisecond)

		got := f.answers(2, 2, 7)
		time.Sleep(earlyTime / 2)
		at := time.Now()
		c.publish(oneOwner(2, 2), without(1))
		m := <-got
		if g, ok := m.(*wire.Grant); !ok || g.Lease.Epoch != 2 || !g.Lease.Phases.Cold() {
			t.Fatalf("the call was answered %+v, want a lease on a new instance in epoch 2", m)
		}
		if d := time.Since(at); d > 50*time.Millisecond {
			t.Errorf("it waited %v after the map came", d)
		}
	})
}

// TestACallForALifeThatDoesNotBeginIsToldMoved: it waits for a moment, not for ever, and not at all when the map that the node has
// is the frontend's own.
func TestACallForALifeThatDoesNotBeginIsToldMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, f, _ := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 5), members)
		time.Sleep(50 * time.Millisecond)
		for _, q := range []struct {
			epoch    starling.Epoch
			from, to time.Duration
		}{{5, 0, 10 * time.Millisecond}, {4, 0, 10 * time.Millisecond}, {6, earlyTime, earlyTime + 2*beat}} {
			at := time.Now()
			m := <-f.answers(2, q.epoch, 7)
			r, ok := m.(*wire.Reject)
			if d := time.Since(at); !ok || r.Reject != starling.Moved || d < q.from || d > q.to {
				t.Errorf("a call of epoch %d was answered %+v after %v, want Moved between %v and %v", q.epoch, m, d, q.from, q.to)
			}
		}
	})
}

// TestACallDoesNotFollowAPartitionToTheDead: a partition was handed to a node that dies. What still comes to its former place follows
// it, but a call that knows of the life after that waits for it.
func TestACallDoesNotFollowAPartitionToTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, keepers := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 5), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		keepers[2].expect([]starling.PartitionID{1}, []*stray{{until: time.Now().Add(strayTime)}})

		got := f.answers(2, 6, 7)
		time.Sleep(10 * time.Millisecond)
		c.publish(oneOwner(2, 6), without(1))
		m := <-got
		if g, ok := m.(*wire.Grant); !ok || g.Lease.Epoch != 6 {
			t.Errorf("the call was answered %+v, want a lease of epoch 6", m)
		}
	})
}
