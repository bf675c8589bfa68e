package auth

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync"
	"testing"

	"starling"
)

type keys struct {
	mu   sync.Mutex
	m    map[[32]byte]starling.Key
	asks int
	wait chan struct{}
}

func (k *keys) Key(ctx context.Context, h [32]byte) (starling.Key, error) {
	if k.wait != nil {
		<-k.wait
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asks++
	if key, ok := k.m[h]; ok {
		return key, nil
	}
	return starling.Key{}, starling.Errorf(starling.NotFound, "find key", "no such key")
}

func with(role starling.KeyRole) (*keys, string) {
	secret, key := NewKey()
	key.Account, key.Role = "acme", role
	return &keys{m: map[[32]byte]starling.Key{key.Hash: key}}, secret
}

func TestKeysHaveTheirForm(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s, k := NewKey()
		if !wellFormed(s) || seen[s] || k.Hash != sha256.Sum256([]byte(s)) || !strings.HasPrefix(s, "stk_"+k.ID+"_") {
			t.Fatalf("%q, %+v", s, k)
		}
		seen[s] = true
	}
}

func TestGoodKeyIsWhoItIs(t *testing.T) {
	ks, secret := with(starling.KeyUser)
	p, err := New(ks).Authenticate(context.Background(), "Bearer "+secret)
	if err != nil || p.Account != "acme" || p.Role != starling.KeyUser || p.KeyID != secret[4:12] {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestEveryBadKeyGetsTheSameAnswer(t *testing.T) {
	ks, secret := with(starling.KeyUser)
	a := New(ks)
	other, _ := NewKey()
	flip := []byte(secret)
	flip[20] ^= 1
	want := denied().Error()
	for _, h := range []string{"", "Bearer", "Bearer ", "Basic " + secret, secret, "Bearer " + other, "Bearer " + string(flip), "Bearer " + secret + "x",
		"Bearer  " + secret[1:], "Bearer " + strings.Repeat("a", keyLength)} {
		if _, err := a.Authenticate(context.Background(), h); starling.KindOf(err) != starling.Denied || err.Error() != want {
			t.Errorf("%q: %v", h, err)
		}
	}
	if ks.asks > 2 {
		t.Errorf("malformed keys reached the catalog (%d asks)", ks.asks)
	}
}

func TestRevokedKeyIsRefusedAtOnce(t *testing.T) {
	ks, secret := with(starling.KeyUser)
	a := New(ks)
	if _, err := a.AuthenticateKey(context.Background(), secret); err != nil {
		t.Fatal(err)
	}
	clear(ks.m)
	if _, err := a.AuthenticateKey(context.Background(), secret); starling.KindOf(err) != starling.Denied {
		t.Fatalf("a revoked key: %v", err)
	}
}

func TestFloodOfWrongKeysSparesTheGood(t *testing.T) {
	ks, secret := with(starling.KeyUser)
	a := New(ks)
	if _, err := a.AuthenticateKey(context.Background(), secret); err != nil {
		t.Fatal(err)
	}
	for range unknownMax {
		a.unknown <- struct{}{} // as many look-ups are under way
	}
	wrong, _ := NewKey()
	if _, err := a.AuthenticateKey(context.Background(), wrong); starling.KindOf(err) != starling.Overloaded {
		t.Fatalf("an unknown key in a flood: %v", err)
	}
	if _, err := a.AuthenticateKey(context.Background(), secret); err != nil {
		t.Fatalf("a good key in a flood: %v", err)
	}
}

func TestOnlyAdminsActForOthers(t *testing.T) {
	user := Principal{Account: "acme", Role: starling.KeyUser}
	if _, err := user.For("other"); starling.ReasonOf(err) != ReasonRole {
		t.Fatalf("a user acted for another account: %v", err)
	}
	if p, err := user.For("acme"); err != nil || p != user {
		t.Fatalf("%v %v", p, err)
	}
	admin := Principal{Account: "root", Role: starling.KeyAdmin}
	if p, err := admin.For("other"); err != nil || p.Account != "other" {
		t.Fatalf("%v %v", p, err)
	}
	if _, err := admin.For("../x"); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("got %v", err)
	}
}

func TestAuthenticatingAllocatesNothing(t *testing.T) {
	ks, secret := with(starling.KeyUser)
	a, h := New(ks), "Bearer "+secret
	ctx := context.Background()
	a.Authenticate(ctx, h)
	if n := testing.AllocsPerRun(1000, func() { a.Authenticate(ctx, h) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	ks, secret := with(starling.KeyUser)
	a, h := New(ks), "Bearer "+secret
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(context.Background(), h); err != nil {
			b.Fatal(err)
		}
	}
}
