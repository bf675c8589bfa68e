package partition

import (
	"encoding/binary"
	"io"
	"time"

	"starling"
	"starling/cluster/partmap"
	"starling/transport"
)

// A hand-over stream carries messages of u8 kind, u32 little-endian length and body: an offer and the state from the
// owner, one answer to each. The owner may say forget at any time after its offer; when the stream just ends, the state
// is kept for a while, because the owner may have died after its proposal.
const (
	sayOffer  uint8 = 1
	sayState  uint8 = 2
	sayForget uint8 = 3
	sayReady  uint8 = 10
	sayHeld   uint8 = 11
	sayNo     uint8 = 12 // the body says why
)

const (
	offerMax = 1 << 20  // bytes: 130,000 versions
	stateMax = 64 << 20 // bytes
	wordsMax = 1 << 10
)

func say(s transport.Stream, kind uint8, body []byte, within time.Duration) error {
	s.SetWriteDeadline(time.Now().Add(within))
	head := binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(body)))
	if _, err := s.Write(head); err != nil {
		return err
	}
	_, err := s.Write(body)
	return err
}

// hear reads one message. One that is longer than its kind allows is refused before it is read.
func hear(s transport.Stream, within time.Duration) (kind uint8, body []byte, err error) {
	s.SetReadDeadline(time.Now().Add(within))
	var head [5]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return 0, nil, err
	}
	most := map[uint8]uint32{sayOffer: offerMax, sayState: stateMax, sayNo: wordsMax}[head[0]]
	n := binary.LittleEndian.Uint32(head[1:])
	if n > most {
		return 0, nil, starling.Errorf(starling.Invalid, "read hand-over", "message %d has %d bytes, the limit is %d", head[0], n, most)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(s, body)
	return head[0], body, err
}

// An offer says what is coming.
type offer struct {
	entry    partmap.Partition // as the map will show it
	versions []starling.VersionID
}

func (o *offer) encode() []byte {
	p := &o.entry
	var b []byte
	for _, v := range []uint64{uint64(p.ID), uint64(p.Range.Lo), uint64(p.Range.Hi), uint64(p.Epoch), uint64(p.Owner), uint64(p.Since), uint64(len(o.versions))} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, v := range o.versions {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

const offerHead = 7 * 8

// decodeOffer reads an offer; one that is cut short or longer than it says is Invalid.
func decodeOffer(b []byte) (offer, error) {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	if len(b) < offerHead || len(b)%8 != 0 || word(6) != uint64(len(b)/8-7) {
		return offer{}, starling.Errorf(starling.Invalid, "read hand-over", "an offer of %d bytes is damaged", len(b))
	}
	o := offer{entry: partmap.Partition{ID: starling.PartitionID(word(0)), Range: starling.Range{Lo: starling.Key64(word(1)), Hi: starling.Key64(word(2))},
		Epoch: starling.Epoch(word(3)), Owner: starling.NodeID(word(4)), Since: starling.Epoch(word(5))}}
	for i := range len(b)/8 - 7 {
		o.versions = append(o.versions, starling.VersionID(word(7+i)))
	}
	return o, nil
}

// words returns why, for the other end's log.
func words(err error) []byte {
	w := []byte(err.Error())
	return w[:min(len(w), wordsMax)]
}
