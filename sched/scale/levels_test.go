package scale

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestLevelsAreHeldByTheirOwnIdleTime(t *testing.T) {
	var s levels
	const worth = 600
	now := time.Duration(0)
	for range 200 { // two are used all the time, four each minute, forty every forty minutes
		for range 60 {
			now += time.Second
			s.see(now, 2)
		}
		s.see(now, 4)
		if now%(40*time.Minute) < time.Minute {
			s.see(now, 40)
		}
	}
	now += 20 * time.Second
	s.see(now, 2)
	if n, again := s.held(now, worth); n != 4 || again <= 0 {
		t.Errorf("%d instances are held for %.0f s, want those that are used each minute", n, again)
	}
	if n, _ := s.held(now, 1e6); n != 40 {
		t.Errorf("%d instances are held at any price, want all that were ever used", n)
	}
}

func TestStartsGoAheadOfAnActivityLikeOthers(t *testing.T) {
	var s levels
	if n := s.ahead(1); n != 1 {
		t.Errorf("%d instances for one call of a function never seen", n)
	}
	for k := range 20 {
		s.ended(1 + k%2*9) // every other one needs ten
	}
	if n := s.ahead(1); n != 16 {
		t.Errorf("%d instances, want the octave that half of the activities came to", n)
	}
	if n := s.ahead(11); n != 11 {
		t.Errorf("%d instances for one that is as large as any was", n)
	}
}

// Whatever comes, the skyline falls from the oldest step to the youngest, and no count runs over.
func TestSkylineHolds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var s levels
	now := time.Duration(0)
	for range 50_000 {
		now += time.Duration(rng.ExpFloat64() * float64(time.Minute))
		n := 1 + int(rng.ExpFloat64()*50)
		s.see(now, n)
		s.ended(n)
		for k := 1; k < int(s.n); k++ {
			if s.top[k] >= s.top[k-1] || s.at[k] < s.at[k-1] {
				t.Fatalf("step %d of %d: %v since %v", k, s.n, s.top, s.at)
			}
		}
		for _, h := range s.hits {
			sum := 0
			for _, c := range h {
				sum += int(c)
			}
			if sum > levelMax {
				t.Fatalf("%d samples in a group", sum)
			}
		}
		if held, _ := s.held(now, 600); held < 1 || held > int(s.top[0]) {
			t.Fatalf("%d held of %d", held, s.top[0])
		}
	}
}
