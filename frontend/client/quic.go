package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"starling"
	"starling/frontend/protocol"
	"starling/transport"
)

// A Conn opens streams to a frontend; transport/quic.Client is one.
type Conn interface {
	Open(ctx context.Context) (transport.Stream, error)
	Close() error
}

// QUIC invokes functions over one stream to one frontend, many calls at a time. It connects at the first call
// and again after the connection was lost. It is safe for concurrent use; Close it. It has one goroutine for
// each connection, and the connection's own.
type QUIC struct {
	dial    func(ctx context.Context) (Conn, error)
	key     string
	account starling.AccountID

	mu      sync.Mutex // guards current and closed; held while connecting, so that one caller does it for all
	current *stream
	closed  bool
	streams sync.WaitGroup
}

// NewQUIC returns a client that connects with dial and presents key. An admin may act for another account;
// otherwise account is empty.
func NewQUIC(dial func(ctx context.Context) (Conn, error), key string, account starling.AccountID) *QUIC {
	return &QUIC{dial: dial, key: key, account: account}
}

// Close ends the connection; calls in flight end with Unavailable.
func (q *QUIC) Close() error {
	q.mu.Lock()
	q.closed = true
	s := q.current
	q.current = nil
	q.mu.Unlock()
	if s != nil {
		s.link.Close()
	}
	q.streams.Wait()
	return nil
}

// Invoke calls a function and reads its whole answer. A function that failed is a Result whose Err is not nil;
// an error means that the call brought no answer of the function.
func (q *QUIC) Invoke(ctx context.Context, call Call) (*Result, error) {
	return q.call(ctx, &call, nil)
}

// Stream calls a function and writes its answer to w as it comes. The Result carries no payload, except the
// error document of a function that failed.
func (q *QUIC) Stream(ctx context.Context, call Call, w io.Writer) (*Result, error) {
	return q.call(ctx, &call, w)
}

// open returns the stream in use, a new one if need be.
func (q *QUIC) open(ctx context.Context) (*stream, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, starling.Errorf(starling.Unavailable, "invoke function", "this client is closed")
	}
	if q.current != nil && q.current.usable() {
		return q.current, nil
	}
	conn, err := q.dial(ctx)
	if err != nil {
		return nil, err
	}
	s, err := q.greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	q.current = s
	return s, nil
}

// greet opens a stream on conn and waits until the frontend knows the key.
func (q *QUIC) greet(ctx context.Context, conn Conn) (*stream, error) {
	st, err := conn.Open(ctx)
	if err != nil {
		return nil, err
	}
	s := &stream{link: transport.OpenLink(st, transport.LinkConfig{Inline: true}), calls: map[uint64]*pending{}, welcome: make(chan struct{})}
	hello := protocol.Hello{Version: protocol.Version, Key: q.key, Account: q.account}
	if err := s.link.Send(protocol.KindHello, 0, hello.Append(nil)); err != nil {
		s.link.Close()
		return nil, err
	}
	q.streams.Go(func() {
		defer conn.Close()
		s.read()
		s.link.Close()
	})
	select {
	case <-s.welcome:
		return s, nil
	case <-s.link.Done():
		return nil, s.why()
	case <-ctx.Done():
		s.link.Close()
		return nil, late(ctx)
	}
}

// A stream is one greeted connection.
type stream struct {
	link    *transport.Link
	welcome chan struct{} // closed by the frontend's welcome

	mu      sync.Mutex // a leaf; guards the rest
	greeted bool
	calls   map[uint64]*pending
	last    uint64
	bye     error // why the frontend takes no more calls
}

func (s *stream) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bye == nil && s.link.Err() == nil
}

// why is the reason of the stream's end.
func (s *stream) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bye != nil {
		return s.bye
	}
	return s.link.Err()
}

// A pending is one call in flight. What arrives is gathered under mu; the caller is signalled and takes it.
type pending struct {
	signal chan struct{} // of capacity 1

	mu   sync.Mutex // a leaf; guards the rest
	kind string     // content type, from the head
	data []byte     // arrived and not taken
	end  *protocol.Ending
	err  error
}

