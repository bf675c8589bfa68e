package overload

import (
	"errors"
	"testing"
	"time"

	"starling"
)

// TestTheHeavyAreRefusedFirst: an overloaded node refuses the account that asks for too much, with a reason and a
// pause, and nobody else; when the load is gone nobody is refused.
func TestTheHeavyAreRefusedFirst(t *testing.T) {
	base := time.Now()
	g := &Gate{Now: func() int64 { return int64(time.Since(base)) }}
	loud, quiet := starling.FunctionRef{Account: "loud", Name: "f"}, starling.FunctionRef{Account: "quiet", Name: "f"}
	refused := 0
	window := func(pressure float64, calls int) {
		for i := range calls {
			if err := g.Pass(loud); err != nil {
				refused++
				var e *starling.Error
				if starling.KindOf(err) != starling.Overloaded || starling.ReasonOf(err) != Reason || !errors.As(err, &e) || e.After < time.Second {
					t.Fatalf("refused with %v", err)
				}
			}
			if i%50 == 0 {
				if err := g.Pass(quiet); err != nil {
					t.Fatalf("the quiet account was refused: %v", err)
				}
			}
		}
		g.Decide(pressure, nil)
	}
	window(0, 1000)
	for p := 1.0; p < 2.5; p += 0.1 {
		window(p, 1000)
	}
	if refused < 3_000 {
		t.Errorf("of 15,000 calls only %d were refused", refused)
	}
	for range 200 {
		window(0, 1000)
	}
	refused = 0
	if window(0, 1000); refused > 0 {
		t.Errorf("a node that is well refused %d calls", refused)
	}
}

// TestAJumpIsHeldAtTheFirstQueue: an account that begins to ask for 50 times what the others do is held to a tenth of it at the second look that
// shows a queue, before a window ends; one that has asked for as much all the time is not, nor is one that calls alone.
func TestAJumpIsHeldAtTheFirstQueue(t *testing.T) {
	loud, quiet := starling.FunctionRef{Account: "loud", Name: "f"}, starling.FunctionRef{Account: "quiet", Name: "f"}
	for _, x := range []struct {
		name           string
		before, beside int // windows in which it called as much, calls of the quiet one in a look
		refused        bool
	}{{"begins", 0, 2, true}, {"goes on", 30, 2, false}, {"alone", 0, 0, false}} {
		now := int64(0)
		g := &Gate{Now: func() int64 { return now }}
		refused := 0
		look := func(calls int, perCPU float64) {
			for range calls {
				if now += int64(SampleTime) / int64(calls); g.Pass(loud) != nil {
					refused++
				}
			}
			for range x.beside {
				if err := g.Pass(quiet); err != nil {
					t.Fatalf("%s: the quiet account was refused: %v", x.name, err)
				}
			}
			g.Look(perCPU)
		}
		for range 10 {
			for range x.beside {
				_ = g.Pass(quiet)
			}
			g.Decide(0, nil)
		}
		for range x.before {
			for range Samples {
				look(100, 1)
			}
			g.Decide(0.2, nil)
		}
		for range 2 {
			look(100, 5)
		}
		if refused > 0 {
			t.Fatalf("%s: %d calls were refused before two looks showed a queue", x.name, refused)
		}
		for range Samples - 2 {
			look(100, 5)
		}
		if held := refused >= 200; held != x.refused || !held && refused > 0 {
			t.Errorf("%s: %d of 300 calls were refused", x.name, refused)
		}
	}
}

// TestALimitLetsInEvenly: of calls that come all at once only those of burstTime pass, and over a second as many as the
// interval says.
func TestALimitLetsInEvenly(t *testing.T) {
	l := &limit{interval: int64(time.Millisecond)}
	burst, all := 0, 0
	for range 1000 {
		if l.take(0) {
			burst++
		}
	}
	for now := range int64(10_000) {
		if l.take(now * int64(100*time.Microsecond)) {
			all++
		}
	}
	if want := int(burstTime/time.Millisecond) + 1; burst != want {
		t.Errorf("%d calls at one instant, want %d", burst, want)
	}
	if all += burst; all < 1000 || all > 1000+burst {
		t.Errorf("%d calls in a second, want 1000 and a burst of %d", all, burst)
	}
}

// BenchmarkPass is what the gate costs a call: while the node is well, and a refused one.
func BenchmarkPass(b *testing.B) {
	base := time.Now()
	f := starling.FunctionRef{Account: "acme", Name: "function"}
	b.Run("well", func(b *testing.B) {
		g := &Gate{Now: func() int64 { return int64(time.Since(base)) }}
		b.ReportAllocs()
		for b.Loop() {
			_ = g.Pass(f)
		}
	})
	b.Run("refused", func(b *testing.B) {
		g := &Gate{Now: func() int64 { return int64(time.Since(base)) }}
		g.tally(f).limit.Store(&limit{refusal: refusal(f, 0.1), interval: int64(time.Hour)})
		b.ReportAllocs()
		for b.Loop() {
			_ = g.Pass(f)
		}
	})
}

// TestCallersAreWhoCallsNow: whoever calls once a second or more is one of those who call here, and none who left off.
func TestCallersAreWhoCallsNow(t *testing.T) {
	g := &Gate{Now: func() int64 { return 0 }}
	window := func(names ...starling.AccountID) {
		for _, n := range names {
			if err := g.Pass(starling.FunctionRef{Account: n, Name: "f"}); err != nil {
				t.Fatal(err)
			}
		}
		g.Decide(0, nil)
	}
	for range 20 {
		window("a", "b")
	}
	if got := g.Callers(); len(got) != 2 {
		t.Errorf("%v call, want a and b", got)
	}
	for range 50 {
		window("a")
	}
	if got := g.Callers(); len(got) != 1 || got[0] != "a" {
		t.Errorf("%v call five seconds after b left off, want a", got)
	}
}
