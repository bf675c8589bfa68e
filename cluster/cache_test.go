package cluster

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
)

func newTestCache(entries int) *cache[int, int] {
	return newCache[int, int](entries, time.Now, func(k int) uint64 { return uint64(k) })
}

func TestCacheReadsOnceForManyAskers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(1024)
		var reads atomic.Int32
		for range 100 {
			go func() {
				v, err := c.get(t.Context(), 7, func(context.Context, int) (int, error) {
					reads.Add(1)
					time.Sleep(time.Second)
					return 49, nil
				})
				if v != 49 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			}()
		}
		time.Sleep(2 * time.Second)
		if reads.Load() != 1 || c.size() != 1 {
			t.Fatalf("%d reads, %d entries", reads.Load(), c.size())
		}
	})
}

// A read that began before a drop may carry what the drop was about: it is answered but not remembered, and
// who asks after the drop does not wait for it.
func TestCacheDoesNotRememberWhatWasDroppedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(1024)
		go func() {
			v, err := c.get(t.Context(), 7, func(context.Context, int) (int, error) { time.Sleep(time.Second); return 1, nil })
			if v != 1 || err != nil {
				t.Errorf("the early asker got %d, %v", v, err)
			}
		}()
		time.Sleep(100 * time.Millisecond)
		c.drop(7)
		v, err := c.get(t.Context(), 7, func(context.Context, int) (int, error) { return 2, nil })
		if v != 2 || err != nil {
			t.Fatalf("got %d, %v", v, err)
		}
		time.Sleep(2 * time.Second)
		if v, _ := c.get(t.Context(), 7, nil); v != 2 {
			t.Fatalf("the late answer %d replaced the newer one", v)
		}
	})
}

func TestCacheRemembersAbsenceForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(1024)
		reads := 0
		read := func(context.Context, int) (int, error) {
			reads++
			return 0, starling.Errorf(starling.NotFound, "read", "nothing")
		}
		for range 5 {
			if _, err := c.get(t.Context(), 1, read); starling.KindOf(err) != starling.NotFound {
				t.Fatal(err)
			}
		}
		if reads != 1 {
			t.Fatalf("%d reads within a second", reads)
		}
		time.Sleep(missingAge)
		_, _ = c.get(t.Context(), 1, read)
		if reads != 2 {
			t.Fatal("absence was remembered for too long")
		}
		c.drop(1)
		_, _ = c.get(t.Context(), 1, read)
		if reads != 3 {
			t.Fatal("absence outlived a drop")
		}
	})
}

// Made-up keys push out nothing that is real, and neither store grows without end.
func TestCacheIsBounded(t *testing.T) {
	c := newTestCache(512)
	for k := range 10_000 {
		_, _ = c.get(t.Context(), k, func(context.Context, int) (int, error) { return k, nil })
	}
	if c.size() > 512 {
		t.Fatalf("%d entries", c.size())
	}
	kept := c.size()
	for k := range 10_000 {
		_, _ = c.get(t.Context(), 100_000+k, func(context.Context, int) (int, error) {
			return 0, starling.Errorf(starling.NotFound, "read", "nothing")
		})
	}
	if c.size() != kept || len(c.shards[0].missing) > missingMax {
		t.Fatalf("%d entries and %d absences after made-up keys", c.size(), len(c.shards[0].missing))
	}
}

// One asker who gives up does not fail the others.
func TestCacheAskersHaveTheirOwnPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(512)
		read := func(ctx context.Context, _ int) (int, error) {
			select {
			case <-ctx.Done():
				return 0, starling.Errorf(starling.Unavailable, "read", "gave up")
			case <-time.After(time.Second):
				return 5, nil
			}
		}
		go func() {
			hasty, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := c.get(hasty, 1, read); starling.KindOf(err) != starling.Unavailable {
				t.Errorf("the hasty asker got %v", err)
			}
		}()
		time.Sleep(50 * time.Millisecond)
		if v, err := c.get(t.Context(), 1, read); v != 5 || err != nil {
			t.Fatalf("the patient asker got %d, %v", v, err)
		}
	})
}

// warm returns a view whose cache holds one of each.
func warm(tb testing.TB) *View {
	v := NewView(ViewConfig{})
	v.cache.read = func(_ context.Context, q Query) (Reply, error) {
		return Reply{Version: &starling.Version{ID: 1}, Key: &starling.Key{}, Account: &starling.Account{}}, nil
	}
	if _, err := v.Resolve(context.Background(), helloRef, 0); err != nil {
		tb.Fatal(err)
	}
	if _, err := v.Key(context.Background(), [32]byte{1}); err != nil {
		tb.Fatal(err)
	}
	return v
}

func TestHitsAllocateNothing(t *testing.T) {
	v, ctx := warm(t), context.Background()
	if n := testing.AllocsPerRun(100, func() {
		_, _ = v.Resolve(ctx, helloRef, 0)
		_, _ = v.Key(ctx, [32]byte{1})
		_ = v.Map()
		_ = v.LeaseUntil()
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkResolveHit(b *testing.B) {
	v, ctx := warm(b), context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Resolve(ctx, helloRef, 0); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkKeyHit(b *testing.B) {
	v, ctx := warm(b), context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Key(ctx, [32]byte{1}); err != nil {
				b.Error(err)
			}
		}
	})
}

// A value that another read brought along is kept, but not when something was dropped since that read began.
func TestCacheKeepsWhatAnotherReadBrought(t *testing.T) {
	c := newTestCache(1024)
	began := c.drops.Load()
	c.put(7, 49, began)
	if v, err := c.get(t.Context(), 7, nil); v != 49 || err != nil {
		t.Fatalf("got %d, %v", v, err)
	}
	c.drop(7)
	c.put(7, 49, began)
	if c.size() != 0 {
		t.Fatal("kept what a drop may have been about")
	}
}
