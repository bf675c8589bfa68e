package backup

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"starling"
	"starling/cluster"
)

// made returns a state with something in it, and its backup.
func made(t testing.TB) (*cluster.State, []byte) {
	t.Helper()
	s := cluster.NewState()
	for i, c := range []cluster.Command{
		cluster.InitCluster{Name: "test", Partitions: 4},
		cluster.AddNode{Node: starling.Node{Addr: "a:1", Roles: starling.AllRoles}},
		cluster.CreateAccount{Account: starling.Account{ID: "acme"}},
		cluster.CreateKey{Key: starling.Key{Hash: [32]byte{1}, ID: "k", Account: "acme", Role: starling.KeyUser}},
	} {
		raw, err := cluster.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.DecodeReply(s.Apply(uint64(i+1), raw)); err != nil {
			t.Fatal(err)
		}
	}
	return s, file(t, s, nil)
}

func file(t testing.TB, s *cluster.State, key []byte) []byte {
	t.Helper()
	var state, out bytes.Buffer
	if err := s.Save(&state); err != nil {
		t.Fatal(err)
	}
	w := NewWriter(&out, Header{Cluster: "test", Created: time.Now().Unix(), Index: s.Index(), Size: int64(state.Len())})
	for state.Len() > 0 {
		w.State(state.Next(100))
	}
	if key != nil {
		w.Key(key)
	}
	if err := w.End(NewEnd(s.Hash(), s.CatalogHash())); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBackupHoldsTheState(t *testing.T) {
	s, plain := made(t)
	var keyed bytes.Buffer
	if err := AddKey(&keyed, bytes.NewReader(plain), []byte("secret")); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"plain": plain, "with key": keyed.Bytes()} {
		rep, again, key, err := Verify(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if again.Hash() != s.Hash() || rep.Summary.Accounts != 1 || rep.Summary.Keys != 1 || rep.Summary.Nodes != 1 {
			t.Errorf("%s: another state: %+v", name, rep.Summary)
		}
		if (name == "with key") != (string(key) == "secret") || rep.HasKey != (key != nil) {
			t.Errorf("%s: it holds the key %q", name, key)
		}
	}
}

// TestDamageIsNoticed flips every bit, cuts at every length and appends: none of them passes.
func TestDamageIsNoticed(t *testing.T) {
	_, whole := made(t)
	injected := 0
	refused := func(b []byte, what string, at int) {
		injected++
		if _, _, _, err := Verify(bytes.NewReader(b)); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << rand.IntN(8)
		refused(b, "flip", i)
		refused(whole[:i], "cut", i)
	}
	refused(append(bytes.Clone(whole), 0), "tail", len(whole))
	t.Logf("%d damages, all noticed", injected)
}

func FuzzVerify(f *testing.F) {
	_, whole := made(f)
	f.Add(whole)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if rep, s, _, err := Verify(bytes.NewReader(b)); err == nil && NewEnd(s.Hash(), s.CatalogHash()) != rep.End {
			t.Fatal("a state passed that is not the one the file names")
		}
	})
}
