package tunnel

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/splice"
)

const (
	askTime    = 5 * time.Second        // for a manager's grant
	againTime  = 300 * time.Millisecond // after a refusal until the next question
	lastMinute = time.Minute            // of a grant's life in which it is not shown any more
	limitTime  = 5 * time.Millisecond   // after a limit was met, in which an instance's further flows are refused without asking
)

// A Way is where the flows of one attachment go.
type Way struct {
	tunnel *Tunnel
	as     starling.Attachment

	mu      sync.Mutex // guards the rest; a leaf
	raw     []byte     // the newest grant
	got     time.Time
	asking  chan struct{} // closed when the question under way is answered; nil without one
	err     error         // of the last question
	asked   time.Time
	through bool
	limited time.Time // when a gateway last said that a limit is reached
}

// Way returns where the flows of an attachment go, and asks for its grant at once.
func (t *Tunnel) Way(as starling.Attachment) *Way {
	w := &Way{tunnel: t, as: as}
	w.mu.Lock()
	w.ask()
	w.mu.Unlock()
	return w
}

// Ended counts why a flow of the code inside is over.
func (w *Way) Ended(why splice.End) { w.tunnel.m.ended[why].Inc() }

// Close ends the way; no flow is begun after it.
func (w *Way) Close() {
	w.mu.Lock()
	w.through = true
	w.mu.Unlock()
}

// ask begins to ask for a grant unless somebody asks already. The caller holds mu.
func (w *Way) ask() {
	if w.asking != nil {
		return
	}
	done, old := make(chan struct{}), w.raw
	if !w.tunnel.group.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		var raw []byte
		err := error(nil)
		if old != nil {
			raw, err = w.tunnel.cfg.Grants.Renew(ctx, old)
		} else {
			raw, err = w.tunnel.cfg.Grants.Grant(ctx, w.as.Version, w.as.Instance)
		}
		if err != nil {
			w.tunnel.cfg.Log.Warn("no grant for an instance's network", "instance", w.as.Instance, "function", w.as.Function, "network", w.as.Network, "error", err)
		}
		w.tunnel.m.grants.Inc()
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.raw, w.got = raw, time.Now()
		}
		w.err, w.asked, w.asking = err, time.Now(), nil
		close(done)
	}) {
		w.err = starling.Errorf(starling.Unavailable, "ask for grant", "the host is closing")
		return
	}
	w.asking = done
}

// grant returns one that is good for a while yet.
func (w *Way) grant(ctx context.Context) ([]byte, error) {
	for {
		w.mu.Lock()
		age := time.Since(w.got)
		switch {
		case w.through:
			w.mu.Unlock()
			return nil, starling.Errorf(starling.Unavailable, "open flow", "the instance ends")
		case w.raw != nil && age < grant.Life-lastMinute:
			if age > grant.Life/2 && time.Since(w.asked) > againTime {
				w.ask()
			}
			raw := w.raw
			w.mu.Unlock()
			return raw, nil
		case w.asking == nil && w.err != nil && time.Since(w.asked) < againTime:
			err := w.err
			w.mu.Unlock()
			return nil, err
		}
		w.ask()
		done, err := w.asking, w.err
		w.mu.Unlock()
		if done == nil {
			return nil, err
		}
		select {
		case <-done:
		case <-ctx.Done():
			return nil, starling.Errorf(starling.Timeout, "open flow", "no grant in time")
		}
	}
}

// Open begins a flow and returns when a gateway has let it through. Refused by it the error is Denied; Unavailable when none is
// there.
func (w *Way) Open(ctx context.Context, kind header.Kind, to netip.AddrPort) (transport.Stream, error) {
	began := time.Now()
	if err := w.within(began); err != nil {
		w.tunnel.m.refuse(header.Limit)
		return nil, err
	}
	raw, err := w.grant(ctx)
	if err != nil {
		w.tunnel.m.failed[failedGrant].Inc()
		return nil, err
	}
	s, answer, err := w.tunnel.open(ctx, w.as.Ref(), header.Header{Kind: kind, Grant: raw, To: to})
	if err != nil {
		w.tunnel.m.fail(err)
		return nil, err
	}
	if answer == header.Limit {
		w.mu.Lock()
		w.limited = time.Now()
		w.mu.Unlock()
	}
	if answer != header.Open {
		w.tunnel.m.refuse(answer)
		return nil, refusal(answer)
	}
	w.tunnel.m.flows.Inc()
	w.tunnel.m.opening.UpdateDuration(began)
	return s, nil
}

// within refuses what a gateway would refuse: an instance that begins flows far faster than it may costs its host and the gateway
// little, and others nothing that they notice.
func (w *Way) within(now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.limited) < limitTime {
		return refusal(header.Limit)
	}
	return nil
}

func refusal(a header.Answer) error {
	return starling.Errorf(starling.Denied, "open flow", "the gateway answers: %s", a).With(a.String())
}
