package flow

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"starling"
)

// TestSharesSumToTheLimit: however the key space is cut, the shares of a span sum to the limit.
func TestSharesSumToTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 1<<40).Draw(t, "limit")
		key := starling.Key64(rapid.Uint64().Draw(t, "key"))
		near := rapid.Uint64Range(0, 3<<32)
		cuts := []uint64{0}
		for range rapid.IntRange(0, 6).Draw(t, "cuts") {
			if rapid.Bool().Draw(t, "anywhere") {
				cuts = append(cuts, rapid.Uint64().Draw(t, "cut"))
			} else {
				cuts = append(cuts, uint64(key)>>32<<32-1<<32+near.Draw(t, "near"))
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		sum := 0
		for i, lo := range cuts {
			r := starling.Range{Lo: starling.Key64(lo)}
			if i+1 < len(cuts) {
				r.Hi = starling.Key64(cuts[i+1])
			}
			n := Share(limit, key, r)
			if n < 0 || n > limit {
				t.Fatalf("share %d of %d", n, limit)
			}
			sum += n
		}
		if sum != limit {
			t.Fatalf("shares of %x cut at %x sum to %d, not %d", key, cuts, sum, limit)
		}
	})
}

func TestBackoffDoublesToItsLimit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for n := 1; n < 50; n++ {
		want := min(100*time.Millisecond<<min(n-1, 20), 30*time.Second)
		for range 50 {
			if d := Backoff(n, 100*time.Millisecond, 30*time.Second, rng); d < want/2 || d > want {
				t.Fatalf("pause %d is %v, want %v to %v", n, d, want/2, want)
			}
		}
	}
}

func TestAdmitKeepsBothBounds(t *testing.T) {
	b := Bounds{Function: 2, Total: 3}
	if !b.Admit(1, 2) || b.Admit(2, 2) || b.Admit(0, 3) {
		t.Error("the bounds are not kept")
	}
}
