package place

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestChoosePrefers(t *testing.T) {
	base := Candidate{FreeMiB: 1024, TotalMiB: 2048}
	for _, c := range []struct {
		name string
		more func(*Candidate)
		wins bool
	}{
		{"a host with the code", func(c *Candidate) { c.Warm = true }, true},
		{"a host with a ready sandbox", func(c *Candidate) { c.Pooled = true }, true},
		{"an emptier host", func(c *Candidate) { c.FreeMiB = 2048 }, true},
		{"a busy host", func(c *Candidate) { c.CPU = 900 }, false},
		{"a host with an instance of the version", func(c *Candidate) { c.Same = 1 }, false},
		{"a zone with an instance of the version", func(c *Candidate) { c.SameZone = 1 }, false},
		{"a host that is starting others", func(c *Candidate) { c.Starting = 3 }, false},
		{"a warm host with ten instances of the version", func(c *Candidate) { c.Warm, c.Same = true, 10 }, false},
	} {
		other := base
		c.more(&other)
		for seed := range uint64(8) {
			got := Choose([]Candidate{base, other}, Want{MemoryMiB: 128, StartingMax: 10}, DefaultWeights(), rand.New(rand.NewPCG(seed, 1)))
			if (got == 1) != c.wins {
				t.Errorf("%s: chosen %d, want it to win: %t", c.name, got, c.wins)
			}
		}
	}
}

// TestComputingGoesBesideWaiting: a version that computes goes where others wait, one that waits does not care.
func TestComputingGoesBesideWaiting(t *testing.T) {
	cands := []Candidate{{Node: 1, FreeMiB: 1024, TotalMiB: 2048, Bound: 900}, {Node: 2, FreeMiB: 1024, TotalMiB: 2048, Bound: 100}}
	seen := map[int]int{}
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		if got := Choose(cands, Want{MemoryMiB: 128, StartingMax: 10, CPU: 800}, DefaultWeights(), rng); got != 1 {
			t.Errorf("a version that computes went to host %d", got)
		}
		seen[Choose(cands, Want{MemoryMiB: 128, StartingMax: 10}, DefaultWeights(), rng)]++
	}
	if len(seen) != 2 {
		t.Errorf("without a profile the choice is %v", seen)
	}
}

func TestTiesAreSpread(t *testing.T) {
	cands := make([]Candidate, 4)
	for i := range cands {
		cands[i].FreeMiB = 1024
	}
	rng, seen := rand.New(rand.NewPCG(1, 1)), map[int]int{}
	for range 400 {
		seen[Choose(cands, Want{MemoryMiB: 128, StartingMax: 1}, DefaultWeights(), rng)]++
	}
	for i := range cands {
		if seen[i] < 60 {
			t.Errorf("of 400 equal choices host %d got %d", i, seen[i])
		}
	}
}

// TestChosenHasRoom: whoever is chosen fits, and somebody is chosen when somebody fits.
func TestChosenHasRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Want{MemoryMiB: rapid.IntRange(128, 4096).Draw(t, "memory"), StartingMax: rapid.IntRange(1, 4).Draw(t, "max")}
		n, fits := rapid.IntRange(0, 20).Draw(t, "hosts"), false
		cands := make([]Candidate, n)
		for i := range cands {
			cands[i] = Candidate{FreeMiB: rapid.IntRange(-100, 5000).Draw(t, "free"), TotalMiB: rapid.IntRange(0, 5000).Draw(t, "total"),
				Starting: rapid.IntRange(0, 5).Draw(t, "starting"), CPU: rapid.IntRange(0, 1000).Draw(t, "cpu"), Same: rapid.IntRange(0, 20).Draw(t, "same")}
			fits = fits || cands[i].FreeMiB >= want.MemoryMiB && cands[i].Starting < want.StartingMax
		}
		got := Choose(cands, want, DefaultWeights(), rand.New(rand.NewPCG(1, 1)))
		if (got >= 0) != fits {
			t.Fatalf("chosen %d, somebody fits: %t", got, fits)
		}
		if got >= 0 && (cands[got].FreeMiB < want.MemoryMiB || cands[got].Starting >= want.StartingMax) {
			t.Fatalf("chosen %+v has no room for %+v", cands[got], want)
		}
	})
}

func BenchmarkChoose1000(b *testing.B) {
	cands := make([]Candidate, 1000)
	for i := range cands {
		cands[i] = Candidate{FreeMiB: i, TotalMiB: 1000, Starting: i % 5}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		Choose(cands, Want{MemoryMiB: 128, StartingMax: 10}, DefaultWeights(), rng)
	}
}
