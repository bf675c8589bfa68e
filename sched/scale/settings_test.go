package scale

import (
	"testing"

	"starling"
)

// Every field is a setting that can be written and read again, whatever is added to the policy.
func TestSettingsHaveNames(t *testing.T) {
	a, b := Default(), &Adaptive{}
	for _, name := range a.Names() {
		if err := b.Set(name, a.Text(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if *a != *b {
		t.Errorf("read %+v, wrote %+v", b, a)
	}
	for _, bad := range [][2]string{{"worth", "20"}, {"utilization", "much"}, {"nothing", "1"}, {"", "1"}, {"Worth", "1m"}} {
		if err := a.Set(bad[0], bad[1]); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%q = %q: %v", bad[0], bad[1], err)
		}
	}
}
