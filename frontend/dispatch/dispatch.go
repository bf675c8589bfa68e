// Package dispatch brings a call to an instance. It keeps the leases that partitions granted to this
// frontend, so that a warm call asks nobody; a call that finds no free slot waits for a grant or for a slot
// that another call leaves, whichever comes first. Every call ends in exactly one answer.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/frontend/leases"
	"starling/internal/run"
	"starling/sched/flow"
)

// shardCount says into how many parts the cache is cut, so that calls of different functions meet in no lock.
const shardCount = 64

// ReasonNotStarted is the reason of an Unavailable error of an Invoker that knows that the call did not
// start: the host could not be reached at all. Such a call is placed again.
const ReasonNotStarted = "NotStarted"

// An Invoker hands one call to the host of a lease and returns when the call ended.
//
// Its errors say whether the function may have run. Moved (the host does not know the instance or the lease
// is of a past epoch), Overloaded (the slots of the lease are busy) and Unavailable with ReasonNotStarted
// mean that it surely did not; after any other error it may have. Overloaded with flow.ReasonOverload is the last word: the
// host is crowded, and this account has its share of it at work.
type Invoker interface {
	Invoke(ctx context.Context, l *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error)
}

// A Topology is the newest partition map this node knows; cluster.View is one.
type Topology interface {
	Map() *partmap.Map        // nil before the first one; never changed after it was returned
	Changed() <-chan struct{} // closed when Map, or who is alive, has become another
}

// Config says with whom a dispatcher works and what it may hold.
type Config struct {
	Node     starling.NodeID // this node; leases on it go to Local
	Post     actors.Post
	Topology Topology
	Alive    func(starling.NodeID) bool // whether a host is not known to be dead or gone; asked when Topology changes. nil: nobody knows
	Lease    func() time.Time           // when the node lease ends: calls begin until starling.NodeLeaseGuard before that. nil: always
	Local    Invoker                    // nil when this node is no host
	Remote   Invoker
	Log      *slog.Logger

	WaitingMax int           // calls without a lease over all versions; 0 means 100,000
	QueueAge   time.Duration // longest wait of one call; 0 means starling.QueueAgeMax
}

// A Dispatcher is the lease cache of one frontend. Create it with New, register it as the frontend's
// actors.Receiver, Open it before the first Invoke, and Close it after the last one returned. It has one goroutine.
type Dispatcher struct {
	cfg     Config
	base    time.Time // times inside are durations since it, by the monotonic clock
	cache   *leases.Cache
	waiting atomic.Int64
	waiters sync.Pool // of *waiter, for their channels
	closed  atomic.Bool
	keeper  keeper
	group   *run.Group
	metrics *numbers
}

var _ actors.Receiver = (*Dispatcher)(nil)

// New returns a dispatcher that does nothing yet.
func New(cfg Config) *Dispatcher {
	if cfg.WaitingMax == 0 {
		cfg.WaitingMax = 100_000
	}
	if cfg.QueueAge == 0 {
		cfg.QueueAge = starling.QueueAgeMax
	}
	d := &Dispatcher{cfg: cfg, base: time.Now()}
	// A restarted frontend must not be taken for its former life: calls begin at a random place.
	c := leases.Config{Shards: shardCount, Lock: func() leases.Locker { return &sync.Mutex{} }, Map: func() *partmap.Map { return d.cfg.Topology.Map() },
		Alive: cfg.Alive, Send: d.send, FirstCall: uint64(rand.Uint32()) << 24}
	if cfg.Lease != nil {
		c.NodeLease = func() time.Duration { return cfg.Lease().Sub(d.base) - starling.NodeLeaseGuard }
	}
	d.cache = leases.New(c)
	d.keeper.init(d)
	d.metrics = newNumbers(d)
	return d
}

// send carries out what the cache decided.
func (d *Dispatcher) send(to wire.Address, m wire.Message) {
	if m.Kind() == wire.KindAcquire {
		d.metrics.acquires.Inc()
	}
	d.cfg.Post.Send(to, m)
}

// Open starts the goroutine that renews, returns and asks again.
func (d *Dispatcher) Open(ctx context.Context) {
	d.group = run.New(context.WithoutCancel(ctx)) // Close ends it, in its turn: not whatever ends ctx
	d.group.Go(d.keeper.run)
}

