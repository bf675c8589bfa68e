package vmpool

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"starling"
)

// fillerTick is how often a full shelf is looked over for sandboxes that died or grew old.
const fillerTick = time.Second

// A shelf is the stock of one runtime. Its filler is its only goroutine.
type shelf struct {
	pool *Pool
	rt   starling.Runtime
	wake chan struct{} // capacity 1: the stock or the wish changed
	cost atomic.Int64  // ns of a processor that the last refill took

	mu       sync.Mutex // guards what follows; a leaf
	size     int
	stock    []*warm
	template Template
	wishes   []chan *warm // of starts that wait, in order; each has room for one
	closed   bool
}

func newShelf(p *Pool, rt starling.Runtime, size int) *shelf {
	return &shelf{pool: p, rt: rt, size: max(size, 0), wake: make(chan struct{}, 1)}
}

func (s *shelf) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *shelf) ready() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stock)
}

func (s *shelf) resize(n int) {
	s.mu.Lock()
	s.size = max(n, 0)
	s.mu.Unlock()
	s.nudge()
}

// take returns a warm sandbox, or clones one when there is none.
func (s *shelf) take(ctx context.Context) (*warm, error) {
	for {
		s.mu.Lock()
		n := len(s.stock)
		if n == 0 {
			s.mu.Unlock()
			break
		}
		w := s.stock[n-1]
		s.stock = s.stock[:n-1]
		low := 2*len(s.stock) < s.size // otherwise the filler waits for the end of the start anyway
		s.mu.Unlock()
		if low {
			s.nudge()
		}
		if w.dead() {
			w.close(s.pool.cfg.Log)
			continue
		}
		s.pool.meters.warm.Inc()
		return w, nil
	}
	s.pool.meters.cold.Inc()
	s.pool.urgent.Add(1)
	defer s.pool.urgent.Add(-1)
	w, err := s.wish(ctx)
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "take sandbox", "no %s sandbox can be made on this host: %w", s.rt, err).With(starling.ErrSandboxFailure)
	}
	return w, nil
}

// wish waits for whatever comes first: a sandbox that the filler was making already, or leave to make one. Leave is
// not that of the fillers, whose clones are slow on a busy machine.
func (s *shelf) wish(ctx context.Context) (*warm, error) {
	given := make(chan *warm, 1)
	s.mu.Lock()
	s.wishes = append(s.wishes, given)
	s.mu.Unlock()
	select {
	case w := <-given:
		return w, nil
	case s.pool.rush <- struct{}{}:
		defer func() { <-s.pool.rush }()
	case <-ctx.Done():
	}
	if w := s.unwish(given); w != nil {
		if ctx.Err() == nil {
			return w, nil
		}
		s.put(w)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.make(ctx, false)
}

// unwish takes a wish back, and returns what it was given just before.
func (s *shelf) unwish(given chan *warm) *warm {
	s.mu.Lock()
	s.wishes = slices.DeleteFunc(s.wishes, func(c chan *warm) bool { return c == given })
	s.mu.Unlock()
	select {
	case w := <-given:
		return w
	default:
		return nil
	}
}

// make clones one, building the template first when there is none yet; behind all others when nobody waits for it.
func (s *shelf) make(ctx context.Context, behind bool) (*warm, error) {
	s.mu.Lock()
	t := s.template
	s.mu.Unlock()
	var err error
	if t == nil {
		if t, err = s.build(ctx); err != nil {
			return nil, err
		}
	}
	clone := t.Clone
	if b, ok := t.(BehindCloner); ok && behind {
		clone = b.CloneBehind
	}
	w, err := s.pool.clone(ctx, clone, s.rt)
	if err != nil {
		s.pool.meters.cloneFailed.Inc()
	}
	return w, err
}

// build makes the template. Two may be built at once; the second is thrown away.
func (s *shelf) build(ctx context.Context) (Template, error) {
	t, err := s.pool.cfg.Driver.BuildTemplate(ctx, TemplateSpec{Runtime: s.rt})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	spare := t
	if s.template == nil && !s.closed {
		s.template, spare = t, nil
	}
	t = s.template
	s.mu.Unlock()
	if spare != nil {
		if err := spare.Close(); err != nil {
			return nil, err
		}
	}
	if t == nil {
		return nil, starling.Errorf(starling.Unavailable, "build template", "the host is closing")
	}
	return t, nil
}

// fill keeps the shelf at its size until ctx ends.
func (s *shelf) fill(ctx context.Context) {
	tick := time.NewTicker(fillerTick)
	defer tick.Stop()
	failures := 0
	for ctx.Err() == nil {
		s.prune()
		if !s.wants() {
			s.wait(ctx, tick)
			continue
		}
		w, err := s.refill(ctx)
		if err == nil {
			failures = 0
			s.put(w)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		pause := s.pool.backoff(failures)
		s.pool.cfg.Log.Warn("fill pool", "runtime", s.rt, "failures", failures, "pause", pause, "error", err)
		sleep(ctx, pause)
	}
}

// refill clones one behind all others, one of at most CloneMax over all shelves.
func (s *shelf) refill(ctx context.Context) (*warm, error) {
	select {
	case s.pool.slots <- struct{}{}:
		defer func() { <-s.pool.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w, err := s.make(ctx, true)
	if err == nil {
		if stats, err := w.sandbox.Stats(); err == nil { // otherwise what is known stands: it is an estimate
			s.cost.Store(int64(stats.CPU))
		}
	}
	return w, err
}

func (s *shelf) wait(ctx context.Context, tick *time.Ticker) {
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-tick.C:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// wants reports whether to clone now. Refilling waits for starts under way and their first calls, which need the same cores
// and kernel locks: always when one of them waits for a clone itself, otherwise only while half of the stock is left.
func (s *shelf) wants() bool {
	if s.pool.urgent.Load() > 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stock) < s.size && (s.pool.isCalm() || 2*len(s.stock) < s.size)
}

// put gives w to the start that waits longest, or adds it to the stock: the oldest is taken last and pruned first.
func (s *shelf) put(w *warm) {
	s.mu.Lock()
	switch {
	case s.closed:
	case len(s.wishes) > 0:
		s.wishes[0] <- w
		s.wishes = s.wishes[1:]
		w = nil
	default:
		s.stock = append(s.stock, w)
		w = nil
	}
	s.mu.Unlock()
	if w != nil {
		w.close(s.pool.cfg.Log)
	}
}

// prune destroys what died, grew old or is too many.
func (s *shelf) prune() {
	now := time.Now()
	s.mu.Lock()
	var bad []*warm
	keep := s.stock[:0]
	for n, w := range s.stock {
		if w.dead() || now.Sub(w.born) > s.pool.cfg.LifeMax || len(s.stock)-n > s.size {
			bad = append(bad, w)
		} else {
			keep = append(keep, w)
		}
	}
	clear(s.stock[len(keep):])
	s.stock = keep
	s.mu.Unlock()
	for _, w := range bad {
		w.close(s.pool.cfg.Log)
	}
}

func (s *shelf) close() error {
	s.mu.Lock()
	s.closed = true
	stock, t := s.stock, s.template
	s.stock = nil
	s.mu.Unlock()
	for _, w := range stock {
		w.close(s.pool.cfg.Log)
	}
	if t == nil {
		return nil
	}
	return t.Close()
}
