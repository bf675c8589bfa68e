package framed

import (
	"fmt"
	"io"
	"sync"
)

// bufferSize holds a whole small call or answer: one read takes it.
const bufferSize = 64 << 10

// buffers are shared by all connections: an idle instance holds none.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// reader takes frames apart without ever allocating for a length that the peer claims.
type reader struct {
	from io.Reader
	buf  *[bufferSize]byte // nil between calls
	r, w int
	left int // bytes of the current frame's body that were not taken yet
}

func (r *reader) open() { r.buf = buffers.Get().(*[bufferSize]byte); r.r, r.w, r.left = 0, 0, 0 }

// close reports whether nothing was left unread.
func (r *reader) close() bool {
	buffers.Put(r.buf)
	r.buf = nil
	return r.r == r.w && r.left == 0
}

// fill reads until n bytes are buffered; n is at most bufferSize.
func (r *reader) fill(n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if r.r > 0 {
		copy(r.buf[:], r.buf[r.r:r.w])
		r.w -= r.r
		r.r = 0
	}
	for r.w < n {
		m, err := r.from.Read(r.buf[r.w:])
		r.w += m
		if err != nil && r.w < n {
			return err
		}
	}
	return nil
}

// next starts the next frame; the previous one must be wholly taken.
func (r *reader) next() (header, error) {
	if err := r.fill(headerSize); err != nil {
		return header{}, err
	}
	h, err := parseHeader(r.buf[r.r:])
	if err != nil {
		return header{}, err
	}
	r.r += headerSize
	r.left = h.length
	return h, nil
}

// take returns the next n bytes of the frame, valid until the next method is called; n is small.
func (r *reader) take(n int) ([]byte, error) {
	if n > r.left {
		return nil, fmt.Errorf("%w: frame is %d bytes short", errProtocol, n-r.left)
	}
	if err := r.fill(n); err != nil {
		return nil, err
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	r.left -= n
	return b, nil
}

// some returns what is buffered of the rest of the frame, reading once if nothing is; nil at the frame's end.
func (r *reader) some() ([]byte, error) {
	if r.left == 0 {
		return nil, nil
	}
	if err := r.fill(1); err != nil {
		return nil, err
	}
	n := min(r.left, r.w-r.r)
	b := r.buf[r.r : r.r+n]
	r.r += n
	r.left -= n
	return b, nil
}

// document returns a copy of the rest of the frame, which must not pass documentMax.
func (r *reader) document() ([]byte, error) {
	if r.left > documentMax {
		return nil, fmt.Errorf("%w: error document of %d bytes", errProtocol, r.left)
	}
	out := make([]byte, 0, min(r.left, 4096))
	for r.left > 0 {
		b, err := r.some()
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}
