package registry

import (
	"fmt"
	"strings"
	"testing"

	"starling"
)

const code = starling.CodeHash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func put(id starling.VersionID, account, name string) Put {
	return Put{ID: id, Function: starling.FunctionRef{Account: starling.AccountID(account), Name: starling.FunctionName(name)},
		Config: starling.Config{Runtime: starling.Python311}, Code: code, CodeSize: 1, Now: int64(id)}
}

func withAccounts(t *testing.T, names ...starling.AccountID) *Registry {
	t.Helper()
	r := New()
	for _, n := range names {
		if _, err := r.CreateAccount(starling.Account{ID: n}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func wantKind(t *testing.T, what string, err error, kind starling.Kind) {
	t.Helper()
	if err == nil || starling.KindOf(err) != kind {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

func TestFunctionsOfTwoTenantsNeverMeet(t *testing.T) {
	r := withAccounts(t, "a", "b")
	va, _, err := r.PutFunction(put(1, "a", "f"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Resolve(starling.FunctionRef{Account: "b", Name: "f"}, starling.Latest)
	wantKind(t, "another tenant's function", err, starling.NotFound)
	if _, _, err = r.PutFunction(put(2, "b", "f")); err != nil {
		t.Fatal(err)
	}
	if _, err = r.DeleteFunction(starling.FunctionRef{Account: "b", Name: "f"}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Resolve(va.Function, starling.Latest); err != nil || got.ID != 1 {
		t.Fatalf("deleting one tenant's function touched another's: %v", err)
	}
	if page, _, _ := r.Functions("b", "", 0); len(page) != 0 {
		t.Fatalf("got %v", page)
	}
}

func TestPutKeepsItsPromises(t *testing.T) {
	r := withAccounts(t, "a")
	update := put(1, "a", "f")
	update.Update = true
	_, _, err := r.PutFunction(update)
	wantKind(t, "update of nothing", err, starling.NotFound)
	create := put(2, "a", "f")
	create.Create = true
	if _, _, err = r.PutFunction(create); err != nil {
		t.Fatal(err)
	}
	create.ID = 3
	if v, _, err := r.PutFunction(create); err != nil || v.ID != 2 {
		t.Fatalf("the same create again made %v, %v", v, err)
	}
	create.Now++
	_, _, err = r.PutFunction(create)
	wantKind(t, "another create", err, starling.Conflict)
	expect := put(4, "a", "f")
	expect.Expect = 1
	_, _, err = r.PutFunction(expect)
	wantKind(t, "a stale update", err, starling.Conflict)
	expect.Expect = 2
	if v, _, err := r.PutFunction(expect); err != nil || v.ID != 4 {
		t.Fatalf("got %v, %v", v, err)
	}
	if v, err := r.Version(2); err != nil || v.ID != 2 {
		t.Fatal("a replaced snapshot is gone while calls may name it")
	}
	for id := starling.VersionID(10); id < 10+SupersededMax; id++ {
		if _, _, err := r.PutFunction(put(id, "a", "f")); err != nil {
			t.Fatal(err)
		}
	}
	_, err = r.Version(2)
	wantKind(t, "a snapshot replaced long ago", err, starling.NotFound)
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestPublishedVersionsAreImmutableAndGoWithTheFunction(t *testing.T) {
	r := withAccounts(t, "a")
	ref := starling.FunctionRef{Account: "a", Name: "f"}
	_, _, _ = r.PutFunction(put(1, "a", "f"))
	one, err := r.PublishVersion(2, ref, 5)
	if err != nil || one.Number != 1 || one.ID != 2 {
		t.Fatalf("got %+v, %v", one, err)
	}
	if again, err := r.PublishVersion(3, ref, 6); err != nil || again != one {
		t.Fatalf("publishing the unchanged made %+v, %v", again, err)
	}
	p := put(4, "a", "f")
	p.Config.MemoryMiB = 512
	_, _, _ = r.PutFunction(p)
	two, err := r.PublishVersion(5, ref, 7)
	if err != nil || two.Number != 2 || two.Config.MemoryMiB != 512 {
		t.Fatalf("got %+v, %v", two, err)
	}
	if got, _ := r.Resolve(ref, 1); got.ID != 2 || got.Config.MemoryMiB != 128 {
		t.Fatalf("version 1 changed: %+v", got)
	}
	f, versions, err := r.Function(ref)
	if err != nil || len(versions) != 3 || versions[0].ID != 4 || versions[1].Number != 1 || f.Latest != 4 {
		t.Fatalf("got %+v %+v %v", f, versions, err)
	}
	gone, err := r.DeleteFunction(ref)
	if err != nil || fmt.Sprint(gone) != "[1 2 4 5]" {
		t.Fatalf("gone: %v, %v", gone, err)
	}
	_, err = r.Version(5)
	wantKind(t, "a version of a deleted function", err, starling.NotFound)
}

func TestBadWishesAreRefused(t *testing.T) {
	r := withAccounts(t, "a")
	bad := map[string]func(*Put){
		"name":    func(p *Put) { p.Function.Name = "-x" },
		"runtime": func(p *Put) { p.Config.Runtime = "cobol" },
		"memory":  func(p *Put) { p.Config.MemoryMiB = 1 },
		"code":    func(p *Put) { p.Code = "../../etc/passwd" },
		"case":    func(p *Put) { p.Code = starling.CodeHash(strings.ToUpper(string(code))) },
	}
	for name, spoil := range bad {
		p := put(1, "a", "f")
		spoil(&p)
		_, _, err := r.PutFunction(p)
		wantKind(t, name, err, starling.Invalid)
	}
	p := put(1, "a", "f")
	p.CodeSize = starling.CodeZipMax + 1
	_, _, err := r.PutFunction(p)
	wantKind(t, "size", err, starling.TooLarge)
	p = put(1, "nobody", "f")
	_, _, err = r.PutFunction(p)
	wantKind(t, "account", err, starling.NotFound)
	_, err = r.CreateAccount(starling.Account{ID: "Upper"})
	wantKind(t, "account name", err, starling.Invalid)
	wantKind(t, "key without hash", r.CreateKey(starling.Key{ID: "x", Account: "a", Role: starling.KeyUser}), starling.Invalid)
	wantKind(t, "key of nobody", r.CreateKey(starling.Key{Hash: [32]byte{1}, ID: "x", Account: "z", Role: starling.KeyUser}), starling.NotFound)
	wantKind(t, "key role", r.CreateKey(starling.Key{Hash: [32]byte{1}, ID: "x", Account: "a", Role: "root"}), starling.Invalid)
}

func TestLimitsAnswerOverloaded(t *testing.T) {
	r := withAccounts(t, "a")
	for i := range FunctionMax {
		if _, _, err := r.PutFunction(put(starling.VersionID(i+1), "a", fmt.Sprintf("f%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := r.PutFunction(put(9999, "a", "more"))
	wantKind(t, "functions", err, starling.Overloaded)
	if _, _, err := r.PutFunction(put(9999, "a", "f1")); err != nil {
		t.Errorf("an update at the limit got %v", err)
	}
	for i := range KeyMax {
		if err := r.CreateKey(starling.Key{Hash: [32]byte{1, byte(i)}, ID: fmt.Sprint(i), Account: "a", Role: starling.KeyUser}); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, "keys", r.CreateKey(starling.Key{Hash: [32]byte{9}, ID: "more", Account: "a", Role: starling.KeyUser}), starling.Overloaded)
}

func TestPagesCoverEverythingInOrder(t *testing.T) {
	r := New()
	for i := range 25 {
		if _, err := r.CreateAccount(starling.Account{ID: starling.AccountID(fmt.Sprintf("a%02d", (i*7)%25))}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.PutFunction(put(starling.VersionID(i+1), "a00", fmt.Sprintf("f%02d", (i*7)%25))); err != nil {
			t.Fatal(err)
		}
	}
	var accounts, functions []string
	for after, more := "", true; more; more = after != "" {
		var page []starling.Account
		page, after = r.Accounts(after, 10)
		for _, a := range page {
			accounts = append(accounts, string(a.ID))
		}
	}
	for after, more := "", true; more; more = after != "" {
		var page []starling.Version
		page, after, _ = r.Functions("a00", after, 10)
		for _, v := range page {
			functions = append(functions, string(v.Function.Name))
		}
	}
	if len(accounts) != 25 || len(functions) != 25 {
		t.Fatalf("%d accounts, %d functions", len(accounts), len(functions))
	}
	for i := range 25 {
		if accounts[i] != fmt.Sprintf("a%02d", i) || functions[i] != fmt.Sprintf("f%02d", i) {
			t.Fatalf("place %d holds %s and %s", i, accounts[i], functions[i])
		}
	}
}

func TestAccountWithFunctionsStays(t *testing.T) {
	r := withAccounts(t, "a")
	_, _, _ = r.PutFunction(put(1, "a", "f"))
	_ = r.CreateKey(starling.Key{Hash: [32]byte{1}, ID: "k", Account: "a", Role: starling.KeyUser})
	_, err := r.DeleteAccount("a")
	wantKind(t, "an account with functions", err, starling.Conflict)
	_, _ = r.DeleteFunction(starling.FunctionRef{Account: "a", Name: "f"})
	keys, err := r.DeleteAccount("a")
	if err != nil || len(keys) != 1 {
		t.Fatalf("got %v, %v", keys, err)
	}
	_, err = r.Key([32]byte{1})
	wantKind(t, "the key of a deleted account", err, starling.NotFound)
}

func TestReplicasAreGivenOnceAndNeverAgain(t *testing.T) {
	m := NewMembers()
	manager := starling.Node{Addr: "a", Roles: starling.AllRoles}
	if n, err := m.AddNode([32]byte{}, [32]byte{}, manager, 1); err != nil || n.ID != 1 || n.Replica != 1 {
		t.Fatalf("got %+v, %v", n, err)
	}
	_, err := m.AddNode([32]byte{}, [32]byte{}, manager, 1)
	wantKind(t, "a second node without a token", err, starling.Denied)
	wantKind(t, "removal of the last replica", m.RemoveNode(1), starling.Conflict)
	var replicas []uint64
	for i := byte(1); i <= 4; i++ {
		if err := m.AddToken(Token{Hash: [32]byte{i}, Roles: starling.AllRoles, Expires: 10}, 1); err != nil {
			t.Fatal(err)
		}
		n, err := m.AddNode([32]byte{i}, [32]byte{i}, manager, 1)
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, n.Replica)
		if i == 3 {
			if err := m.RemoveNode(2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if fmt.Sprint(replicas) != "[2 3 0 4]" {
		t.Fatalf("replicas %v", replicas)
	}
	_, err = m.AddNode([32]byte{1}, [32]byte{1}, manager, 1)
	wantKind(t, "a removed node with its old token", err, starling.Denied)
}
