package ledger

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	seeds = flag.Uint64("seeds", 300, "worlds that the property test runs")
	seed  = flag.Uint64("seed", 0, "run this world only")
)

// run lets a world live under faults for some seconds, then in peace until all permits are back.
func run(w *world) error {
	for range 600 {
		if w.rng.IntN(3) == 0 {
			w.anything()
		}
		if err := w.step(time.Duration(w.rng.IntN(30)) * time.Millisecond); err != nil {
			return err
		}
	}
	// Every network heals: what is asked for now is lent at last, and nothing is stuck anywhere.
	w.calm, w.mail = true, nil
	for range 300 {
		if err := w.step(10 * time.Millisecond); err != nil {
			return err
		}
	}
	for _, p := range w.parts {
		p.wait, p.leased = 0, 0
	}
	for range 200 {
		if err := w.step(10 * time.Millisecond); err != nil {
			return err
		}
	}
	if n := w.held(); n != 0 {
		return fmt.Errorf("two seconds after the last call %d permits are not back", n)
	}
	p := w.parts[w.rng.IntN(len(w.parts))]
	p.wait = w.limit
	for range 200 {
		if err := w.step(10 * time.Millisecond); err != nil {
			return err
		}
	}
	if p.leased != w.limit {
		return fmt.Errorf("in two seconds of peace partition %d got %d of %d permits", p.id, p.leased, w.limit)
	}
	return nil
}

func (w *world) held() int {
	n := 0
	for _, p := range w.parts {
		if p.purse != nil {
			n += p.purse.Held(p.leased)
		}
	}
	return n
}

// TestTheLimitHolds: whatever the network does, whoever dies, moves or splits, and whatever the limit becomes, no
// permit is held twice, and all are to be had again.
func TestTheLimitHolds(t *testing.T) {
	from, to := uint64(1), *seeds
	if *seed != 0 {
		from, to = *seed, *seed
	}
	for n := from; n <= to; n++ {
		if err := run(newWorld(n, 0)); err != nil {
			t.Fatalf("%v; rerun with -seed=%d", err, n)
		}
	}
}

// TestPlantedBugsAreCaught: a book that lends before it has heard of all, one that takes the silent for dead, and a
// purse that believes late messages, each break the promise in some world.
func TestPlantedBugsAreCaught(t *testing.T) {
	for _, bug := range []string{"forgetful", "impatient", "gullible"} {
		caught := false
		for n := uint64(1); n <= 200 && !caught; n++ {
			w := newWorld(n, 0)
			w.bug = bug
			caught = run(w) != nil
		}
		if !caught {
			t.Errorf("the %s one was not caught", bug)
		}
	}
}

// TestPermitsOfTheDeadComeBack: a borrower with the whole limit dies, and its calls with it. Within two seconds of its
// death another one has the whole limit; the same when the ledger's node dies beside it.
func TestPermitsOfTheDeadComeBack(t *testing.T) {
	for n := uint64(1); n <= 50; n++ {
		w := newWorld(n, 6)
		w.calm = true
		home := w.at(KeyOf(acme))
		a, b := w.parts[0], w.parts[1]
		if n%2 == 0 {
			a = home
		}
		for _, p := range w.parts {
			if p.node != a.node && p != a {
				b = p
			}
		}
		a.wait = w.limit
		for range 100 {
			w.must(t, 10*time.Millisecond)
		}
		if a.leased != w.limit {
			t.Fatalf("seed %d: the first borrower got %d of %d", n, a.leased, w.limit)
		}
		w.die(a.node)
		a.leased = 0
		b.wait = w.limit
		began := w.now
		for b.leased < w.limit && w.now-began < 10*time.Second {
			w.must(t, 10*time.Millisecond)
		}
		if d := w.now - began; d > 2*time.Second {
			t.Errorf("seed %d: permits of the dead were back after %v", n, d)
		}
	}
}

func (w *world) must(t *testing.T, d time.Duration) {
	t.Helper()
	if err := w.step(d); err != nil {
		t.Fatal(err)
	}
}

// TestScarcityIsShared: two who want more than there is get half each, a third who wants little gets that.
func TestScarcityIsShared(t *testing.T) {
	w := newWorld(1, 6)
	w.calm = true
	w.limitTo(100)
	w.parts[0].wait = 500
	for range 100 {
		w.must(t, 10*time.Millisecond)
	}
	w.parts[2].wait, w.parts[4].wait = 500, 3
	for range 300 {
		w.must(t, 10*time.Millisecond)
		p := w.parts[0]
		if p.leased > p.purse.Permits { // calls end, and are not followed by others above what is allowed
			p.leased--
		}
	}
	x, y, z := w.parts[0].leased, w.parts[2].leased, w.parts[4].leased
	if z != 3 || x < 45 || x > 50 || y < 45 || y > 50 {
		t.Errorf("of 100 permits the three got %d, %d and %d", x, y, z)
	}
}
