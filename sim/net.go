package sim

import (
	"time"

	"starling/actors/wire"
)

// Net is how messages travel between nodes. Links are in order, as streams are; Reorder and Duplicate break that, for
// the moments at which an old and a new connection of a pair overlap.
type Net struct {
	Delay     time.Duration // of the fastest message (200 µs)
	Jitter    time.Duration // drawn evenly on top
	Loss      float64       // share of messages lost
	Duplicate float64       // share of messages that arrive twice
	Reorder   float64       // share of messages that may be overtaken, by up to ten Delays
	Slow      float64       // share of the words of a hand-over that take up to 1.5 s; above 0, owners' proposals may have no known outcome, too
	Codec     bool          // encode and decode every message as the real post does
}

func (n Net) withDefaults() Net {
	if n.Delay == 0 {
		n.Delay = 200 * time.Microsecond
	}
	return n
}

// A delivery is one message on its way.
type delivery struct {
	from, to *node
	life     int // of the receiver when it was sent; a restarted node has new connections
	addr     wire.Address
	m        wire.Message
}

// send puts a message on its way; what it points at is copied, because schedulers use theirs again.
func (w *World) send(from *node, addr wire.Address, m wire.Message) {
	to := w.node(addr.Node)
	if b, ok := m.(*wire.Borrow); to == nil || ok && b.Want == 0 && w.cfg.Plant == PlantHoard {
		return
	}
	if w.cfg.Trace != nil {
		w.trace("%v → %v %s", from.id, addr.Node, describe(addr, m))
	}
	m = w.copyOf(m)
	if from == to {
		w.deliverIn(0, from, to, addr, m)
		return
	}
	if w.faulty() && (w.cut(from, to) || w.rng.Float64() < w.cfg.Net.Loss) {
		w.trace("lost")
		return
	}
	d := w.delay(from, to)
	w.deliverIn(d, from, to, addr, m)
	if w.faulty() && w.rng.Float64() < w.cfg.Net.Duplicate {
		w.deliverIn(d+w.delay(from, to), from, to, addr, w.copyOf(m))
	}
}

// faulty reports whether the network may misbehave now.
func (w *World) faulty() bool { return !w.cfg.Static && !w.calm }

// hostile reports whether hand-overs may go wrong now.
func (w *World) hostile() bool { return w.faulty() && w.cfg.Net.Slow > 0 }

// delay draws the time of one message. A static world keeps it constant, which keeps its links in order for free.
func (w *World) delay(from, to *node) time.Duration {
	n := &w.cfg.Net
	if w.cfg.Static {
		return n.Delay
	}
	d := n.Delay
	if n.Jitter > 0 {
		d += time.Duration(w.rng.Int64N(int64(n.Jitter)))
	}
	if !w.calm && w.rng.Float64() < n.Reorder {
		return d + time.Duration(w.rng.Int64N(int64(10*n.Delay)))
	}
	last := &from.lastTo[to.id-1]
	*last = max(*last, w.now+d)
	return *last - w.now
}

func (w *World) deliverIn(d time.Duration, from, to *node, addr wire.Address, m wire.Message) {
	var e *delivery
	if n := len(w.freeSends); n > 0 {
		e, w.freeSends = w.freeSends[n-1], w.freeSends[:n-1]
	} else {
		e = &delivery{}
	}
	*e = delivery{from, to, to.life, addr, m}
	w.at(d, e)
}

func (e *delivery) run(w *World) {
	to := e.to
	if !to.up || to.life != e.life || e.from != to && w.cut(e.from, to) {
		return
	}
	if to.paused {
		to.backlog = append(to.backlog, e)
		return
	}
	from, addr, m := e.from, e.addr, e.m
	*e = delivery{}
	w.freeSends = append(w.freeSends, e)
	to.receive(from, addr, m)
}

// cut reports whether messages from a to b are lost now.
func (w *World) cut(a, b *node) bool { return a.cutTo != nil && a.cutTo[b.id-1] }

// connected reports whether a and b can talk in both directions, and both run.
func (w *World) connected(a, b *node) bool {
	return a == b || !w.cut(a, b) && !w.cut(b, a) && a.running() && b.running()
}

// copyOf returns a message of its own, through the codec where that is wanted.
func (w *World) copyOf(m wire.Message) wire.Message {
	if w.cfg.Net.Codec {
		c, err := wire.Decode(m.Kind(), wire.Append(nil, m))
		if err != nil {
			w.fail("a message of kind %d does not survive the codec: %v", m.Kind(), err)
			return m
		}
		if g, ok := c.(*wire.Grant); ok && w.cfg.Plant == PlantCorruptNet {
			w.corrupt(g)
		}
		return c
	}
	switch m := m.(type) {
	case *wire.Grant:
		c := *m
		return &c
	case *wire.Reject:
		c := *m
		return &c
	case *wire.Recall:
		c := *m
		c.Leases = append(c.Leases[:0:0], m.Leases...)
		return &c
	case *wire.Renewed:
		c := *m
		c.Leases = append(c.Leases[:0:0], m.Leases...)
		return &c
	case *wire.Start:
		c := *m
		return &c
	case *wire.Stop:
		c := *m
		return &c
	case *wire.Fence:
		c := *m
		return &c
	case *wire.Borrow:
		c := *m
		return &c
	case *wire.Lend:
		c := *m
		return &c
	case *wire.Audit:
		c := *m
		return &c
	}
	return m // made for this one receiver
}