// Close ends every waiting call with Unavailable, returns every lease and waits for the goroutine.
func (d *Dispatcher) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	if d.group != nil {
		d.group.Stop()
	}
	d.cache.FailAll(d.now(), starling.Errorf(starling.Unavailable, "invoke function", "this frontend is closing: call another one"))
	d.cache.ReturnAll(d.now())
	return nil
}

// now is the monotonic time since the dispatcher was made.
func (d *Dispatcher) now() time.Duration { return time.Since(d.base) }

// Invoke brings inv to an instance of v and the answer to sink. ctx bounds the wait for a slot; a call that
// runs is ended by its deadline only. inv.Deadline is the caller's own and may be zero; Invoke sets it to the
// function's deadline once there is a slot, so that waiting for one does not shorten the run. inv.Version is
// set here.
//
// The error is Overloaded or Unavailable when the call did not run and may be tried again, Failed when the
// function cannot be started, Timeout when the deadline passed before a slot came, and Unavailable with
// reason "HostLost" when the host was lost during the call. A call that surely did not start is placed again
// without the caller noticing; a call that may have run never is.
func (d *Dispatcher) Invoke(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error) {
	inv.Version = v.ID
	d.metrics.calls.Inc()
	began := d.now()
	l := d.cache.Take(began, v.ID)
	if l == nil {
		return d.invokeCold(ctx, v, inv, sink, began)
	}
	d.metrics.hits.Inc()
	limit := inv.Deadline
	out, err := d.run(v, l, inv, sink, limit, began)
	if err == nil {
		return out, starling.Phases{}, nil
	}
	if !didNotStart(err) {
		return out, starling.Phases{}, d.failed(err)
	}
	inv.Deadline = limit
	return d.invokeCold(ctx, v, inv, sink, began)
}

// invokeCold waits for a lease, runs the call, and does both again while the call surely did not start.
func (d *Dispatcher) invokeCold(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink, began time.Duration) (starling.Outcome, starling.Phases, error) {
	limit := inv.Deadline
	giveUp := began + d.cfg.QueueAge
	byCaller := false
	if !limit.IsZero() {
		if at := limit.Sub(d.base); at < giveUp {
			giveUp, byCaller = at, true
		}
	}
	for attempt := 0; ; attempt++ {
		if err := pause(ctx, attempt, giveUp-d.now()); err != nil {
			return starling.Outcome{}, starling.Phases{}, d.failed(gone(err))
		}
		l, phases, err := d.wait(ctx, v, began, giveUp, byCaller)
		if err != nil {
			return starling.Outcome{}, starling.Phases{}, d.failed(err)
		}
		out, err := d.run(v, l, inv, sink, limit, d.now())
		if err == nil {
			return out, phases, nil
		}
		if !didNotStart(err) {
			return out, phases, d.failed(err)
		}
		d.metrics.again.Inc()
	}
}

// run makes one attempt with a slot of l and gives the slot back.
func (d *Dispatcher) run(v *starling.Version, l *leases.Lease, inv *starling.Invocation, sink starling.Sink, limit time.Time, start time.Duration) (starling.Outcome, error) {
	inv.Deadline = d.base.Add(start + v.Timeout())
	if !limit.IsZero() && limit.Before(inv.Deadline) {
		inv.Deadline = limit
	}
	via := d.cfg.Remote
	if l.Host == d.cfg.Node && d.cfg.Local != nil {
		via = d.cfg.Local
	}
	// Not the caller's context: a call that runs, runs on when its caller leaves, and its slot is busy until it ends.
	out, err := via.Invoke(d.group.Context(), &l.Lease, inv, sink)
	// After an unhandled failure the host destroys the instance; an error says that it is not where we thought.
	if err == nil {
		d.put(l, out.Status == starling.Unhandled, start)
		return out, nil
	}
	if crowded(err) { // the lease is as good as before
		d.put(l, false, start)
		return out, errCrowded
	}
	kind := starling.KindOf(err)
	d.put(l, kind != starling.Invalid && kind != starling.TooLarge, start)
	if kind == starling.Unavailable {
		d.cache.HostFailed(d.now(), l.Host)
		d.keeper.hurry()
	}
	if kind == starling.Unavailable && !didNotStart(err) {
		err = starling.Errorf(starling.Unavailable, "invoke function", "the host was lost during the call; the function may have run: %w", err).With("HostLost")
	}
	return out, err
}

