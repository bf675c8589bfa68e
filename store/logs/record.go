package logs

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"starling"
)

// A Stream says where a line came from.
type Stream uint8

const (
	Stdout   Stream = 1
	Stderr   Stream = 2
	Platform Stream = 3 // START, END and REPORT lines
)

// String returns the word people see.
func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return "platform"
}

// A Record is output of one call, or of an instance between calls when Request is zero. Text is one line
// without its newline, or several with newlines between; a query yields one record for each line.
type Record struct {
	Time     time.Time
	Function starling.FunctionRef
	Version  starling.VersionNumber
	Request  starling.RequestID
	Stream   Stream
	Text     []byte // any bytes: escape sequences are data
}

// On disk and between nodes an entry is, little-endian:
//
//	u32 length of the payload · u32 CRC-32C of it · payload:
//	i64 Unix nanoseconds · u32 version · 16 bytes request · u8 stream · u8 n · n bytes function · text
//
// The account is not in it: it is the folder on disk and the question between nodes.
const (
	entryHead = 8
	fixedHead = 8 + 4 + 16 + 1 + 1
	textMax   = starling.LogCallMax + 64<<10 // bytes of one entry's text
	entryMax  = fixedHead + 255 + textMax
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendEntry appends r to b. Text beyond textMax is cut.
func appendEntry(b []byte, r *Record) []byte {
	name := string(r.Function.Name)
	name = name[:min(len(name), 255)]
	start := len(b)
	b = append(b, make([]byte, entryHead)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.Version))
	b = append(b, r.Request[:]...)
	b = append(b, byte(r.Stream), byte(len(name)))
	b = append(b, name...)
	b = append(b, r.Text[:min(len(r.Text), textMax)]...)
	payload := b[start+entryHead:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(payload, castagnoli))
	return b
}

// parseEntry reads the first entry of b and says how many bytes it takes; 0 when b holds no whole, sound
// entry. The text of the result is a part of b.
func parseEntry(b []byte) (r Record, n int) {
	if len(b) < entryHead+fixedHead {
		return r, 0
	}
	size := int(binary.LittleEndian.Uint32(b))
	if size < fixedHead || size > entryMax || len(b) < entryHead+size {
		return r, 0
	}
	p := b[entryHead : entryHead+size]
	if crc32.Checksum(p, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return r, 0
	}
	r.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(p))).UTC()
	r.Version = starling.VersionNumber(binary.LittleEndian.Uint32(p[8:]))
	copy(r.Request[:], p[12:28])
	r.Stream = Stream(p[28])
	name := int(p[29])
	if fixedHead+name > len(p) {
		return Record{}, 0
	}
	r.Function.Name = starling.FunctionName(p[fixedHead : fixedHead+name])
	r.Text = p[fixedHead+name:]
	return r, entryHead + size
}
