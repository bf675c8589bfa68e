package tunnel

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/resume"
	"starling/vpcproxy/splice"
)

// A flow is a stream that counts on its line until it is given up or both of its directions have ended.
type flow struct {
	transport.Stream
	line *line
	ends atomic.Int32 // directions that have ended well
	once sync.Once

	token resume.Token // zero when it ends with its gateway
}

// Read is as the stream's.
func (f *flow) Read(p []byte) (int, error) {
	n, err := f.Stream.Read(p)
	if err == io.EOF {
		f.end()
	}
	return n, err
}

// CloseWrite is as the stream's.
func (f *flow) CloseWrite() error {
	err := f.Stream.CloseWrite()
	f.end()
	return err
}

func (f *flow) end() {
	if f.ends.Add(1) == 2 {
		f.once.Do(f.line.release)
	}
}

// Cancel abandons the stream.
func (f *flow) Cancel() {
	f.Stream.Cancel()
	f.once.Do(f.line.release)
}

// begin reads what a gateway says after its answer.
func (f *flow) begin(kind header.Kind) (transport.Stream, error) {
	if kind != header.TCP || !f.line.watched {
		_ = f.SetReadDeadline(time.Time{}) // fails on a stream that has ended, which the reading says
		return f, nil
	}
	if _, err := io.ReadFull(f, f.token[:]); err != nil {
		f.Cancel()
		return nil, err
	}
	_ = f.SetReadDeadline(time.Time{})
	return movable{f}, nil
}

// A movable is a flow that can go on at another gateway.
type movable struct{ *flow }

var _ splice.Movable = movable{}

// Moving ends when the gateway asks for it.
func (f movable) Moving() context.Context {
	f.line.owner.mu.Lock()
	defer f.line.owner.mu.Unlock()
	return f.line.moving
}

// Resume goes on with the flow at the gateway that the present one named.
func (f movable) Resume(ctx context.Context, sent uint64) (transport.Stream, uint64, error) {
	t := f.line.owner
	t.mu.Lock()
	successor := f.line.successor
	t.mu.Unlock()
	next, theirs, err := t.resume(ctx, f, successor, sent)
	if err != nil {
		t.m.stayed.Inc()
		return nil, 0, err
	}
	t.m.moved.Inc()
	return next, theirs, nil
}

func (t *Tunnel) resume(ctx context.Context, f movable, successor starling.NodeID, sent uint64) (transport.Stream, uint64, error) {
	addr := ""
	for _, g := range t.cfg.Gateways() {
		if g.ID == successor {
			addr = g.Addr
		}
	}
	if addr == "" {
		return nil, 0, starling.Errorf(starling.Unavailable, "resume flow", "%s is no living gateway", successor)
	}
	head := header.Append(nil, header.Header{Version: header.Movable, Kind: header.Resume, From: f.line.key.gateway, Token: f.token, Sent: sent})
	next, answer, err := t.try(ctx, lineKey{network: f.line.key.network, gateway: successor}, addr, false, func(bool) []byte { return head })
	if err != nil {
		return nil, 0, err
	}
	if answer != header.Open {
		return nil, 0, refusal(answer)
	}
	theirs, err := header.ReadSent(next)
	if err != nil {
		next.Cancel()
		return nil, 0, err
	}
	_ = next.SetReadDeadline(time.Time{}) // fails on a stream that has ended, which the reading says
	next.token = f.token
	return movable{next}, theirs, nil
}
