package image

import (
	"io"
	"sync"
)

// A Reader shows the plain bytes of an image. Blocks that were opened last stay in memory. It is safe for concurrent use.
type Reader struct {
	cipher *Cipher
	size   int64
	block  func(i int) (sealed []byte, err error)
	keep   int

	mu    sync.Mutex // a leaf
	plain map[int][]byte
	order []int // of plain, the oldest first
}

// NewReader returns a reader of the first size bytes that keeps up to keep opened blocks. block gives a sealed block; it is called
// concurrently, and perhaps twice for one block.
func NewReader(c *Cipher, size int64, keep int, block func(i int) ([]byte, error)) *Reader {
	return &Reader{cipher: c, size: size, keep: max(keep, 1), block: block, plain: map[int][]byte{}}
}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at < 0 || at >= r.size {
			return n, io.EOF
		}
		b, err := r.open(int(at / BlockSize))
		if err != nil {
			return n, err
		}
		b = b[:min(int64(len(b)), r.size-at/BlockSize*BlockSize)]
		m := copy(p[n:], b[at%BlockSize:])
		if n += m; m == 0 {
			return n, io.ErrUnexpectedEOF // a block that is shorter than the index says
		}
	}
	return n, nil
}

func (r *Reader) open(i int) ([]byte, error) {
	r.mu.Lock()
	b, ok := r.plain[i]
	r.mu.Unlock()
	if ok {
		return b, nil
	}
	sealed, err := r.block(i)
	if err != nil {
		return nil, err
	}
	if b, err = r.cipher.Open(i, sealed); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.plain[i]; !ok {
		if len(r.order) == r.keep {
			delete(r.plain, r.order[0])
			r.order = r.order[1:]
		}
		r.plain[i] = b
		r.order = append(r.order, i)
	}
	return b, nil
}
