package transport

import (
	"errors"
	"io"
	"sync"
	"time"

	"starling"
)

const (
	readSmall    = 16 << 10         // bytes a quiet link reads at once
	readLarge    = 64 << 10         // bytes a busy link reads at once; more only where one frame needs it
	writeKeep    = 1 << 20          // bytes of capacity a write buffer keeps between bursts
	writeStall   = 10 * time.Second // a peer that takes nothing for so long has lost the stream
	inlineRounds = 4                // writes one inline sender does for others before the writer takes over
)

// LinkConfig says how a link treats its senders. The zero value is the default.
type LinkConfig struct {
	// Inline lets the sender that finds the stream idle write at once; the frames of all who come meanwhile
	// go with its next write. It saves a wake-up, and may block the caller while the peer's window is full.
	// Without it Send never blocks and a goroutine writes.
	Inline     bool
	PendingMax int // bytes waiting to be written before Send refuses; 8 MiB when 0
	BatchMax   int // most frames handed to the reader's handler at once; 1024 when 0
}

func (c LinkConfig) withDefaults() LinkConfig {
	if c.PendingMax == 0 {
		c.PendingMax = 8 << 20
	}
	if c.BatchMax == 0 {
		c.BatchMax = 1024
	}
	return c
}

// A Link is one long-lived stream of frames between two nodes. Frames sent while a write is under way leave
// together with the next one, so that the cost of the stream is shared by all that is in flight.
//
// It has one goroutine, the writer. Serve runs the reader on the goroutine of its caller. After Close, or
// when Serve has returned, every Send fails.
type Link struct {
	cfg    LinkConfig
	wake   chan struct{} // at most one token: there is something to write, or the link has ended
	ended  chan struct{} // closed when err is set
	writer sync.WaitGroup

	mu      sync.Mutex // guards the rest; a leaf, never held over a read, a write or a call out
	stream  Stream     // nil while the link is still being dialled
	pending []byte     // frames not yet given to the stream
	spare   []byte     // the other buffer, while nobody writes
	writing bool       // somebody owns the stream's write side
	handed  bool       // that somebody is the writer, which has not taken it up yet
	err     error      // why the link ended
}

// OpenLink starts a link over s, which it owns from now on.
func OpenLink(s Stream, cfg LinkConfig) *Link {
	l := newLink(cfg)
	l.attach(s)
	return l
}

// newLink returns a link that gathers frames until attach gives it a stream or fail ends it.
func newLink(cfg LinkConfig) *Link {
	l := &Link{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), ended: make(chan struct{})}
	l.writer.Add(1)
	go l.write()
	return l
}

// attach gives the link its stream; what was sent meanwhile leaves now. On a link that has ended it cancels s.
func (l *Link) attach(s Stream) {
	l.mu.Lock()
	dead := l.err != nil
	if !dead {
		l.stream = s
		if len(l.pending) > 0 {
			l.hand()
		}
	}
	l.mu.Unlock()
	if dead {
		s.Cancel()
	}
}

// Peer is who is at the other end; the zero Peer while the link is being dialled.
func (l *Link) Peer() Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stream == nil {
		return Peer{}
	}
	return l.stream.Peer()
}

// Send queues one frame whose body is the parts one after another; it copies them. The error is TooLarge for a
// body over FrameBodyMax, Overloaded when PendingMax is reached, and what ended the link otherwise. A nil
// error does not mean that the peer has got it.
func (l *Link) Send(kind uint8, id uint64, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > FrameBodyMax {
		return starling.Errorf(starling.TooLarge, "send frame", "a body of %d bytes is over the limit of %d: use a stream of its own", n, FrameBodyMax)
	}
	l.mu.Lock()
	if l.err != nil {
		err := l.err
		l.mu.Unlock()
		return err
	}
	if len(l.pending)+frameLength+frameHead+n > l.cfg.PendingMax {
		l.mu.Unlock()
		return errPendingFull
	}
	l.pending = AppendFrame(l.pending, kind, id, parts...)
	if l.writing || l.stream == nil {
		l.mu.Unlock()
		return nil
	}
	if !l.cfg.Inline {
		l.hand()
		l.mu.Unlock()
		return nil
	}
	l.writing = true
	l.mu.Unlock()
	l.flush(inlineRounds)
	return nil
}

var errPendingFull = starling.Errorf(starling.Overloaded, "send frame", "too many bytes wait for this peer: send again after a pause").RetryAfter(50 * time.Millisecond)

