// Package image is the form in which a package lies at the origin, travels between nodes and is kept on hosts: one read-only file
// system (EROFS) whose description comes first, cut into blocks that are sealed one by one, and an index that says what there
// is. It opens no file and no socket; who holds the key decides elsewhere.
package image

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"starling"
)

// The numbers of the format. A reader of version 1 refuses any other.
const (
	BlockSize = 128 << 10 // plain bytes of each block but the last
	Overhead  = 28        // bytes that sealing adds to a block: nonce and tag
	KeySize   = 32        // bytes of the key of an image

	// BytesMax bounds the plain bytes of an image: the largest package, each of its files rounded up to a page, and their
	// description.
	BytesMax = starling.CodeUnpackedMax + starling.CodeEntryMax*8192
	// IndexMax bounds an encoded index.
	IndexMax = indexHead + wrappedMax + 4 + hashSize*(BytesMax/BlockSize+1) + Overhead

	version    = 1
	hashSize   = sha256.Size
	wrappedMax = 512
	indexHead  = 4 + 1 + 8 + 8 + 8 + 4 + 2
	page       = 4096
)

var magic = [4]byte{'S', 'I', 'M', 'G'}

// A Digest names one sealed image: it is the hash of its index. The same package sealed twice has two.
type Digest [sha256.Size]byte

// An Index says what an image is made of. It is not secret; that it belongs to the account and package it was asked for
// is proven by its seal (Check), for those who have the key. Blocks are checked by its hashes without any key.
type Index struct {
	Meta    uint64 // plain bytes of the file system's description, a multiple of 4096; the image begins with them
	Data    uint64 // plain bytes of the files, each file padded to 4096; they follow
	Zip     uint64 // bytes of the package that was uploaded
	Entries uint32 // files, folders and links
	Wrapped []byte // the key, as the cluster's keeper of keys sealed it
	Hashes  [][sha256.Size]byte
	Seal    []byte // over all of the above, by the key
}

// A Subject is what an image is bound to: no block or index of one is taken for another's.
type Subject struct {
	Account starling.AccountID
	Hash    starling.CodeHash
}

// bytes returns the subject as associated data, with a word that tells the uses of it apart.
func (s Subject) bytes(use string) []byte {
	b := append([]byte("starling "+use+"\x00"), s.Account...)
	return append(append(b, 0), s.Hash...)
}

// Size is the plain bytes of the image.
func (x *Index) Size() int64 { return int64(x.Meta + x.Data) }

// Blocks is how many blocks the image has.
func (x *Index) Blocks() int { return len(x.Hashes) }

// MetaBlocks is how many of the first blocks hold the description.
func (x *Index) MetaBlocks() int { return int((x.Meta + BlockSize - 1) / BlockSize) }

// Sealed returns where block i lies in the row of sealed blocks.
func (x *Index) Sealed(i int) (offset int64, size int) {
	plain := min(BlockSize, x.Size()-int64(i)*BlockSize)
	return int64(i) * (BlockSize + Overhead), int(plain) + Overhead
}

// SealedSize is the bytes of all sealed blocks.
func (x *Index) SealedSize() int64 { return x.Size() + int64(len(x.Hashes))*Overhead }

// Right reports whether sealed is block i, unchanged.
func (x *Index) Right(i int, sealed []byte) bool { return sha256.Sum256(sealed) == x.Hashes[i] }

// Digest names the image.
func (x *Index) Digest() Digest { return sha256.Sum256(x.Append(nil)) }

// Append encodes the index.
func (x *Index) Append(b []byte) []byte { return append(x.appendBody(b), x.Seal...) }

func (x *Index) appendBody(b []byte) []byte {
	b = append(append(b, magic[:]...), version)
	b = binary.LittleEndian.AppendUint64(b, x.Meta)
	b = binary.LittleEndian.AppendUint64(b, x.Data)
	b = binary.LittleEndian.AppendUint64(b, x.Zip)
	b = binary.LittleEndian.AppendUint32(b, x.Entries)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Wrapped)))
	b = append(b, x.Wrapped...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Hashes)))
	for i := range x.Hashes {
		b = append(b, x.Hashes[i][:]...)
	}
	return b
}

// ParseIndex reads what Append wrote and refuses everything else as Invalid. It believes no number before it has seen the
// bytes for it. The index keeps nothing of b.
func ParseIndex(b []byte) (*Index, error) {
	if len(b) < indexHead || [4]byte(b[:4]) != magic {
		return nil, refuse("it is no index of an image")
	}
	if b[4] != version {
		return nil, refuse("version %d is not known here: a newer release made it", b[4])
	}
	x := &Index{Meta: binary.LittleEndian.Uint64(b[5:]), Data: binary.LittleEndian.Uint64(b[13:]),
		Zip: binary.LittleEndian.Uint64(b[21:]), Entries: binary.LittleEndian.Uint32(b[29:])}
	wrapped := int(binary.LittleEndian.Uint16(b[33:]))
	b = b[indexHead:]
	if wrapped > wrappedMax || len(b) < wrapped+4 {
		return nil, refuse("it is cut")
	}
	x.Wrapped = slices.Clone(b[:wrapped])
	count := uint64(binary.LittleEndian.Uint32(b[wrapped:]))
	b = b[wrapped+4:]
	switch {
	case x.Meta == 0 || x.Meta%page != 0 || x.Data%page != 0 || x.Meta > BytesMax || x.Data > BytesMax || x.Meta+x.Data > BytesMax:
		return nil, refuse("sizes %d and %d", x.Meta, x.Data)
	case count != (x.Meta+x.Data+BlockSize-1)/BlockSize:
		return nil, refuse("%d blocks for %d bytes", count, x.Meta+x.Data)
	case uint64(len(b)) != count*hashSize+Overhead:
		return nil, refuse("it is cut")
	}
	x.Hashes = make([][hashSize]byte, count)
	for i := range x.Hashes {
		copy(x.Hashes[i][:], b[i*hashSize:])
	}
	x.Seal = slices.Clone(b[count*hashSize:])
	return x, nil
}

func refuse(format string, args ...any) error {
	return starling.Errorf(starling.Invalid, "read image index", format, args...).With("BadImage")
}
