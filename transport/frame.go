package transport

import (
	"encoding/binary"

	"starling"
)

const (
	// FrameBodyMax is the largest body of one frame in bytes. The kilobyte above the inline limit is for the
	// head that a message puts before an inline payload.
	FrameBodyMax = starling.FrameInlineMax + 1<<10

	frameLength = 4     // the length word
	frameHead   = 1 + 8 // kind and id, which the length word counts
	frameMax    = frameLength + frameHead + FrameBodyMax
)

// AppendFrame appends one frame to dst. The body is the parts one after another; together they must be at
// most FrameBodyMax bytes, which Link.Send checks.
func AppendFrame(dst []byte, kind uint8, id uint64, parts ...[]byte) []byte {
	n := frameHead
	for _, p := range parts {
		n += len(p)
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	dst = append(dst, kind)
	dst = binary.LittleEndian.AppendUint64(dst, id)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// NextFrame reads the frame at the start of src. size is how many bytes of src it takes, 0 when src does not
// hold all of it yet. The body aliases src. The error, of kind TooLarge or Invalid, means that the stream is
// lost: no later frame can be found.
func NextFrame(src []byte) (f Frame, size int, err error) {
	if len(src) < frameLength {
		return Frame{}, 0, nil
	}
	n := binary.LittleEndian.Uint32(src)
	if n < frameHead {
		return Frame{}, 0, starling.Errorf(starling.Invalid, "read frame", "a frame of %d bytes has no head: the peer speaks another protocol", n)
	}
	if n > frameHead+FrameBodyMax {
		return Frame{}, 0, starling.Errorf(starling.TooLarge, "read frame", "a frame of %d bytes is over the limit of %d", n, frameHead+FrameBodyMax)
	}
	size = frameLength + int(n)
	if len(src) < size {
		return Frame{}, 0, nil
	}
	return Frame{Kind: src[4], ID: binary.LittleEndian.Uint64(src[5:]), Body: src[frameLength+frameHead : size : size]}, size, nil
}