func (p *pending) wake() {
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

// fail ends a call without an answer.
func (p *pending) fail(err error) {
	p.mu.Lock()
	if p.err == nil && p.end == nil {
		p.err = err
	}
	p.mu.Unlock()
	p.wake()
}

// read takes what arrives until the stream ends; then every call in flight ends too.
func (s *stream) read() {
	err := s.link.Serve(func(batch []transport.Frame) {
		for _, f := range batch {
			if err := s.frame(f); err != nil {
				s.mu.Lock()
				s.bye = err
				s.mu.Unlock()
				s.link.Close()
				return
			}
		}
	})
	if err == nil {
		err = s.link.Err()
	}
	s.mu.Lock()
	if s.bye == nil {
		s.bye = starling.Errorf(starling.Unavailable, "invoke function", "the connection was lost; the function may have run: %w", err)
	}
	calls := s.calls
	s.calls = nil
	err = s.bye
	s.mu.Unlock()
	for _, p := range calls {
		p.fail(err)
	}
}

func (s *stream) find(id uint64) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[id]
}

// frame takes one frame; an error ends the stream.
func (s *stream) frame(f transport.Frame) error {
	if f.ID == 0 {
		return s.control(f)
	}
	p := s.find(f.ID)
	if p == nil {
		return nil // given up by its caller
	}
	switch f.Kind {
	case protocol.KindHead:
		t, err := protocol.DecodeHead(f.Body)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.kind = t
		p.mu.Unlock()
	case protocol.KindChunk:
		p.mu.Lock()
		p.data = append(p.data, f.Body...)
		tooMuch := len(p.data) > 4*protocol.Window
		p.mu.Unlock()
		if tooMuch {
			return starling.Errorf(starling.Invalid, "read answer", "the frontend sends more than it was given credit for")
		}
		p.wake()
	case protocol.KindEnd:
		e := new(protocol.Ending)
		if err := e.Decode(f.Body); err != nil {
			return err
		}
		e.Body, e.LogTail = append([]byte(nil), e.Body...), append([]byte(nil), e.LogTail...)
		p.mu.Lock()
		p.end = e
		p.mu.Unlock()
		s.forget(f.ID)
		p.wake()
	case protocol.KindRefusal:
		e, err := protocol.DecodeRefusal(f.Body)
		if err != nil {
			return err
		}
		p.fail(e)
		s.forget(f.ID)
	}
	return nil
}

// control takes a frame that is about the stream itself.
func (s *stream) control(f transport.Frame) error {
	switch f.Kind {
	case protocol.KindWelcome:
		if _, err := protocol.DecodeWelcome(f.Body); err != nil {
			return err
		}
		s.mu.Lock()
		again := s.greeted
		s.greeted = true
		s.mu.Unlock()
		if !again {
			close(s.welcome)
		}
	case protocol.KindRefusal:
		e, err := protocol.DecodeRefusal(f.Body)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.bye = e
		rest, greeted := len(s.calls), s.greeted
		s.mu.Unlock()
		if rest == 0 || !greeted {
			return e
		}
	}
	return nil
}

// forget ends the book-keeping of a call; the last one of a stream that the frontend left closes it.
func (s *stream) forget(id uint64) {
	s.mu.Lock()
	delete(s.calls, id)
	last := s.bye != nil && len(s.calls) == 0
	s.mu.Unlock()
	if last {
		s.link.Close()
	}
}

// begin draws a number for a call.
func (s *stream) begin() (uint64, *pending, error) {
	p := &pending{signal: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bye != nil {
		return 0, nil, s.bye
	}
	if len(s.calls) >= protocol.CallsMax {
		return 0, nil, starling.Errorf(starling.Overloaded, "invoke function", "%d calls are in flight on this connection, its limit", protocol.CallsMax)
	}
	s.last++
	s.calls[s.last] = p
	return s.last, p, nil
}

// late is the error of a call whose context ended.
func late(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return starling.Errorf(starling.Timeout, "invoke function", "no answer in time; the function may have run: %w", ctx.Err())
	}
	return ctx.Err()
}

