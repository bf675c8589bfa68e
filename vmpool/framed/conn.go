package framed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"starling"
)

// Grace is how long after a call's deadline an answer is still taken: the runtime was told the deadline and
// may be about to say that it passed.
const Grace = 100 * time.Millisecond

// A Conn is the contract with one shipped runtime. It serves one call at a time and starts no goroutine.
// Ready, Init and Invoke are used in this order; Close may be called at any time.
type Conn struct {
	nc    net.Conn
	lane  *lane
	setup Setup

	mu     sync.Mutex // held through a whole call: the socket is the runtime's only lane
	in     reader
	broken error // why no further call may be made

	types map[string]string // content and error types seen, so that a call allocates no string; at most typesMax
}

const typesMax = 64

// New returns the contract over nc, which belongs to it from now on.
func New(nc net.Conn, setup Setup) *Conn {
	l := newLane(nc)
	return &Conn{nc: nc, lane: l, setup: setup, in: reader{from: l}, types: map[string]string{}}
}

// Specialise sets what Init will tell the runtime; call it before Init.
func (c *Conn) Specialise(setup Setup) { c.setup = setup }

// Ready waits until the runtime is warm. A pool calls it before any code is known.
func (c *Conn) Ready(ctx context.Context) error {
	return c.phase(ctx, func() error {
		h, err := c.in.next()
		if err != nil {
			return err
		}
		if h.typ != typeReady || h.length != 0 {
			return fmt.Errorf("%w: frame %d instead of ready", errProtocol, h.typ)
		}
		return nil
	})
}

// Init sends the setup and waits until the function's own initialisation ended.
func (c *Conn) Init(ctx context.Context) error {
	return c.phase(ctx, func() error {
		body, err := json.Marshal(c.setup)
		if err != nil {
			return fmt.Errorf("encode setup: %w", err)
		}
		if len(body) >= FrameMax {
			return starling.Errorf(starling.TooLarge, "init function", "environment of %d bytes does not fit", len(body))
		}
		if _, err := c.nc.Write(append(putHeader(nil, typeInit, len(body)), body...)); err != nil {
			return err
		}
		h, err := c.in.next()
		if err != nil {
			return err
		}
		switch {
		case h.typ == typeInitOK && h.length == 0:
			return nil
		case h.typ == typeInitError:
			doc, err := c.in.document()
			if err != nil {
				return err
			}
			return initFailure(doc)
		}
		return fmt.Errorf("%w: frame %d instead of init-ok", errProtocol, h.typ)
	})
}

func initFailure(doc []byte) error {
	var f Failure
	if json.Unmarshal(doc, &f) != nil || f.Type == "" {
		f = Failure{Type: starling.ErrInit, Message: "the function's initialisation failed without a readable reason"}
	}
	e := starling.Errorf(starling.Failed, "init function", "%s", f.Message)
	return e.With(f.Type)
}

// phase runs one exchange before the calls, bounded by ctx.
func (c *Conn) phase(ctx context.Context, exchange func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	deadline, _ := ctx.Deadline() // none is the zero time, which is none to the socket too
	c.nc.SetDeadline(deadline)
	c.lane.deadline, c.lane.armed = deadline, deadline
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	c.in.open()
	err := exchange()
	clean := c.in.close()
	stop()
	c.lane.armed = time.Time{}
	if err == nil && !clean {
		err = fmt.Errorf("%w: bytes after the end", errProtocol)
	}
	if err == nil {
		return nil
	}
	c.broken = phaseError(ctx, err)
	return c.broken
}

func phaseError(ctx context.Context, err error) error {
	const op = "init function"
	switch {
	case starling.KindOf(err) == starling.Failed:
		return err
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return starling.Errorf(starling.Failed, op, "the initialisation did not end in time: do less at import").With(starling.ErrInitTimeout)
	case errors.Is(err, errProtocol):
		return starling.Errorf(starling.Failed, op, "%w", err).With(starling.ErrProtocol)
	}
	return starling.Errorf(starling.Failed, op, "the runtime exited before it was ready: %w", err).With(starling.ErrExit)
}

// Err says why no further call may be made; nil while the instance is usable.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// Close ends the connection; a call in flight ends with ErrExit.
func (c *Conn) Close() error { return c.nc.Close() }

// Invoke carries out one call on the goroutine of its caller.
func (c *Conn) Invoke(inv *starling.Invocation, sink starling.Sink) starling.Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrExit}
	}
	now := time.Now()
	deadline := inv.Deadline
	if deadline.IsZero() {
		deadline = now.Add(starling.CallTimeMax)
	}
	c.lane.until(deadline.Add(Grace))
	c.in.open()
	err := c.send(inv, uint32(max(0, deadline.Sub(now).Milliseconds())))
	var out starling.Outcome
	if err == nil {
		out, err = c.receive(inv, sink)
	}
	clean := c.in.close()
	switch {
	case err != nil:
		c.broken = err
		out = failed(err)
	case !clean:
		c.broken = fmt.Errorf("%w: bytes after the end of an answer", errProtocol)
	}
	return out
}

func failed(err error) starling.Outcome {
	out := starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrExit}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		out.ErrorType = starling.ErrTimedOut
	case errors.Is(err, errProtocol):
		out.ErrorType = starling.ErrProtocol
	case starling.ReasonOf(err) != "":
		out.ErrorType = starling.ReasonOf(err)
	}
	return out
}

// send writes the call. One that fits the buffer, which is not in use for reading yet, is written and its answer's
// beginning read in one exchange.
func (c *Conn) send(inv *starling.Invocation, remaining uint32) error {
	head, first := appendCall(c.in.buf[:0], inv, remaining)
	payload := inv.Payload
	if len(payload) == first && len(head)+first <= bufferSize {
		n, err := c.lane.exchange(append(head, payload...), c.in.buf[:])
		c.in.w = n
		return err
	}
	if _, err := c.lane.Write(head); err != nil {
		return err
	}
	for {
		if _, err := c.lane.Write(payload[:first]); err != nil {
			return err
		}
		payload = payload[first:]
		if len(payload) == 0 {
			return nil
		}
		first = min(len(payload), FrameMax-1)
		if _, err := c.lane.Write(putHeader(c.in.buf[:0], typeMore, first)); err != nil {
			return err
		}
	}
}

// word returns b as a string without allocating for the few types that a function uses.
func (c *Conn) word(b []byte) string {
	if s, ok := c.types[string(b)]; ok {
		return s
	}
	s := string(bytes.ToValidUTF8(b, []byte("?")))
	if len(c.types) < typesMax {
		c.types[string(b)] = s
	}
	return s
}
