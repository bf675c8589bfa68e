package host

import (
	"encoding/binary"
	"errors"
	"time"

	"starling"
	"starling/transport"
)

// Frames on transport.ChannelInvoke. Numbers are fixed for ever. The id of a frame is drawn by the frontend and names the
// call on that stream. Calls whose payload fits one frame share a stream; a larger one opens its own and
// sends the rest in more frames.
const (
	frameCall   = 1  // lease, invocation, payload or its beginning
	frameMore   = 2  // the next part of a payload
	frameCredit = 3  // u32: bytes of the answer that the caller took
	frameHead   = 10 // u8 streaming, content type
	frameChunk  = 11 // bytes of the answer
	frameError  = 12 // bytes of the error document
	frameEnd    = 13 // the outcome; the call is over
	frameRefuse = 14 // kind, reason, message: the function did not start
	frameAnswer = 15 // outcome, content type and whole answer in one
)

const (
	leaseSize   = 7*8 + 2 + 4
	callSize    = leaseSize + 16 + 8 + 1 + 2 + 2 + 2 + 4
	partMax     = starling.FrameInlineMax - 1024 // bytes of a payload in one frame beside heads
	window      = 256 << 10                      // bytes of an answer on the way without credit
	creditAfter = window / 4
)

var errFrame = errors.New("malformed invoke frame")

var le = binary.LittleEndian

// appendCall appends the head of a call; n bytes of payload follow it in the same frame.
func appendCall(b []byte, l *starling.Lease, inv *starling.Invocation, remaining time.Duration) []byte {
	for _, x := range [...]uint64{uint64(l.Partition), uint64(l.Epoch), uint64(l.ID), uint64(l.Version),
		uint64(l.Instance.Partition), uint64(l.Instance.Epoch), l.Instance.Seq} {
		b = le.AppendUint64(b, x)
	}
	b = le.AppendUint16(b, l.Slots)
	b = le.AppendUint32(b, uint32(l.TTL/time.Microsecond))
	b = append(b, inv.ID[:]...)
	b = le.AppendUint64(b, uint64(max(remaining, 0)/time.Microsecond))
	tail := byte(0)
	if inv.Tail {
		tail = 1
	}
	b = append(b, tail)
	b = le.AppendUint16(b, uint16(len(inv.Trace)))
	b = le.AppendUint16(b, uint16(len(inv.ClientContext)))
	b = le.AppendUint16(b, uint16(len(inv.ContentType)))
	b = le.AppendUint32(b, uint32(len(inv.Payload)))
	b = append(b, inv.Trace...)
	b = append(b, inv.ClientContext...)
	return append(b, inv.ContentType...)
}

// readCall reads a call frame into l and inv and returns the length of its whole payload. inv.Payload is a copy of
// the part that came with the frame, in the buffer that inv.Payload had before.
func readCall(b []byte, l *starling.Lease, inv *starling.Invocation, now time.Time) (total int, err error) {
	if len(b) < callSize {
		return 0, errFrame
	}
	u := func(i int) uint64 { return le.Uint64(b[8*i:]) }
	*l = starling.Lease{Partition: starling.PartitionID(u(0)), Epoch: starling.Epoch(u(1)), ID: starling.LeaseID(u(2)), Version: starling.VersionID(u(3)),
		Instance: starling.InstanceID{Partition: starling.PartitionID(u(4)), Epoch: starling.Epoch(u(5)), Seq: u(6)},
		Slots:    le.Uint16(b[56:]), TTL: time.Duration(le.Uint32(b[58:])) * time.Microsecond}
	b = b[leaseSize:]
	inv.ID = starling.RequestID(b)
	remaining := le.Uint64(b[16:])
	if remaining > uint64(24*time.Hour/time.Microsecond) {
		return 0, errFrame
	}
	inv.Version = l.Version
	inv.Deadline = now.Add(time.Duration(remaining) * time.Microsecond)
	inv.Tail = b[24] == 1
	nt, nc, ny := int(le.Uint16(b[25:])), int(le.Uint16(b[27:])), int(le.Uint16(b[29:]))
	total = int(le.Uint32(b[31:]))
	b = b[callSize-leaseSize:]
	if nt > 512 || nc > 3583 || ny > 256 || total > starling.PayloadMax || nt+nc+ny > len(b) || len(b)-nt-nc-ny > total {
		return 0, errFrame
	}
	inv.Trace, b = string(b[:nt]), b[nt:]
	inv.ClientContext, b = string(b[:nc]), b[nc:]
	inv.ContentType, b = string(b[:ny]), b[ny:]
	inv.Payload = append(inv.Payload[:0], b...)
	return total, nil
}

// appendOutcome appends everything of an outcome but its error document, which travels before it.
func appendOutcome(b []byte, out *starling.Outcome) []byte {
	b = append(b, byte(out.Status))
	b = le.AppendUint64(b, uint64(out.Run/time.Microsecond))
	b = le.AppendUint64(b, uint64(out.Init/time.Microsecond))
	b = le.AppendUint64(b, uint64(out.MemoryMax))
	b = appendWord(b, out.ErrorType)
	tail := out.LogTail[max(0, len(out.LogTail)-starling.LogTailMax):]
	b = le.AppendUint16(b, uint16(len(tail)))
	return append(b, tail...)
}

// readOutcome is the reverse of appendOutcome and returns what follows.
func readOutcome(b []byte, out *starling.Outcome) (rest []byte, err error) {
	if len(b) < 25 || b[0] > byte(starling.Unhandled) {
		return nil, errFrame
	}
	out.Status = starling.Status(b[0])
	out.Run = time.Duration(le.Uint64(b[1:])) * time.Microsecond
	out.Init = time.Duration(le.Uint64(b[9:])) * time.Microsecond
	out.MemoryMax = int64(le.Uint64(b[17:]))
	var word []byte
	if word, b, err = readWord(b[25:]); err != nil {
		return nil, err
	}
	out.ErrorType = string(word)
	if len(b) < 2 {
		return nil, errFrame
	}
	n := int(le.Uint16(b))
	if b = b[2:]; n > len(b) {
		return nil, errFrame
	}
	if n > 0 {
		out.LogTail = append([]byte(nil), b[:n]...)
	}
	return b[n:], nil
}

// appendWord appends a string of at most 255 bytes; longer ones are cut.
func appendWord(b []byte, s string) []byte {
	s = s[:min(len(s), 255)]
	return append(append(b, byte(len(s))), s...)
}

func readWord(b []byte) (word, rest []byte, err error) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return nil, nil, errFrame
	}
	return b[1 : 1+int(b[0])], b[1+int(b[0]):], nil
}

// appendRefusal appends an error that says that the function did not start.
func appendRefusal(b []byte, err error) []byte {
	b = append(b, byte(starling.KindOf(err)))
	b = appendWord(b, starling.ReasonOf(err))
	return appendWord(b, err.Error())
}

func readRefusal(b []byte) error {
	if len(b) < 1 {
		return errFrame
	}
	kind := starling.Kind(b[0])
	reason, b, err := readWord(b[1:])
	if err != nil {
		return err
	}
	message, _, err := readWord(b)
	if err != nil {
		return err
	}
	return starling.Errorf(kind, "", "%s", message).With(string(reason))
}

// linkConfig lets the goroutine that has something to say write it, and others join its write.
var linkConfig = transport.LinkConfig{Inline: true, PendingMax: 32 << 20}
