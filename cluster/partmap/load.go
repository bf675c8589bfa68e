package partmap

import "starling"

// The most that one report of a node says of its partitions, so that a heartbeat stays small.
const (
	LoadMax = 64 // partitions of one report: the busiest
	HotMax  = 8  // functions of one partition: the busiest
)

// A Load is what an owner says of one of its partitions.
type Load struct {
	Partition starling.PartitionID `cbor:"1,keyasint" json:"partition"`
	Epoch     starling.Epoch       `cbor:"2,keyasint" json:"epoch"`
	Acquires  uint32               `cbor:"3,keyasint" json:"acquires"` // a second, over the last second or so
	Waiting   uint32               `cbor:"4,keyasint" json:"waiting"`  // calls
	Leases    uint32               `cbor:"5,keyasint" json:"leases"`   // slots
	CPU       uint16               `cbor:"6,keyasint" json:"cpu"`      // of one core that its steps take, in thousandths
	Hot       []Hot                `cbor:"7,keyasint,omitempty" json:"hot,omitempty"`
}

// A Hot is one of the busiest functions of a partition. Its keys are its span's, as far as they are the partition's.
type Hot struct {
	Function starling.FunctionRef `cbor:"1,keyasint" json:"function"`
	Share    uint16               `cbor:"2,keyasint" json:"share"` // of the partition's calls, in thousandths
}

// Span returns all keys of a function.
func Span(f starling.FunctionRef) starling.Range {
	lo := starling.KeyOf(f, 0)
	return starling.Range{Lo: lo, Hi: lo + 1<<32} // 0 for the last span, which stands for 2^64
}

// Weight is what the partition costs its owner, in acquires a second. A lease in use is renewed three times a second in
// batches, in which an entry costs about a twelfth of an acquire; a waiting call is visited once a beat.
func (l Load) Weight() float64 {
	return float64(l.Acquires) + float64(l.Leases)/4 + float64(l.Waiting)/8
}

// Within reports whether all keys of r are keys of s.
func Within(r, s starling.Range) bool {
	return r.Lo >= s.Lo && uint64(r.Hi)-1 <= uint64(s.Hi)-1 // a Hi of 0 is 2^64
}
