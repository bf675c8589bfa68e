package sim

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/frontend/leases"
	"starling/frontend/overload"
	"starling/sim/load"
)

// A frontend is the real lease cache around calls that are objects instead of goroutines.
type frontend struct {
	n       *node
	cache   *leases.Cache
	looking bool
	m       *machine       // nil where CPU has no bound
	gate    *overload.Gate // nil: everybody is let in
	open    int            // calls that were let in and have no answer
}

func newFrontend(n *node) *frontend {
	f := &frontend{n: n}
	w := n.w
	c := leases.Config{Send: n.send, Map: func() *partmap.Map { return n.view.topology.Map }, Alive: f.alive, FirstCall: uint64(w.rng.Uint32()) << 24}
	if !w.cfg.Static {
		c.NodeLease = func() time.Duration { return n.leaseUntil() - starling.NodeLeaseGuard }
	}
	f.cache = leases.New(c)
	return f
}

// alive reports whether a host is not known to be dead; before the first word of a leader nobody knows.
func (f *frontend) alive(id starling.NodeID) bool {
	v := &f.n.view
	if f.n.w.cfg.Static || len(v.alive) == 0 {
		return true
	}
	for _, n := range v.alive {
		if n == id {
			return true
		}
	}
	return false
}

func (f *frontend) receive(from starling.NodeID, m wire.Message) {
	if f.cache.Receive(f.n.w.now, from, m) {
		f.cache.Collect(f.n.w.now)
	}
	f.look()
}

// look has the cache looked after every leases.Tick while it holds anything.
func (f *frontend) look() {
	if f.looking || !f.cache.Busy() {
		return
	}
	f.looking = true
	f.n.after(leases.Tick, func() {
		f.looking = false
		f.cache.Look(f.n.w.now)
		f.look()
	})
}

// A phase is what happens to a call next.
type phase uint8

const (
	phaseWait   phase = iota // at its frontend: look for a slot
	phaseDoor                // at its frontend: it was read
	phaseReady               // at its frontend: its wait is over
	phaseReach               // at the host: begin
	phaseRun                 // at the host: the code has ended
	phaseAnswer              // at its frontend: the answer of the host
)

// A call is one call from its arrival to its answer.
type call struct {
	w       *World
	f       *function
	front   *frontend
	host    *host
	exec    time.Duration
	began   time.Duration
	giveUp  time.Duration
	start   time.Duration // when it took its slot
	lease   *leases.Lease
	wait    leases.Waiter
	on      *instance
	err     error
	broken  bool // the code ends with its instance
	next    *call
	prev    *call
	id      uint64
	attempt int
	answers int
	phase   phase
	life    int // of the node of the phase
	atHost  bool
	isWarm  bool
	isIn    bool          // counts in its frontend's open
	slept   time.Duration // pauses of the world's nodes when it began
}

// A callList is the calls without an answer in the order of their arrival.
type callList struct {
	first, last *call
	n           int
}

func (l *callList) push(c *call) {
	c.prev, c.next = l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
	l.n++
}

func (l *callList) remove(c *call) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	l.n--
}

// arrive lets one caller call. It chooses a frontend at random, and one that runs.
func (w *World) arrive(l load.Call) {
	w.calls++
	var n *node
	f := w.functions[l.Function]
	switch {
	case w.cfg.CPU.Fixed:
		n = w.fronts[f.account%len(w.fronts)]
	case w.cfg.Static:
		w.turn = (w.turn + 1) % len(w.fronts)
		n = w.fronts[w.turn]
	default:
		n = w.fronts[w.rng.IntN(len(w.fronts))]
	}
	if !n.running() {
		w.result.end(f, endConnection, 0, 0, false)
		return
	}
	var c *call
	if k := len(w.freeCalls); k > 0 {
		c, w.freeCalls = w.freeCalls[k-1], w.freeCalls[:k-1]
		*c = call{wait: leases.Waiter{Ready: c.wait.Ready}}
	} else {
		c = &call{}
		c.wait.Ready = func() { c.later(0, phaseReady, c.front.n) }
	}
	c.w, c.f, c.front, c.exec, c.began, c.giveUp, c.id = w, f, n.front, l.Exec, w.now, w.now+w.cfg.QueueAge, w.calls
	c.broken = w.faulty() && w.rng.Float64() < w.cfg.Faults.CallFails
	c.slept = w.checks.slept()
	w.open.push(c)
	if w.cfg.Trace != nil {
		w.trace("%v call %d of %s", n.id, c.id, f.version.Function)
	}
	if n.front.m != nil {
		c.phase, c.life = phaseDoor, n.life
		n.front.m.add(w.cfg.CPU.Door, c)
		return
	}
	c.enter()
}

