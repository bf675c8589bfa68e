package registry

import (
	"fmt"
	"testing"

	"starling"
)

func TestFloorsFollowTheLatestSnapshot(t *testing.T) {
	r := New()
	if _, err := r.CreateAccount(starling.Account{ID: "acme", ConcurrencyMax: 10}); err != nil {
		t.Fatal(err)
	}
	id := starling.VersionID(0)
	put := func(name string, c starling.Config) error {
		id++
		c.Runtime = starling.Python311
		_, _, err := r.PutFunction(Put{ID: id, Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(name)}, Config: c,
			Code: starling.CodeHash(fmt.Sprintf("%064x", id)), CodeSize: 1, Now: int64(id)})
		if err2 := r.Check(); err2 != nil {
			t.Fatal(err2)
		}
		return err
	}
	list := func(want ...starling.VersionID) {
		t.Helper()
		var got []starling.VersionID
		for after := ""; ; {
			page, next := r.Provisioned(after, 1)
			for _, v := range page {
				got = append(got, v.ID)
			}
			if after = next; next == "" {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("floors of %v, want %v", got, want)
		}
	}
	steps := []struct {
		name   string
		config starling.Config
		kind   starling.Kind
		refuse bool
		floors []starling.VersionID
	}{
		{name: "f", config: starling.Config{Provisioned: 4}, floors: []starling.VersionID{1}},
		{name: "g", config: starling.Config{Schedule: []starling.Provision{{At: "08:00", Count: 6}, {At: "20:00", Count: 1}}}, floors: []starling.VersionID{1, 2}},
		{name: "h", config: starling.Config{Provisioned: 1}, refuse: true, floors: []starling.VersionID{1, 2}},
		{name: "f", config: starling.Config{Provisioned: 5}, refuse: true, floors: []starling.VersionID{1, 2}},
		{name: "f", config: starling.Config{Provisioned: 3}, floors: []starling.VersionID{2, 5}},
		{name: "h", config: starling.Config{Provisioned: 1}, floors: []starling.VersionID{2, 5, 6}},
		{name: "g", floors: []starling.VersionID{5, 6}},
	}
	for _, s := range steps {
		err := put(s.name, s.config)
		if s.refuse != (starling.ReasonOf(err) == "ProvisionLimit") || !s.refuse && err != nil {
			t.Fatalf("put %s: %v, refused %t wanted", s.name, err, s.refuse)
		}
		list(s.floors...)
	}
	if _, err := r.PublishVersion(100, starling.FunctionRef{Account: "acme", Name: "f"}, 9); err != nil {
		t.Fatal(err)
	}
	list(5, 6)
	if _, err := r.DeleteFunction(starling.FunctionRef{Account: "acme", Name: "f"}); err != nil {
		t.Fatal(err)
	}
	list(6)
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
}
