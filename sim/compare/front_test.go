package compare

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"starling"
	"starling/sched/scale"
)

func TestSweepCombinesAllValues(t *testing.T) {
	cs, err := Sweep(*scale.Default(), []Knob{{"worth", []string{"1m", "2m", "3m"}}, {"utilization", []string{"0.5", "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[scale.Adaptive]bool{}
	for _, c := range cs {
		seen[*c.Policy.(*scale.Adaptive)] = true
	}
	if len(cs) != 6 || len(seen) != 6 || cs[5].Name != "worth=3m utilization=1" {
		t.Errorf("%d candidates, %d of them different, the last %q", len(cs), len(seen), cs[len(cs)-1].Name)
	}
	many := make([]string, 40)
	for _, knobs := range [][]Knob{{{"worth", []string{"-1m"}}}, {{"none", []string{"1"}}}, {{"worth", nil}}, {{"worth", many}, {"idleMin", many}}} {
		if _, err := Sweep(*scale.Default(), knobs); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%v: %v", knobs, err)
		}
	}
}

func TestFrontAndBest(t *testing.T) {
	a, b := &Result{Policy: "a", InstanceSeconds: 10, Cold: 5}, &Result{Policy: "b<", InstanceSeconds: 20, Cold: 3, Refused: 1}
	beaten, c := &Result{Policy: "beaten", InstanceSeconds: 15, Cold: 5}, &Result{Policy: "c", InstanceSeconds: 30, Cold: 1, Calls: 10}
	all := []*Result{c, beaten, b, a}
	if got := Front(all); !slices.Equal(got, []*Result{a, b, c}) {
		t.Errorf("front of %d", len(got))
	}
	if Best(all, 25, 1) != b || Best(all, 25, 0) != a || Best(all, 5, 9) != nil {
		t.Error("the best is not the one with the fewest cold starts inside its bounds")
	}
	var page bytes.Buffer
	if err := WriteHTML(&page, Report{Title: "x<y", Rivals: all}); err != nil {
		t.Fatal(err)
	}
	if text := page.String(); strings.Count(text, "<circle") != 8 || strings.Contains(text, "b< ") || strings.Contains(text, "x<y") {
		t.Errorf("two charts of four points, names escaped, expected:\n%s", text)
	}
}
