package overload

import (
	"errors"
	"testing"
	"time"

	"starling"
)

// TestTheHeavyAreRefusedFirst: an overloaded node refuses the account that asks for too much, with a reason and a
// pause, and nobody else; when the load is gone it counts no more.
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
	if g.counting.Load() {
		t.Error("a node that is well counts calls")
	}
	for p := 1.0; p < 2.5; p += 0.1 {
		window(p, 1000)
	}
	if refused < 3_000 {
		t.Errorf("of 15,000 calls only %d were refused", refused)
	}
	for range 200 {
		window(0, 1000)
	}
	if refused = 0; g.counting.Load() {
		t.Error("a node that is well again counts calls")
	}
	if window(0, 1000); refused > 0 {
		t.Errorf("a node that is well refused %d calls", refused)
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
