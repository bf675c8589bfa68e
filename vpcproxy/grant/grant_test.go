package grant

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"starling"
)

var (
	secret = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	public = secret.Public().(ed25519.PublicKey)
	sample = Grant{Attachment: starling.Attachment{Instance: starling.InstanceID{Partition: 3, Epoch: 4, Seq: 5},
		Function: starling.FunctionRef{Account: "acme", Name: "pay"}, Version: 77, Network: "db"}, Host: 9, First: 1000, Until: 1300}
)

func TestGrantComesBackAsItWasSigned(t *testing.T) {
	g, err := Open(public, Sign(secret, sample), 9, time.Unix(1299, 0))
	if err != nil || g != sample {
		t.Fatalf("%+v, %v", g, err)
	}
}

func TestGrantIsRefused(t *testing.T) {
	raw := Sign(secret, sample)
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	bare := raw[:len(raw)-ed25519.SignatureSize]
	for name, c := range map[string]struct {
		raw  []byte
		host starling.NodeID
		at   int64
	}{
		"of another host":          {raw, 8, 1100},
		"that is over":             {raw, 9, 1361},
		"that has not begun":       {raw, 9, 939},
		"of another key":           {Sign(other, sample), 9, 1100},
		"without a signature":      {bare, 9, 1100},
		"that is empty":            {nil, 9, 1100},
		"signed without its words": {append(bytes.Clone(bare), ed25519.Sign(secret, bare)...), 9, 1100},
	} {
		if g, err := Open(public, c.raw, c.host, time.Unix(c.at, 0)); starling.KindOf(err) != starling.Denied || g != (Grant{}) {
			t.Errorf("a grant %s: %+v, %v", name, g, err)
		}
	}
}

// No grant passes of which a single bit was changed.
func TestEveryBitOfAGrantCounts(t *testing.T) {
	raw := Sign(secret, sample)
	for i := range len(raw) * 8 {
		changed := bytes.Clone(raw)
		changed[i/8] ^= 1 << (i % 8)
		if _, err := Open(public, changed, 9, time.Unix(1100, 0)); err == nil {
			t.Fatalf("bit %d", i)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(Sign(secret, sample))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if g, ok := decode(raw); ok { // also what no signature covers must not panic; and it is read in one way only
			again := Sign(secret, g)
			if !bytes.Equal(again[:len(again)-ed25519.SignatureSize], raw) {
				t.Fatalf("%x and %x mean the same", raw, again)
			}
		}
		if g, err := Open(public, raw, 9, time.Unix(1100, 0)); err == nil && g != sample {
			t.Fatalf("forged: %+v", g)
		}
	})
}
