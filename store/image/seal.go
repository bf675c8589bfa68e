package image

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"starling"
)

// A Cipher seals and opens the blocks of one image. It is safe for concurrent use.
type Cipher struct {
	aead    *subtle.AESGCM
	subject Subject
}

// NewKey returns a fresh key for one image.
func NewKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key) // never fails
	return key
}

// NewCipher returns the cipher of the image of subject. A key of another size is Invalid.
func NewCipher(key []byte, subject Subject) (*Cipher, error) {
	if len(key) != KeySize {
		return nil, refuse("a key of %d bytes", len(key))
	}
	aead, err := subtle.NewAESGCM(key)
	if err != nil {
		return nil, fmt.Errorf("use image key: %w", err)
	}
	return &Cipher{aead, subject}, nil
}

func (c *Cipher) block(i int) []byte {
	return binary.LittleEndian.AppendUint32(c.subject.bytes("block"), uint32(i))
}

// Open returns the plain bytes of block i; a block that is another, or was changed, is Unavailable, because another copy may be
// whole.
func (c *Cipher) Open(i int, sealed []byte) ([]byte, error) {
	plain, err := c.aead.Decrypt(sealed, c.block(i))
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "open block", "block %d is damaged", i).With("BadBlock")
	}
	return plain, nil
}

// Check proves that the index was made for this subject by a holder of the key, and not changed since.
func (c *Cipher) Check(x *Index) error {
	if plain, err := c.aead.Decrypt(x.Seal, c.index(x)); err != nil || len(plain) != 0 {
		return refuse("its seal does not fit")
	}
	return nil
}

func (c *Cipher) index(x *Index) []byte {
	sum := sha256.Sum256(x.appendBody(nil))
	return append(c.subject.bytes("index"), sum[:]...)
}

// Seal writes the sealed blocks of plain to w and completes x, which has Meta, Data, Zip, Entries and Wrapped, with their hashes
// and the seal. Memory is two blocks.
func (c *Cipher) Seal(x *Index, plain io.Reader, w io.Writer) error {
	buf := make([]byte, BlockSize)
	x.Hashes = x.Hashes[:0]
	for left := x.Size(); left > 0; {
		n := min(left, BlockSize)
		if _, err := io.ReadFull(plain, buf[:n]); err != nil {
			return fmt.Errorf("seal image: %w", err)
		}
		sealed, err := c.aead.Encrypt(buf[:n], c.block(len(x.Hashes)))
		if err != nil {
			return fmt.Errorf("seal block: %w", err)
		}
		x.Hashes = append(x.Hashes, sha256.Sum256(sealed))
		if _, err := w.Write(sealed); err != nil {
			return fmt.Errorf("write sealed block: %w", err)
		}
		left -= n
	}
	var err error
	if x.Seal, err = c.aead.Encrypt(nil, c.index(x)); err != nil {
		return fmt.Errorf("seal index: %w", err)
	}
	return nil
}
