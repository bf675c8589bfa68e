package starling

import "fmt"

// A Key64 is a place in the key space. Its upper half is a hash of account and function, its lower half
// the spread inside the function's span.
type Key64 uint64

// KeyOf returns the place of spread inside the span of f. The hash is FNV-1a with the finaliser of
// MurmurHash3, fixed for ever: the replicated map is keyed by it.
func KeyOf(f FunctionRef, spread uint32) Key64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := 0; i < len(f.Account); i++ {
		h = (h ^ uint64(f.Account[i])) * prime
	}
	h *= prime // a NUL between the two, so that ("a","bc") and ("ab","c") differ
	for i := 0; i < len(f.Name); i++ {
		h = (h ^ uint64(f.Name[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return Key64(h>>32<<32 | uint64(spread))
}

// A Range is the keys from Lo up to but not including Hi; a Hi of 0 stands for 2^64.
type Range struct {
	Lo Key64 `cbor:"1,keyasint" json:"lo"`
	Hi Key64 `cbor:"2,keyasint" json:"hi"`
}

// Contains reports whether k lies in r.
func (r Range) Contains(k Key64) bool { return k >= r.Lo && (r.Hi == 0 || k < r.Hi) }

// String returns "[lo,hi)" in hexadecimal.
func (r Range) String() string { return fmt.Sprintf("[%016x,%016x)", uint64(r.Lo), uint64(r.Hi)) }
