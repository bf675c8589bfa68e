// Package framed speaks with the shipped language runtimes over one socket: one write and one read for a
// call, carried out by the goroutine of the caller. The host is never the one that trusts: every length, id
// and order that comes from the sandbox is checked, and a peer that breaks the protocol loses its instance.
//
// A frame is a little-endian u32 with the length of what follows, a type byte and a body. The host sends
// init once, then calls, one at a time; the runtime says ready before any code is there, answers init, and
// ends each call with one answer frame (small answers) or head, chunks and end. DESIGN.md of vmpool says why.
package framed

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"starling"
)

// FrameMax bounds the length field of one frame; larger payloads take several frames.
const FrameMax = 1 << 20

// Frame types. Numbers are fixed for ever: the runtimes inside running sandboxes speak them.
const (
	typeInit      = 1  // host: Setup as JSON
	typeCall      = 2  // host: callHead, strings, payload or its beginning
	typeMore      = 3  // host: the next part of a payload
	typeReady     = 15 // runtime: warm, no code of a tenant loaded
	typeInitOK    = 16 // runtime: the function's initialisation ended
	typeInitError = 17 // runtime: Failure as JSON
	typeHead      = 18 // runtime: id, u8 streaming, u64 length of a buffered answer, u8 n, content type
	typeChunk     = 19 // runtime: id, bytes
	typeEnd       = 20 // runtime: id, u8 failed, u8 n, error type, error document
	typeAnswer    = 21 // runtime: id, u8 failed, u8 n, content type or error type, answer or error document
)

const (
	idSize      = 16
	callFixed   = idSize + 4 + 4 + 2 + 2 + 2 // id, remaining ms, payload length, lengths of three strings
	headFixed   = idSize + 1 + 8 + 1
	endFixed    = idSize + 1 + 1
	documentMax = 256 << 10 // bytes of an error document kept
	traceMax    = 512
	contextMax  = 3583
	contentMax  = 256
)

// errProtocol is what every broken rule of the protocol wraps.
var errProtocol = errors.New("the runtime broke the protocol")

// Setup is what the runtime is told once, before the code is loaded.
type Setup struct {
	Handler   string            `json:"handler"`
	Env       map[string]string `json:"env"`
	Root      string            `json:"root"` // where the code is mounted, "/var/task"
	Function  string            `json:"function"`
	Version   string            `json:"version"`
	ARN       string            `json:"arn"`
	LogGroup  string            `json:"logGroup"`
	LogStream string            `json:"logStream"`
	MemoryMiB int               `json:"memoryMiB"`
}

// A Failure is an error document as the runtimes write it.
type Failure struct {
	Type    string          `json:"errorType"`
	Message string          `json:"errorMessage"`
	Stack   json.RawMessage `json:"stackTrace,omitempty"`
}

func putHeader(dst []byte, typ byte, body int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(body+1))
	return append(dst, typ)
}

// appendCall appends the call frame up to its payload and returns how many bytes of payload belong to it.
func appendCall(dst []byte, inv *starling.Invocation, remaining uint32) ([]byte, int) {
	trace, client, content := clip(inv.Trace, traceMax), clip(inv.ClientContext, contextMax), clip(inv.ContentType, contentMax)
	strings := len(trace) + len(client) + len(content)
	first := min(len(inv.Payload), FrameMax-1-callFixed-strings)
	dst = putHeader(dst, typeCall, callFixed+strings+first)
	dst = append(dst, inv.ID[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, remaining)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(inv.Payload)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(trace)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(client)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(content)))
	dst = append(dst, trace...)
	dst = append(dst, client...)
	return append(dst, content...), first
}

// clip drops what the vocabulary forbids; the frontend refuses it earlier with a sentence.
func clip(s string, most int) string {
	if len(s) > most {
		return ""
	}
	return s
}

// header is one frame's beginning as read from the runtime.
type header struct {
	typ    byte
	length int // bytes of the body
}

func parseHeader(b []byte) (header, error) {
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > FrameMax {
		return header{}, fmt.Errorf("%w: frame of %d bytes", errProtocol, n)
	}
	return header{b[4], int(n) - 1}, nil
}

const headerSize = 5
