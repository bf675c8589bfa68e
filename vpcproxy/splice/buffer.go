package splice

import "sync"

// A direction's buffer is small until a read fills it, and again when one would have fitted: it is held while nothing comes, and most flows
// mostly wait.
const bufferSmall, bufferLarge = 4 << 10, 32 << 10

var (
	small = sync.Pool{New: func() any { return new([bufferSmall]byte) }}
	large = sync.Pool{New: func() any { return new([bufferLarge]byte) }}
)

// A buffer is what one direction reads into.
type buffer struct {
	small *[bufferSmall]byte
	large *[bufferLarge]byte // nil while small is in use
}

func newBuffer() *buffer { return &buffer{small: small.Get().(*[bufferSmall]byte)} }

// next returns what to read into after a read of n bytes.
func (b *buffer) next(n int) []byte {
	switch {
	case b.large == nil && n == bufferSmall:
		b.large = large.Get().(*[bufferLarge]byte)
	case b.large != nil && n <= bufferSmall:
		large.Put(b.large)
		b.large = nil
	}
	if b.large != nil {
		return b.large[:]
	}
	return b.small[:]
}

func (b *buffer) free() {
	small.Put(b.small)
	if b.large != nil {
		large.Put(b.large)
	}
}
