package frontend

import (
	"errors"
	"testing"
	"time"

	"starling"
)

// TestTheHeavyAreRefusedFirst: an overloaded node refuses the account that asks for too much, with a reason and a
// pause, and nobody else; when the load is gone it counts no more.
func TestTheHeavyAreRefusedFirst(t *testing.T) {
	g := &gate{base: time.Now()}
	loud, quiet := starling.FunctionRef{Account: "loud", Name: "f"}, starling.FunctionRef{Account: "quiet", Name: "f"}
	refused := 0
	window := func(pressure float64, calls int) {
		for i := range calls {
			if err := g.pass(loud); err != nil {
				refused++
				var e *starling.Error
				if starling.KindOf(err) != starling.Overloaded || starling.ReasonOf(err) != ReasonNodeOverload || !errors.As(err, &e) || e.After < time.Second {
					t.Fatalf("refused with %v", err)
				}
			}
			if i%50 == 0 {
				if err := g.pass(quiet); err != nil {
					t.Fatalf("the quiet account was refused: %v", err)
				}
			}
		}
		g.decide(pressure, nil)
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
