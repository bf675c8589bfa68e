package registry

import (
	"fmt"
	"testing"

	"starling"
)

func network(account, name string) starling.Network {
	return starling.Network{Ref: starling.NetworkRef{Account: starling.AccountID(account), Name: starling.NetworkName(name)}, CIDRs: []string{"10.0.0.0/8"}}
}

func TestNetworksBelongToTheirAccount(t *testing.T) {
	r := New()
	for _, id := range []starling.AccountID{"acme", "zeta"} {
		if _, err := r.CreateAccount(starling.Account{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	made, err := r.PutNetwork(network("acme", "db"), true)
	if err != nil || made.ConnMax != starling.NetworkConnNormal {
		t.Fatalf("%+v, %v", made, err)
	}
	if again, err := r.PutNetwork(network("acme", "db"), true); err != nil || again != made {
		t.Errorf("the same again: %v", err)
	}
	other := network("acme", "db")
	other.ConnMax = 7
	if _, err := r.PutNetwork(other, true); starling.KindOf(err) != starling.Conflict {
		t.Errorf("another of the name: %v", err)
	}
	if n, err := r.PutNetwork(other, false); err != nil || n.ConnMax != 7 {
		t.Errorf("in its place: %v", err)
	}
	for name, err := range map[string]error{
		"another account's": func() error { _, err := r.Network(starling.NetworkRef{Account: "zeta", Name: "db"}); return err }(),
		"nobody's":          func() error { _, err := r.PutNetwork(network("nobody", "db"), true); return err }(),
		"one deleted":       r.DeleteNetwork(starling.NetworkRef{Account: "acme", Name: "web"}),
	} {
		if starling.KindOf(err) != starling.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.PutNetwork(network("acme", "internet"), true); starling.KindOf(err) != starling.Invalid {
		t.Errorf("one named internet: %v", err)
	}
	for i := range starling.NetworkMax - 1 {
		if _, err := r.PutNetwork(network("acme", fmt.Sprint("n", i)), true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.PutNetwork(network("acme", "more"), true); starling.KindOf(err) != starling.Overloaded {
		t.Errorf("above the limit: %v", err)
	}
}

func TestFunctionNamesANetworkOfItsAccount(t *testing.T) {
	r := New()
	for _, id := range []starling.AccountID{"acme", "zeta"} {
		if _, err := r.CreateAccount(starling.Account{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.PutNetwork(network("acme", "db"), true); err != nil {
		t.Fatal(err)
	}
	next := starling.VersionID(100)
	put := func(account starling.AccountID, network starling.NetworkName) (*starling.Version, error) {
		next++
		v, _, err := r.PutFunction(Put{ID: next, Function: starling.FunctionRef{Account: account, Name: "fn"}, Config: starling.Config{Runtime: starling.Python311, Network: network},
			Code: "0000000000000000000000000000000000000000000000000000000000000001", CodeSize: 1, Now: int64(next)})
		return v, err
	}
	if _, err := put("zeta", "db"); starling.KindOf(err) != starling.Invalid || starling.ReasonOf(err) != "NoNetwork" {
		t.Errorf("another account's network: %v", err)
	}
	for wish, want := range map[starling.NetworkName]starling.NetworkName{"": "", "none": "", "internet": "internet", "db": "db"} {
		if v, err := put("acme", wish); err != nil || v.Config.Network != want {
			t.Errorf("%q became %q: %v", wish, v.Config.Network, err)
		}
	}
	if _, err := put("acme", "db"); err != nil {
		t.Fatal(err)
	}
	ref := starling.NetworkRef{Account: "acme", Name: "db"}
	if err := r.DeleteNetwork(ref); starling.KindOf(err) != starling.Conflict {
		t.Errorf("a network in use: %v", err)
	}
	if _, err := put("acme", "none"); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteNetwork(ref); err != nil {
		t.Errorf("one that nobody uses: %v", err)
	}
}
