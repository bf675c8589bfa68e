package sim

import (
	"time"
)

// Faults are what goes wrong. Rates are per second of virtual time over the whole world.
type Faults struct {
	Crash      float64       // a node is killed
	Down       time.Duration // until it comes back, drawn evenly up to twice that (1 s)
	Pause      float64       // a node is stopped with SIGSTOP
	Stopped    time.Duration // until it goes on, drawn evenly up to twice that (500 ms)
	Cut        float64       // a pair of nodes, or one node and all others, cannot talk; a third of the cuts in one direction only
	Healed     time.Duration // until they can, drawn evenly up to twice that (1 s)
	ClockStep  float64       // the wall clock of a node jumps by up to an hour, which must not matter
	Exit       float64       // an idle instance dies
	Orders     float64       // the leader orders a planned change: a move, a split or a merge
	ActorFails float64       // the scheduler of a partition is lost by a fault of ours and made anew in the same epoch
	StartFails float64       // share of starts that the function's own initialisation fails
	CallFails  float64       // share of calls that end with their instance
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// scheduleFaults lets every kind of fault happen at its rate.
func (w *World) scheduleFaults() {
	if w.cfg.Static {
		return
	}
	f := &w.cfg.Faults
	f.Down, f.Stopped, f.Healed = orDefault(f.Down, time.Second), orDefault(f.Stopped, 500*time.Millisecond), orDefault(f.Healed, time.Second)
	for _, kind := range []struct {
		rate float64
		f    func()
	}{{f.Crash, w.crashOne}, {f.Pause, w.pauseOne}, {f.Cut, w.cutSome}, {f.ClockStep, w.stepClock}, {f.Exit, w.exitOne}, {f.ActorFails, w.failActor}, {f.Orders, w.orderOne}} {
		if kind.rate > 0 {
			w.repeat(kind.rate, kind.f)
		}
	}
}

// repeat lets f happen again and again at a rate until the world is calm.
func (w *World) repeat(rate float64, f func()) {
	w.at(time.Duration(w.rng.ExpFloat64()/rate*float64(time.Second)), do(func() {
		if !w.calm {
			f()
			w.repeat(rate, f)
		}
	}))
}

// upTo draws a time of d on average.
func (w *World) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(2 * int64(d))) }

func (w *World) anyNode() *node { return w.nodes[w.rng.IntN(len(w.nodes))] }

func (w *World) crashOne() {
	n := w.anyNode()
	if !n.up {
		return
	}
	n.crash()
	w.at(w.upTo(w.cfg.Faults.Down), do(func() { w.restart(n) }))
}

func (w *World) restart(n *node) {
	if !n.up {
		w.trace("%v RESTART", n.id)
		n.boot()
	}
}

func (w *World) pauseOne() {
	n := w.anyNode()
	if !n.running() {
		return
	}
	n.pause()
	life := n.life
	w.at(w.upTo(w.cfg.Faults.Stopped), do(func() {
		if n.paused && n.life == life {
			n.resume()
		}
	}))
}

// cutSome cuts one pair of nodes, or one node off from all others.
func (w *World) cutSome() {
	a, alone, oneWay := w.anyNode(), w.rng.IntN(2) == 0, w.rng.IntN(3) == 0
	var undo []func()
	for _, b := range w.nodes {
		if b == a || !alone && w.rng.IntN(len(w.nodes)) > 0 {
			continue
		}
		undo = append(undo, w.cutLink(a, b))
		if !oneWay {
			undo = append(undo, w.cutLink(b, a))
		}
	}
	w.trace("%v CUT off in %d directions", a.id, len(undo))
	w.at(w.upTo(w.cfg.Faults.Healed), do(func() {
		w.trace("%v JOINED", a.id)
		for _, f := range undo {
			f()
		}
	}))
}

func (w *World) cutLink(a, b *node) (undo func()) {
	if a.cutTo == nil {
		a.cutTo = make([]bool, len(w.nodes))
	}
	a.cutTo[b.id-1] = true
	return func() { a.cutTo[b.id-1] = false }
}

func (w *World) stepClock() {
	n := w.anyNode()
	n.wall += time.Duration(w.rng.Int64N(int64(2*time.Hour))) - time.Hour
	w.trace("%v wall clock is off by %v", n.id, n.wall)
}

// exitOne lets an idle instance die.
func (w *World) exitOne() {
	h := w.hosts[w.rng.IntN(len(w.hosts))].host
	if h == nil || !h.n.running() {
		return
	}
	for _, i := range h.order {
		if i.ready && i.busy == 0 {
			w.trace("%v instance %v dies", h.n.id, i.id)
			h.exit(i, "Runtime.ExitError")
			return
		}
	}
}

// failActor loses one scheduler; its keeper makes a new one, which asks the hosts what runs.
func (w *World) failActor() {
	n := w.fronts[w.rng.IntN(len(w.fronts))]
	if !n.running() || len(n.parts.order) == 0 {
		return
	}
	p := n.parts.order[w.rng.IntN(len(n.parts.order))]
	w.trace("%v %v FAILS", n.id, p.entry.ID)
	p.ended = true
	delete(n.parts.parts, p.entry.ID)
	n.parts.lost[p.entry.ID] = p
	n.after(w.upTo(50*time.Millisecond), n.parts.follow)
}

// heal ends every fault.
func (w *World) heal() {
	w.calm = true
	w.trace("everything is healed")
	for _, n := range w.nodes {
		clear(n.cutTo)
		if n.paused {
			n.resume()
		}
		w.restart(n)
	}
}