func (q *QUIC) call(ctx context.Context, call *Call, w io.Writer) (*Result, error) {
	if len(call.Payload) > starling.PayloadMax {
		return nil, starling.Errorf(starling.TooLarge, "invoke function", "the payload has %d bytes: use at most %d", len(call.Payload), starling.PayloadMax)
	}
	s, err := q.open(ctx)
	if err != nil {
		return nil, err
	}
	id, p, err := s.begin()
	if err != nil {
		return nil, err
	}
	if err := s.sendCall(ctx, id, call, p); err != nil {
		s.forget(id)
		return nil, err
	}
	r, err := s.await(ctx, id, p, w)
	if err != nil {
		s.forget(id)
	}
	return r, err
}

// sendCall sends the head with the beginning of the payload, and the rest in pieces.
func (s *stream) sendCall(ctx context.Context, id uint64, call *Call, p *pending) error {
	h := protocol.CallHead{Request: call.Request, Number: call.Version, Tail: call.Tail, Total: uint32(len(call.Payload)),
		Function: string(call.Function), ContentType: call.ContentType}
	if h.ContentType == "" {
		h.ContentType = "application/json"
	}
	if d, ok := ctx.Deadline(); ok {
		h.Within = max(time.Until(d), time.Microsecond)
	}
	rest := call.Payload
	first := rest[:min(len(rest), protocol.PieceMax-8<<10)] // the head has its place in the frame
	rest = rest[len(first):]
	var buf [512]byte
	if err := s.send(ctx, protocol.KindCall, id, h.Append(buf[:0]), first); err != nil {
		return err
	}
	for len(rest) > 0 {
		if refused := p.refused(); refused {
			return nil // the answer is there already
		}
		n := min(len(rest), protocol.PieceMax)
		if err := s.send(ctx, protocol.KindPayload, id, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func (p *pending) refused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

// send queues a frame, and waits while too much is queued.
func (s *stream) send(ctx context.Context, kind uint8, id uint64, parts ...[]byte) error {
	for {
		err := s.link.Send(kind, id, parts...)
		if err == nil || starling.KindOf(err) != starling.Overloaded {
			return err
		}
		t := time.NewTimer(5 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return late(ctx)
		case <-s.link.Done():
			t.Stop()
			return s.why()
		}
	}
}

// await takes the answer as it comes, giving credit for what is taken.
func (s *stream) await(ctx context.Context, id uint64, p *pending, w io.Writer) (*Result, error) {
	r := new(Result)
	owed := 0
	for {
		select {
		case <-p.signal:
		case <-ctx.Done():
			s.link.Send(protocol.KindCancel, id)
			return nil, late(ctx)
		}
		p.mu.Lock()
		data, end, err := p.data, p.end, p.err
		p.data = nil
		r.ContentType = p.kind
		p.mu.Unlock()
		if len(data) > 0 {
			if w == nil {
				r.Payload = append(r.Payload, data...)
			} else if _, err := w.Write(data); err != nil {
				s.link.Send(protocol.KindCancel, id)
				return nil, err
			}
			owed += len(data)
		}
		switch {
		case end != nil:
			return r, r.fill(end, w)
		case err != nil:
			return nil, err
		case owed >= protocol.Window/2:
			var buf [4]byte
			if err := s.send(ctx, protocol.KindCredit, id, protocol.AppendCredit(buf[:0], uint32(owed))); err != nil {
				return nil, err
			}
			owed = 0
		}
	}
}

// fill takes over what the last frame says.
func (r *Result) fill(e *protocol.Ending, w io.Writer) error {
	r.Request, r.Version, r.Status, r.ErrorType, r.LogTail = e.Request, e.Number.String(), e.Status, e.ErrorType, e.LogTail
	r.Timing = map[string]time.Duration{"run": e.Run}
	for name, d := range map[string]time.Duration{"queue": e.Phases.Queue, "place": e.Phases.Place, "start": e.Phases.Start, "init": e.Phases.Init} {
		if d > 0 {
			r.Timing[name] = d
		}
	}
	if r.ContentType == "" {
		r.ContentType = e.ContentType
	}
	switch {
	case len(e.Body) == 0:
	case e.Status != starling.Succeeded:
		r.Payload, r.ContentType = e.Body, e.ContentType
	case w == nil:
		r.Payload = append(r.Payload, e.Body...)
	default:
		_, err := w.Write(e.Body)
		return err
	}
	return nil
}
