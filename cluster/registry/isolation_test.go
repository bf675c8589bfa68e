package registry

import (
	"testing"

	"starling"
)

// A snapshot keeps what was made of its wish when it was made, whatever is said later.
func TestAPolicyCountsForWhatIsDeployedAfterIt(t *testing.T) {
	r := withAccounts(t, "a", "b")
	deploy := func(id starling.VersionID, account, name string, wish starling.Isolation) *starling.Version {
		t.Helper()
		p := put(id, account, name)
		p.Config.Isolation = wish
		v, _, err := r.PutFunction(p)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := deploy(1, "a", "f", "")
	if before.Config.Isolation != "" || before.Isolation() != starling.IsolationProcess {
		t.Fatalf("nobody said anything: %q", before.Config.Isolation)
	}
	if err := r.SetPolicy(Policy{IsolationPolicy: starling.IsolationPolicy{Default: starling.IsolationGVisor}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetIsolation("b", starling.IsolationPolicy{Default: starling.IsolationKata}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got, want starling.Isolation
	}{
		"deployed before":       {before.Isolation(), starling.IsolationProcess},
		"by the cluster's word": {deploy(2, "a", "g", "").Isolation(), starling.IsolationGVisor},
		"by the account's word": {deploy(3, "b", "g", "").Isolation(), starling.IsolationKata},
		"by its own word":       {deploy(4, "b", "h", starling.IsolationProcess).Isolation(), starling.IsolationProcess},
		"deployed anew":         {deploy(5, "a", "f", "").Isolation(), starling.IsolationGVisor},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", name, c.got, c.want)
		}
	}
	_, err := r.SetIsolation("nobody", starling.IsolationPolicy{})
	wantKind(t, "an unknown account", err, starling.NotFound)
	wantKind(t, "a default below the least", r.SetPolicy(Policy{IsolationPolicy: starling.IsolationPolicy{Default: "process", Least: "kata"}}), starling.Invalid)
}

func TestMixesTellsWhenAKernelWouldBeShared(t *testing.T) {
	for name, c := range map[string]struct {
		policy Policy
		wish   starling.Isolation
		want   bool
	}{
		"nothing said":            {Policy{}, starling.IsolationGVisor, true},
		"told in words":           {Policy{SharedKernel: true}, "", false},
		"more demanded":           {Policy{IsolationPolicy: starling.IsolationPolicy{Least: starling.IsolationGVisor}}, starling.IsolationGVisor, false},
		"more demanded too late":  {Policy{IsolationPolicy: starling.IsolationPolicy{Least: starling.IsolationGVisor}}, "", true},
		"only a default is given": {Policy{IsolationPolicy: starling.IsolationPolicy{Default: starling.IsolationKata}}, starling.IsolationKata, true},
	} {
		r := withAccounts(t, "a")
		p := put(1, "a", "f")
		p.Config.Isolation = c.wish
		if _, _, err := r.PutFunction(p); err != nil {
			t.Fatal(err)
		}
		if err := r.SetPolicy(c.policy); err != nil {
			t.Fatal(err)
		}
		if r.Mixes(1) {
			t.Errorf("%s: one account mixes with nobody", name)
		}
		if got := r.Mixes(2); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
