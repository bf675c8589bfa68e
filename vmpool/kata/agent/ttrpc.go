package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// The frames of ttrpc: u32 length, u32 stream, u8 type and u8 flags, big-endian, then a Request or a Response. Kata's own
// stubs would cost each process sandbox, whose first process is this program too, the set-up of two hundred message types.
const (
	frameHeader   = 10
	frameMax      = 4 << 20
	frameRequest  = 1
	frameResponse = 2
)

// A code is a status of gRPC.
type code uint64

const (
	invalidArgument code = 3
	internal        code = 13
	notServed       code = 12
)

// A callError is what a caller is told of a call that failed.
type callError struct {
	code code
	text string
}

func (e *callError) Error() string { return e.text }

func refuse(c code, format string, args ...any) error {
	return &callError{c, fmt.Sprintf(format, args...)}
}

// slow is the one call that takes as long as the function's process.
const slow = "WaitProcess"

// serve answers calls until the connection ends, one after another but for the slow one: a goroutine for each would be
// the most of what a fresh clone executes.
func serve(conn io.ReadWriter, g *guest) {
	var out sync.Mutex
	in := bufio.NewReader(conn)
	for {
		var head [frameHeader]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > frameMax {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		if head[8] != frameRequest {
			continue
		}
		id := binary.BigEndian.Uint32(head[4:])
		q, err := parse(body)
		reply := func() {
			answer := respond(g, q, err)
			frame := binary.BigEndian.AppendUint32(nil, uint32(len(answer)))
			frame = binary.BigEndian.AppendUint32(frame, id)
			frame = append(append(frame, frameResponse, 0), answer...)
			out.Lock()
			defer out.Unlock()
			conn.Write(frame) // an error is also the next read's
		}
		if q.method == slow {
			go reply()
		} else {
			reply()
		}
	}
}

// A request is one Request of ttrpc.
type request struct {
	service, method string
	payload         []byte
}

func parse(body []byte) (q request, err error) {
	err = fields(body, func(n protowire.Number, v value) {
		switch n {
		case 1:
			q.service = string(v.bytes)
		case 2:
			q.method = string(v.bytes)
		case 3:
			q.payload = v.bytes
		}
	})
	return q, err
}

// respond carries out one request, unless it could not be read, and returns the Response.
func respond(g *guest, q request, err error) []byte {
	var answer []byte
	if err == nil {
		answer, err = g.call(q.service, q.method, q.payload)
	}
	if err != nil {
		c := internal
		var e *callError
		if errors.As(err, &e) {
			c = e.code
		}
		status := protowire.AppendTag(nil, 1, protowire.VarintType)
		status = protowire.AppendVarint(status, uint64(c))
		status = appendBytes(status, 2, []byte(err.Error()))
		return appendBytes(nil, 1, status)
	}
	return appendBytes(nil, 2, answer)
}

// value is one field of a message: a number, or bytes.
type value struct {
	number uint64
	bytes  []byte
}

// fields hands each field of a message to take.
func fields(b []byte, take func(protowire.Number, value)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return refuse(invalidArgument, "a message that cannot be read: %v", protowire.ParseError(n))
		}
		b = b[n:]
		var v value
		switch typ {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return refuse(invalidArgument, "a message that cannot be read: %v", protowire.ParseError(n))
		}
		b = b[n:]
		take(num, v)
	}
	return nil
}

// within hands the fields of a message inside a field to take.
func within(b []byte, path []protowire.Number, take func(value)) error {
	var inner error
	err := fields(b, func(n protowire.Number, v value) {
		switch {
		case n != path[0]:
		case len(path) == 1:
			take(v)
		default:
			inner = errors.Join(inner, within(v.bytes, path[1:], take))
		}
	})
	return errors.Join(err, inner)
}

func appendBytes(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func appendNumber(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
