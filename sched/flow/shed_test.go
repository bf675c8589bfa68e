package flow

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"starling"
)

// TestFairIsMaxMin: nobody gets more than he wants, all of the limit is used, and nobody who wants more has less than
// another by more than the one that did not divide.
func TestFairIsMaxMin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 500).Draw(t, "limit")
		wants := rapid.SliceOfN(rapid.IntRange(-2, 200), 0, 12).Draw(t, "wants")
		out := make([]int, len(wants))
		Fair(limit, wants, out)
		sum, want := 0, 0
		for i, n := range out {
			sum += n
			want += max(wants[i], 0)
			if n < 0 || n > max(wants[i], 0) {
				t.Fatalf("%d of %d wanted", n, wants[i])
			}
			for j, m := range out {
				if n < wants[i] && m > n+1 {
					t.Fatalf("%d has %d and wants %d while %d has %d", i, n, wants[i], j, m)
				}
			}
		}
		if sum != min(limit, want) {
			t.Fatalf("%d given of %d, %d wanted", sum, limit, want)
		}
	})
}

// TestShedding replays testdata/shed: each command is one window of a node, pressure in per cent, or a surge: a look into a window that
// has not ended, in which the third number of a line is what is usual.
func TestShedding(t *testing.T) {
	s := &Shedder{}
	datadriven.RunTest(t, "testdata/shed", func(t *testing.T, d *datadriven.TestData) string {
		if d.HasArg("new") {
			s = &Shedder{}
		}
		var ds []Demand
		for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
			var m Demand
			var who string
			if _, err := fmt.Sscanf(line, "%s %d %d", &who, &m.Arrived, &m.Admitted); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			a, f, _ := strings.Cut(who, "/")
			m.Function = starling.FunctionRef{Account: starling.AccountID(a), Name: starling.FunctionName(f)}
			if ds = append(ds, m); d.Cmd == "surge" {
				ds[len(ds)-1].Usual = float64(m.Admitted)
			}
		}
		if d.Cmd == "surge" {
			return shown(s, s.Surge(ds))
		}
		percent, times := 0, 1
		d.ScanArgs(t, "pressure", &percent)
		if d.HasArg("times") {
			d.ScanArgs(t, "times", &times)
		}
		var shares []Portion
		for range times {
			shares = s.Decide(float64(percent)/100, ds)
		}
		return shown(s, shares)
	})
}

func shown(s *Shedder, ps []Portion) string {
	var b strings.Builder
	fmt.Fprintf(&b, "active=%t\n", s.Active())
	for _, p := range ps {
		fmt.Fprintf(&b, "%s/%s: %.3f\n", p.Function.Account, p.Function.Name, p.Admit)
	}
	return b.String()
}

// TestQuietAccountsAreNeverRefused: a node that can do 100 calls in a window, nine accounts that ask for 2 each and one
// that asks for 50 times as much: the nine are let in whole, and the node works at what it can.
func TestQuietAccountsAreNeverRefused(t *testing.T) {
	for seed := uint64(1); seed <= 50; seed++ {
		rng := rand.New(rand.NewPCG(seed, seed))
		s, admit := &Shedder{}, map[string]float64{}
		served, backlog := 0, 0
		for range 600 * int(time.Second/Window) / 10 {
			var ds []Demand
			now := 0
			for a := range 10 {
				name := fmt.Sprint("a", a)
				m := Demand{Function: starling.FunctionRef{Account: starling.AccountID(name), Name: "f"}, Arrived: 1 + rng.IntN(3)}
				if a == 9 {
					m.Arrived *= 50 * 2
				}
				for range m.Arrived {
					if p, shed := admit[name]; !shed || rng.Float64() < p {
						m.Admitted++
					} else if a != 9 {
						t.Fatalf("seed %d: a call of quiet account %s was refused", seed, name)
					}
				}
				now += m.Admitted
				ds = append(ds, m)
			}
			backlog = max(backlog+now-100, 0)
			served += min(now, 100)
			clear(admit)
			for _, h := range s.Decide(float64(backlog)/50, ds) {
				admit[string(h.Function.Account)] = h.Admit
			}
		}
		if n := served / (600 * int(time.Second/Window) / 10); n < 60 {
			t.Errorf("seed %d: the node served %d calls in a window, it can do 100", seed, n)
		}
	}
}

// TestOthersWorkSparesTheQuiet: a frontend whose only own tenant is a quiet one refuses nobody when the machine is loaded
// by an account that comes through other frontends.
func TestOthersWorkSparesTheQuiet(t *testing.T) {
	quiet, loud := starling.FunctionRef{Account: "quiet", Name: "f"}, starling.FunctionRef{Account: "loud", Name: "f"}
	s := &Shedder{}
	for range 50 {
		all := Sum([]Demand{{Function: quiet, Arrived: 6, Admitted: 6}}, []Demand{{Function: loud, Arrived: 300, Admitted: 300}, {Function: quiet, Arrived: 4, Admitted: 4}})
		if len(all) != 2 || all[0].Arrived != 10 {
			t.Fatalf("summed to %+v", all)
		}
		for _, p := range s.Decide(2, all) {
			if p.Function == quiet {
				t.Fatalf("the quiet account is let in by %.2f", p.Admit)
			}
		}
	}
	if !s.Active() {
		t.Error("nobody is refused in a lasting overload")
	}
}

func TestJain(t *testing.T) {
	if j := Jain([]float64{3, 3, 3}); j != 1 {
		t.Errorf("equal parts: %v", j)
	}
	if j := Jain([]float64{1, 0, 0, 0}); j != 0.25 {
		t.Errorf("one has all: %v", j)
	}
}
