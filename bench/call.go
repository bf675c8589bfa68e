package bench

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"starling"
	"starling/frontend/client"
)

// Calls is a target whose calls a Starling client makes: over QUIC, or when every call is another function.
// It also gathers the phases that the server tells with each answer. All callers share it.
type Calls struct {
	Invoke func(ctx context.Context) (*client.Result, error)

	mu     sync.Mutex // guards phases; a leaf
	phases map[string]*hdrhistogram.Histogram
}

// Dial returns a caller; the connection is the client's.
func (c *Calls) Dial(context.Context) (Caller, error) { return oneCaller{c}, nil }

type oneCaller struct{ calls *Calls }

// Call makes one call.
func (o oneCaller) Call(now time.Time, timeout time.Duration) error {
	ctx, cancel := context.WithDeadline(context.Background(), now.Add(timeout))
	defer cancel()
	r, err := o.calls.Invoke(ctx)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return &Failure{Kind: starling.KindOf(err).String(), Err: err}
	}
	o.calls.note(r.Timing)
	return nil
}

// Close does nothing: the connection is the client's.
func (o oneCaller) Close() error { return nil }

func (c *Calls) note(timing map[string]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, d := range timing {
		h := c.phases[name]
		if h == nil {
			if c.phases == nil {
				c.phases = map[string]*hdrhistogram.Histogram{}
			}
			if len(c.phases) == 16 {
				return // a server that invents names must not fill our memory
			}
			h = histogram()
			c.phases[name] = h
		}
		record(h, d)
	}
}

// Phases are the distributions of what the server told, since the last time they were asked for.
func (c *Calls) Phases() map[string]Latency {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]Latency{}
	for name, h := range c.phases {
		out[name] = latencyOf(h)
	}
	c.phases = nil
	return out
}
