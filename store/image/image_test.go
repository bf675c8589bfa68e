package image

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"starling"
)

var subject = Subject{Account: "acme", Hash: starling.CodeHash(strings.Repeat("a1", 32))}

func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(b)
	return b
}

// sealed returns an image of n plain bytes.
func sealed(t testing.TB, n int) (plain []byte, x *Index, blocks []byte, c *Cipher, key []byte) {
	t.Helper()
	plain, key = random(n), NewKey()
	c, err := NewCipher(key, subject)
	if err != nil {
		t.Fatal(err)
	}
	x = &Index{Meta: 4096, Data: uint64(n) - 4096, Zip: 77, Entries: 3, Wrapped: []byte("wrapped")}
	var out bytes.Buffer
	if err := c.Seal(x, bytes.NewReader(plain), &out); err != nil {
		t.Fatal(err)
	}
	return plain, x, out.Bytes(), c, key
}

func blockOf(x *Index, blocks []byte) func(i int) ([]byte, error) {
	return func(i int) ([]byte, error) {
		off, n := x.Sealed(i)
		return blocks[off : off+int64(n)], nil
	}
}

func TestWhatIsSealedIsRead(t *testing.T) {
	for _, n := range []int{4096, BlockSize, BlockSize + 4096, 5*BlockSize + 8192} {
		plain, x, blocks, c, _ := sealed(t, n)
		if int64(len(blocks)) != x.SealedSize() {
			t.Fatalf("%d sealed bytes, the index says %d", len(blocks), x.SealedSize())
		}
		y, err := ParseIndex(x.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(y); err != nil {
			t.Fatal(err)
		}
		if y.Digest() != x.Digest() || y.Zip != 77 || y.Entries != 3 || string(y.Wrapped) != "wrapped" {
			t.Errorf("the index came back as %+v", y)
		}
		got, err := io.ReadAll(io.NewSectionReader(NewReader(c, y.Size(), 2, blockOf(y, blocks)), 0, y.Size()))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
}

func TestChangedBytesAreSeen(t *testing.T) {
	_, x, blocks, c, key := sealed(t, 3*BlockSize)
	for i := range x.Blocks() {
		off, n := x.Sealed(i)
		b := bytes.Clone(blocks[off : off+int64(n)])
		if !x.Right(i, b) {
			t.Fatalf("block %d is refused unchanged", i)
		}
		b[n/2] ^= 1
		if x.Right(i, b) {
			t.Errorf("block %d: a flipped bit passes the hash", i)
		}
		if _, err := c.Open(i, b); starling.KindOf(err) != starling.Unavailable {
			t.Errorf("block %d: a flipped bit is opened: %v", i, err)
		}
	}
	first, n := x.Sealed(0)
	if _, err := c.Open(1, blocks[first:n]); err == nil {
		t.Error("block 0 is opened as block 1")
	}
	other, err := NewCipher(key, Subject{Account: "other", Hash: subject.Hash})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(0, blocks[:n]); err == nil {
		t.Error("a block of one account is opened as another's")
	}
	if err := other.Check(x); err == nil {
		t.Error("an index of one account passes as another's")
	}
}

// TestAnIndexIsBelievedWhole flips every byte of an index.
func TestAnIndexIsBelievedWhole(t *testing.T) {
	_, x, _, c, _ := sealed(t, 3*BlockSize)
	b := x.Append(nil)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if y, err := ParseIndex(bad); err == nil && c.Check(y) == nil {
			t.Errorf("byte %d was changed and nobody saw it", i)
		}
	}
	for n := range b {
		if _, err := ParseIndex(b[:n]); starling.KindOf(err) != starling.Invalid {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestAKeyIsGivenOnlyToItsSubject(t *testing.T) {
	ring, err := NewRing(random(32))
	if err != nil {
		t.Fatal(err)
	}
	key := NewKey()
	wrapped, err := ring.Wrap(key, subject)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(wrapped, key) {
		t.Error("the key lies open")
	}
	if got, err := ring.Unwrap(wrapped, subject); err != nil || !bytes.Equal(got, key) {
		t.Errorf("the key came back as %x, %v", got, err)
	}
	for _, s := range []Subject{{"other", subject.Hash}, {subject.Account, starling.CodeHash(strings.Repeat("b2", 32))}} {
		if _, err := ring.Unwrap(wrapped, s); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%v gets the key: %v", s, err)
		}
	}
	another, err := NewRing(random(64)[32:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := another.Unwrap(wrapped, subject); err == nil {
		t.Error("another cluster opens the key")
	}
	if _, err := NewRing(random(31)); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a short secret: %v", err)
	}
}

func FuzzParseIndex(f *testing.F) {
	_, x, _, _, _ := sealed(f, 2*BlockSize)
	f.Add(x.Append(nil))
	f.Add([]byte("SIMG\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseIndex(b)
		if err != nil {
			return
		}
		if !bytes.Equal(x.Append(nil), b) {
			t.Error("an index is read that is written otherwise")
		}
		for i := range x.Blocks() {
			off, n := x.Sealed(i)
			if n <= Overhead || n > BlockSize+Overhead || off+int64(n) > x.SealedSize() {
				t.Fatalf("block %d lies at %d+%d of %d", i, off, n, x.SealedSize())
			}
		}
	})
}