// hand makes the writer own the stream's write side; the caller holds mu.
func (l *Link) hand() {
	l.writing, l.handed = true, true
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// write is the link's goroutine. It writes what senders leave to it until the link ends.
func (l *Link) write() {
	defer l.writer.Done()
	for {
		select {
		case <-l.ended:
			return
		case <-l.wake:
		}
		l.mu.Lock()
		mine := l.handed
		l.handed = false
		l.mu.Unlock()
		if mine {
			l.flush(0)
		}
	}
}

// flush writes until nothing is pending; the caller has set writing. After rounds writes (0: without end) it
// hands the stream to the writer, so that no sender works for the others for ever.
func (l *Link) flush(rounds int) {
	var stall time.Time
	for round := 1; ; round++ {
		l.mu.Lock()
		if l.err != nil || len(l.pending) == 0 {
			l.writing = false
			l.mu.Unlock()
			return
		}
		if rounds > 0 && round > rounds {
			l.hand()
			l.mu.Unlock()
			return
		}
		out, stream := l.pending, l.stream
		l.pending, l.spare = l.spare[:0], nil
		l.mu.Unlock()

		now := time.Now()
		if now.After(stall) { // the deadline moves at most once a second: setting it costs as much as a small write
			stall = now.Add(time.Second)
			stream.SetWriteDeadline(now.Add(writeStall))
		}
		_, err := stream.Write(out)
		if cap(out) > writeKeep {
			out = nil
		}
		l.mu.Lock()
		l.spare = out[:0]
		l.mu.Unlock()
		if err != nil {
			l.fail(lost(err))
		}
	}
}

// Serve reads frames until the link ends and hands over, in order, everything that has already arrived as one
// batch. The batch and its bodies are valid until handle returns. It returns why the link ended: nil when the
// peer closed it in good order.
func (l *Link) Serve(handle func(batch []Frame)) error {
	l.mu.Lock()
	stream, err := l.stream, l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	err = readFrames(stream, l.cfg.BatchMax, handle)
	if err == nil {
		l.fail(errClosedByPeer)
		return nil
	}
	l.fail(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// readFrames cuts r into frames. It keeps one buffer, in which the bodies of a batch lie where they arrived.
func readFrames(r io.Reader, batchMax int, handle func([]Frame)) error {
	buf := make([]byte, readSmall)
	batch := make([]Frame, 0, 64)
	have := 0 // bytes of buf that are filled
	for {
		n, err := r.Read(buf[have:])
		have += n
		used := 0
		for {
			f, size, ferr := NextFrame(buf[used:have])
			if ferr != nil {
				return ferr
			}
			if size == 0 || len(batch) == batchMax {
				if len(batch) > 0 {
					handle(batch)
					batch = batch[:0]
				}
				if size == 0 {
					break
				}
			}
			batch = append(batch, f)
			used += size
		}
		if err != nil {
			return ending(err, have-used)
		}
		full := have == len(buf)
		copy(buf, buf[used:have])
		have -= used
		switch {
		case full && len(buf) < readLarge:
			buf = append(buf, make([]byte, readLarge-len(buf))...)
		case full && used == 0:
			buf = append(buf, make([]byte, frameMax-len(buf))...)
		}
	}
}

// ending tells a stream that ended between two frames from one that was cut.
func ending(err error, rest int) error {
	if !errors.Is(err, io.EOF) {
		return lost(err)
	}
	if rest > 0 {
		return lost(io.ErrUnexpectedEOF)
	}
	return nil
}

// lost gives an error of the stream the kind that callers act on.
func lost(err error) error {
	var e *starling.Error
	if errors.As(err, &e) {
		return err
	}
	return starling.Errorf(starling.Unavailable, "use link", "the connection was lost: %w", err)
}

var (
	errClosedByPeer = starling.Errorf(starling.Unavailable, "use link", "the peer closed the connection")
	errClosed       = starling.Errorf(starling.Unavailable, "use link", "the link is closed")
)

// fail ends the link once: later sends get err, the stream is cancelled, Serve returns.
func (l *Link) fail(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	l.pending = nil
	stream := l.stream
	l.mu.Unlock()
	close(l.ended)
	if stream != nil {
		stream.Cancel()
	}
}

// Done is closed when the link has ended.
func (l *Link) Done() <-chan struct{} { return l.ended }

// Err is why the link ended, nil while it lives.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close ends the link and waits for its writer. Frames not yet written are lost. A Serve under way returns
// soon after.
func (l *Link) Close() {
	l.fail(errClosed)
	l.writer.Wait()
}