// door is the end of reading a call: its frontend takes it or refuses it.
func (c *call) door() {
	if g := c.front.gate; g != nil {
		if err := g.Pass(c.f.version.Function); err != nil {
			c.refused(err)
			return
		}
	}
	c.front.open++
	c.isIn = true
	c.enter()
}

// enter has a call look for its slot.
func (c *call) enter() {
	if c.lease = c.front.cache.Take(c.w.now, c.f.version.ID); c.lease != nil {
		c.isWarm = true
		c.invoke()
	} else {
		c.look()
	}
	c.front.look()
}

// later lets the next phase of c happen on n after d.
func (c *call) later(d time.Duration, p phase, n *node) {
	c.phase, c.life = p, n.life
	c.w.at(d, c)
}

// run lets the phase happen, unless its node died: then the crash has ended the call, or will.
func (c *call) run(w *World) {
	n := c.front.n
	if c.phase == phaseReach || c.phase == phaseRun {
		n = c.host.n
	}
	switch {
	case c.answers > 0 || !n.up || n.life != c.life:
		return
	case n.paused:
		n.backlog = append(n.backlog, c)
		return
	}
	switch c.phase {
	case phaseWait:
		c.look()
	case phaseDoor:
		c.door()
	case phaseReady:
		c.granted()
	case phaseReach:
		c.reach()
	case phaseRun:
		c.ran()
	case phaseAnswer:
		c.answered()
	}
}

// look waits for a slot; the attempts of one call are spaced from the third on.
func (c *call) look() {
	w := c.w
	c.wait = leases.Waiter{Ready: c.wait.Ready, GiveUp: c.giveUp, Key: c.f.version.Key() | starling.Key64(w.rng.Uint32())}
	l, err := c.front.cache.Wait(w.now, c.f.version.ID, &c.wait)
	switch {
	case err != nil:
		c.refused(err)
	case l != nil:
		c.lease = l
		c.invoke()
	}
}

// granted takes what the wait brought.
func (c *call) granted() {
	if c.wait.Err != nil {
		c.refused(c.wait.Err)
		return
	}
	c.lease = c.wait.Lease
	c.isWarm = !c.wait.Phases.Cold()
	c.invoke()
}

// The patience of the payload channel.
const (
	dialPatience = 300 * time.Millisecond // until a host that cannot be reached is given up
	lostAfter    = 500 * time.Millisecond // until a broken connection is noticed
)

// invoke carries the call to the host of its lease.
func (c *call) invoke() {
	w, n := c.w, c.front.n
	c.start = w.now
	h := w.node(c.lease.Host)
	c.host, c.atHost = h.host, true
	switch {
	case c.host == nil || !h.up || w.cut(n, h) || w.cut(h, n):
		c.atHost = false
		c.err = errNotStarted
		c.later(dialPatience, phaseAnswer, n)
	case w.cfg.Static:
		c.later(w.cfg.Net.Delay, phaseReach, h)
	default:
		c.later(w.delay(n, h), phaseReach, h)
	}
}