// errCrowded is what a caller hears whose account has its share of a crowded host at work. Asking again at once, here or
// at another instance, would be more work for who has too much.
var errCrowded = starling.Errorf(starling.Overloaded, "invoke function",
	"the host is overloaded and this account has its fair share of it at work: retry after a pause").With(flow.ReasonOverload).RetryAfter(time.Second)

// crowded reports whether a host refused a call for its account's share.
func crowded(err error) bool { return starling.ReasonOf(err) == flow.ReasonOverload }

// put gives the slot of a call back.
func (d *Dispatcher) put(l *leases.Lease, broken bool, start time.Duration) {
	if d.cache.Put(d.now(), l, broken, start) {
		d.keeper.hurry()
	}
}

// didNotStart reports whether an Invoker's error promises that the function did not run, so that the call may be placed again.
func didNotStart(err error) bool {
	var e *starling.Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Kind == starling.Moved || e.Kind == starling.Overloaded && !crowded(err) || e.Kind == starling.Unavailable && e.Reason == ReasonNotStarted
}

// failed counts an error that leaves Invoke.
func (d *Dispatcher) failed(err error) error {
	d.metrics.failure(starling.KindOf(err))
	return err
}

// gone is the error of a call whose caller stopped waiting.
func gone(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return starling.Errorf(starling.Timeout, "invoke function", "the deadline passed before an instance was free: %w", err)
	}
	return starling.Errorf(starling.Unavailable, "invoke function", "the caller went away before the call started: %w", err).With("CallerGone")
}

// pause spaces the attempts of one call: none before the first two, then from 10 ms, doubling up to 250 ms,
// with jitter, and never beyond what is left.
func pause(ctx context.Context, attempt int, left time.Duration) error {
	if attempt < 2 {
		return nil
	}
	p := min(10*time.Millisecond<<min(attempt-2, 5), 250*time.Millisecond)
	p = max(0, min(p/2+rand.N(p/2), left))
	t := time.NewTimer(p)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait gets a slot of v: one that is free by now, one that another call leaves, or a granted one. giveUp is
// when it ends in an error instead; byCaller says that the caller's deadline set it.
func (d *Dispatcher) wait(ctx context.Context, v *starling.Version, began, giveUp time.Duration, byCaller bool) (*leases.Lease, starling.Phases, error) {
	if d.waiting.Add(1) > int64(d.cfg.WaitingMax) {
		d.waiting.Add(-1)
		return nil, starling.Phases{}, starling.Errorf(starling.Overloaded, "invoke function",
			"this frontend holds %d waiting calls, its limit: retry after a pause", d.cfg.WaitingMax).With("NodeOverload").RetryAfter(time.Second)
	}
	defer d.waiting.Add(-1)
	w := d.newWaiter()
	w.Key = v.Key() | starling.Key64(rand.Uint32())
	w.GiveUp, w.ByCaller = giveUp, byCaller
	l, err := d.cache.Wait(d.now(), v.ID, &w.Waiter)
	if l != nil || err != nil {
		d.freeWaiter(w)
		return l, starling.Phases{}, err
	}
	d.keeper.wake()
	select {
	case <-w.ready:
	case <-ctx.Done():
		if d.cache.Leave(d.now(), &w.Waiter) { // otherwise the answer came at the same moment: use it
			d.freeWaiter(w)
			return nil, starling.Phases{}, gone(ctx.Err())
		}
		<-w.ready
	}
	d.metrics.waits.Update((d.now() - began).Seconds())
	l, phases, err := w.Lease, w.Phases, w.Err
	d.freeWaiter(w)
	return l, phases, err
}

// Receive takes the answers of partitions. It is safe for concurrent use and does not block.
func (d *Dispatcher) Receive(from starling.NodeID, batch []wire.Message) {
	urgent := false
	for _, m := range batch {
		urgent = d.cache.Receive(d.now(), from, m) || urgent
	}
	if urgent {
		d.keeper.hurry()
	} else {
		d.keeper.wake()
	}
}

// A waiter is one call without a slot.
type waiter struct {
	leases.Waiter
	ready chan struct{} // of capacity 1; a value in it is the answer's arrival
}

func (d *Dispatcher) newWaiter() *waiter {
	if w, ok := d.waiters.Get().(*waiter); ok {
		return w
	}
	w := &waiter{ready: make(chan struct{}, 1)}
	w.Ready = func() { w.ready <- struct{}{} }
	return w
}

func (d *Dispatcher) freeWaiter(w *waiter) {
	w.Waiter = leases.Waiter{Ready: w.Ready}
	d.waiters.Put(w)
}
