package frontend

import (
	"context"
	"sync"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// A clientCall is one call of a client's stream and the sink of its answer.
type clientCall struct {
	c        *session
	id       uint64
	function starling.FunctionName
	number   starling.VersionNumber
	inv      starling.Invocation
	total    int
	payload  []byte
	timer    *time.Timer // while the payload is not whole
	ctx      context.Context
	cancel   context.CancelFunc

	contentType string
	streaming   bool
	begun       bool   // the head is out
	body        []byte // of a plain answer that is small enough for the last frame
	reserved    int64
	tooLong     bool
	size        int // bytes of a plain answer
	version     starling.VersionNumber

	mu     sync.Mutex // a leaf; guards window
	window int64
	more   chan struct{} // of capacity 1: credit came
}

var _ starling.Sink = (*clientCall)(nil)

func newClientCall(c *session, id uint64, h *protocol.CallHead) *clientCall {
	k := &clientCall{c: c, id: id, function: starling.FunctionName(h.Function), number: h.Number, total: int(h.Total), reserved: int64(h.Total),
		window: protocol.Window, more: make(chan struct{}, 1)}
	k.payload = make([]byte, 0, h.Total)
	k.payload = append(k.payload, h.Payload...)
	k.inv = starling.Invocation{ID: h.Request, Trace: h.Trace, ClientContext: h.ClientContext, ContentType: h.ContentType, Tail: h.Tail}
	if h.Within > 0 {
		k.inv.Deadline = time.Now().Add(h.Within)
	}
	k.ctx, k.cancel = context.WithCancel(c.ctx)
	return k
}

func (k *clientCall) whole() bool { return len(k.payload) == k.total }

func (k *clientCall) release() {
	k.c.s.memory.Add(-k.reserved)
	k.reserved = 0
	k.cancel()
}

// run is the goroutine of one call.
func (k *clientCall) run() {
	began := time.Now()
	s := k.c.s
	status, err := k.invoke()
	if err != nil && starling.KindOf(err) == starling.Failed && !k.begun {
		out := failure(err)
		k.body = nil
		status, err = k.finish(out, starling.Phases{}), nil
	}
	if err != nil {
		status = counted(err)
		k.c.refuse(k.id, k.inv.ID, err)
	}
	s.numbers.answered(status, time.Since(began))
	k.c.done(k)
}

func (k *clientCall) invoke() (int, error) {
	s := k.c.s
	v, err := s.resolve(k.ctx, k.c.who, k.function, k.number)
	if err != nil {
		return 0, err
	}
	if err := s.admit(v.Function); err != nil {
		return 0, err
	}
	defer s.inFlight.Add(-1)
	k.version = v.Number
	k.inv.Payload = k.payload
	out, phases, err := s.deps.Dispatch.Invoke(k.ctx, v, &k.inv, k)
	if err != nil {
		return 0, err
	}
	return k.finish(out, phases), nil
}

// Start begins the answer.
func (k *clientCall) Start(contentType string, streaming bool) {
	k.contentType, k.streaming = contentType, streaming
	if !cleanValue(contentType) {
		k.contentType = plainType[0]
	}
	if streaming {
		k.head()
	}
}

func (k *clientCall) head() error {
	k.begun = true
	return k.c.send(protocol.KindHead, k.id, protocol.AppendHead(nil, k.contentType))
}

// Write takes a part of the answer: small plain ones are kept for the last frame, others go out as they come.
func (k *clientCall) Write(p []byte) (int, error) {
	k.size += len(p)
	if !k.streaming && k.size > starling.PayloadMax {
		k.tooLong = true
		return 0, tooLarge()
	}
	if !k.begun {
		if len(k.body)+len(p) <= protocol.PieceMax-8<<10 { // the rest of the frame is for the ending
			k.body = append(k.body, p...)
			return len(p), nil
		}
		if err := k.head(); err != nil {
			return 0, err
		}
		if _, err := k.chunks(k.body); err != nil {
			return 0, err
		}
		k.body = nil
	}
	return k.chunks(p)
}

func (k *clientCall) chunks(p []byte) (n int, err error) {
	for len(p) > 0 {
		m, err := k.take(min(len(p), protocol.PieceMax))
		if err != nil {
			return n, err
		}
		if err := k.c.send(protocol.KindChunk, k.id, p[:m]); err != nil {
			return n, err
		}
		n += m
		p = p[m:]
	}
	return n, nil
}

// take waits for credit and uses at most n bytes of it.
func (k *clientCall) take(n int) (int, error) {
	var t *time.Timer
	for {
		k.mu.Lock()
		m := min(int64(n), k.window)
		k.window -= m
		k.mu.Unlock()
		if m > 0 {
			return int(m), nil
		}
		if t == nil {
			t = time.NewTimer(streamTime)
			defer t.Stop()
		}
		select {
		case <-k.more:
		case <-k.ctx.Done():
			return 0, starling.Errorf(starling.Unavailable, "answer client", "the client went away: %w", k.ctx.Err())
		case <-t.C:
			return 0, starling.Errorf(starling.Timeout, "answer client", "the client read nothing for %v", streamTime)
		}
	}
}

// credit lets n bytes more out. What is more than a whole answer can need is no use and not kept.
func (k *clientCall) credit(n int64) {
	k.mu.Lock()
	k.window = min(k.window+n, 2*protocol.Window)
	k.mu.Unlock()
	select {
	case k.more <- struct{}{}:
	default:
	}
}

// finish sends the last frame and returns the HTTP status that the same call would have had.
func (k *clientCall) finish(out starling.Outcome, phases starling.Phases) int {
	if k.tooLong {
		out = starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrResponseSize, Run: out.Run, LogTail: out.LogTail,
			Error: document(starling.ErrResponseSize, "the answer is larger than it may be")}
	}
	e := protocol.Ending{Request: k.inv.ID, Number: k.version, Status: out.Status, Run: out.Run, Phases: phases, ContentType: k.contentType}
	body, status := k.body, 200
	if out.Status != starling.Succeeded {
		status = 502
		e.ErrorType = cleanWord(out.ErrorType)
		if len(out.Error) > 0 {
			body, e.ContentType = out.Error, jsonType[0]
		}
	}
	if k.inv.Tail {
		e.LogTail = out.LogTail[max(0, len(out.LogTail)-starling.LogTailMax):]
	}
	if len(body) > protocol.PieceMax-8<<10 {
		body = document(e.ErrorType, "the error document is too large to be sent")
	}
	k.c.send(protocol.KindEnd, k.id, e.Append(nil), body)
	return status
}
