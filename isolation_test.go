package starling_test

import (
	"testing"

	"starling"
)

func TestIsolationOfAFunction(t *testing.T) {
	const process, gvisor, kata = starling.IsolationProcess, starling.IsolationGVisor, starling.IsolationKata
	type policy = starling.IsolationPolicy
	for _, c := range []struct {
		cluster, account policy
		wish, want       starling.Isolation
		refused          bool
	}{
		{policy{}, policy{}, "", "", false}, // process, which is stored as nothing
		{policy{}, policy{}, process, "", false},
		{policy{}, policy{}, gvisor, gvisor, false},
		{policy{Default: gvisor}, policy{}, "", gvisor, false},
		{policy{Default: gvisor}, policy{Default: kata}, "", kata, false},
		{policy{Default: gvisor}, policy{}, process, "", false},
		{policy{Least: gvisor}, policy{}, "", gvisor, false}, // a default below the least rises
		{policy{Least: gvisor}, policy{Default: process}, "", gvisor, false},
		{policy{Least: gvisor}, policy{}, process, "", true},            // a wish below it does not
		{policy{Least: gvisor}, policy{Least: kata}, gvisor, "", true},  // an account may ask for more
		{policy{Least: kata}, policy{Least: process}, gvisor, "", true}, // and not for less
		{policy{Least: gvisor}, policy{}, kata, kata, false},
	} {
		got, err := c.account.Under(c.cluster).Resolve(c.wish)
		if refused := starling.ReasonOf(err) == "IsolationTooWeak" && starling.KindOf(err) == starling.Invalid; got != c.want || refused != c.refused || (err != nil) != c.refused {
			t.Errorf("%+v over %+v, wish %q: %q %v", c.account, c.cluster, c.wish, got, err)
		}
	}
}

func TestIsolationsAreRead(t *testing.T) {
	s, err := starling.ParseIsolations("gvisor, process")
	if err != nil || s.String() != "process,gvisor" || s.Has(starling.IsolationKata) || !s.Has("") {
		t.Fatalf("%v %v", s, err)
	}
	for _, bad := range []string{"", "process,", "vm"} {
		if _, err := starling.ParseIsolations(bad); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