// reach begins the call on its host.
func (c *call) reach() {
	i, err := c.host.enter(c)
	if err != nil {
		c.err = err
		c.answer()
		return
	}
	c.on = i
	if c.w.cfg.Trace != nil {
		c.w.trace("%v runs call %d on %v", c.host.n.id, c.id, i.id)
	}
	if m := c.host.m; m != nil {
		if c.front.m != m {
			m.visited(c.f.version.Function)
		}
		c.phase, c.life = phaseRun, c.host.n.life
		m.add(c.exec, c)
		return
	}
	c.later(c.exec, phaseRun, c.host.n)
}

// ran ends the code.
func (c *call) ran() {
	c.host.leave(c.on, c, c.broken)
	c.answer()
}

// answer carries what the host says to the frontend; when the link is cut the frontend finds out by itself.
func (c *call) answer() {
	w, n, h := c.w, c.front.n, c.host.n
	c.atHost = false
	if w.cut(h, n) {
		c.err = errHostLost
		c.later(lostAfter, phaseAnswer, n)
		return
	}
	d := w.cfg.Net.Delay
	if !w.cfg.Static {
		d = w.delay(h, n)
	}
	c.later(d, phaseAnswer, n)
}

// lostHost tells the frontend that the host died during the call.
func (c *call) lostHost() {
	c.atHost = false
	if c.on != nil {
		c.f.running--
	}
	c.err = errHostLost
	c.later(lostAfter, phaseAnswer, c.front.n)
}

var (
	errNotStarted = starling.Errorf(starling.Unavailable, "invoke", "the host cannot be reached").With("NotStarted")
	errShare      = starling.Errorf(starling.Overloaded, "invoke", "the host is crowded").With(overload.Reason)
	errHostLost   = starling.Errorf(starling.Unavailable, "invoke", "the host was lost during the call; the function may have run").With("HostLost")
)

// answered gives the slot back, and the caller the answer, or the call another slot when it surely did not start.
func (c *call) answered() {
	w, err := c.w, c.err
	c.err, c.on = nil, nil
	if c.front.cache.Put(w.now, c.lease, err != nil && err != errShare || c.broken, c.start) {
		c.front.cache.Collect(w.now)
	}
	if err == nil {
		c.end(endAnswer, "")
		return
	}
	if starling.ReasonOf(err) == overload.Reason {
		c.refused(err)
		return
	}
	if starling.KindOf(err) == starling.Unavailable {
		c.front.cache.HostFailed(w.now, c.host.n.id)
		c.front.cache.Collect(w.now)
	}
	if starling.ReasonOf(err) == "HostLost" {
		c.end(endHostLost, "")
		return
	}
	c.attempt++
	if c.attempt < 2 {
		c.look()
		return
	}
	p := min(10*time.Millisecond<<min(c.attempt-2, 5), 250*time.Millisecond)
	p = min(p/2+time.Duration(w.rng.Int64N(int64(p/2))), max(c.giveUp-w.now, 0))
	c.later(p, phaseWait, c.front.n)
}

// refused ends a call that got no slot.
func (c *call) refused(err error) {
	reason := starling.ReasonOf(err)
	if reason == "" {
		reason = starling.KindOf(err).String()
	}
	c.end(ending(reason), err.Error())
}

// end gives the caller the one answer of the call.
func (c *call) end(how ending, why string) {
	w := c.w
	if w.cfg.Plant == PlantLoseAnswer && c.id%50 == 0 {
		return
	}
	c.answers++
	w.checks.answered(c)
	if c.answers > 1 {
		return
	}
	if w.cfg.Trace != nil {
		w.trace("%v call %d: %s %s after %v", c.front.n.id, c.id, how, why, w.now-c.began)
	}
	wait := w.now - c.began
	if how == endAnswer {
		wait = c.start - c.began
	}
	w.result.end(c.f, how, wait, w.now-c.began, !c.isWarm)
	if c.isIn {
		c.front.open--
	}
	w.open.remove(c)
	if w.cfg.Plant == PlantTwoAnswers && c.id%50 == 0 {
		c.answers++
		w.checks.answered(c)
	}
	if w.cfg.Static {
		w.freeCalls = append(w.freeCalls, c) // nothing of a static world dies, so nothing of this call is on its way any more
	}
}
