package sim

import (
	"time"

	"starling"
	"starling/actors/partition/handover"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
)

// The patience of a hand-over, as in actors/partition.
const (
	offerTime   = 2 * time.Second
	heldTime    = 10 * time.Second
	knowTime    = 300 * time.Millisecond
	strayTime   = 2 * time.Second
	settlePause = 20 * time.Millisecond
	divideTime  = 2 * time.Second
	askPause    = 20 * time.Millisecond
)

// A change is one order that is being carried out by the owner: what actors/partition does around handover.Source, with
// calls back where that waits.
type change struct {
	k        *keeper
	order    partmap.Change
	source   *handover.Source
	parts    []*part             // of the partitions it changes: one, or the two of a merge
	stopped  []*part             // those that it froze, or tried to
	after    []partmap.Partition // what it makes of them
	stream   *pipe               // to the next owner
	versions []sched.VersionKnown
	states   []*sched.Snapshot
	frozen   time.Duration
	waits    int // counts what it waited for, so that a late answer is none
}

// obey carries out an order, unless it has passed or makes no sense.
func (k *keeper) obey(o partmap.Change) {
	w, m := k.n.w, k.n.view.topology.Map
	c := &change{k: k, order: o, source: handover.New(o)}
	after := m.Clone()
	if after.Apply(o) != nil {
		return
	}
	ids := []starling.PartitionID{o.Partition}
	if o.Kind == partmap.Merge {
		ids = append(ids, o.With)
	}
	for _, id := range ids {
		if k.busy[id] && w.cfg.Plant != PlantTwice {
			return
		}
		e, _ := m.ByID(id)
		p := k.parts[id]
		if e.Owner != k.n.id || p == nil || p.ended || p.entry.Epoch != e.Epoch {
			return
		}
		c.parts = append(c.parts, p)
		c.after = append(c.after[:0], after.Overlapping(e.Range)...)
	}
	for _, p := range c.parts {
		k.busy[p.entry.ID] = true
	}
	w.trace("%v begins to %v %v/%d", k.n.id, o.Kind, o.Partition, o.Epoch)
	c.step(handover.Begin)
}

// step tells the source what became of the last effect and carries out the next ones.
func (c *change) step(ev handover.Event) {
	c.waits++
	for _, e := range c.source.Step(ev) {
		c.carry(e)
		if e == handover.Done || e == handover.Fail {
			for _, p := range c.parts {
				delete(c.k.busy, p.entry.ID)
			}
		}
	}
}

// await returns what to call with the answer to an effect; the first call counts, and after within it is late.
func (c *change) await(within time.Duration, late handover.Event) func(handover.Event) {
	turn := c.waits
	answer := func(ev handover.Event) {
		if c.waits == turn {
			c.step(ev)
		}
	}
	if within > 0 {
		c.k.n.after(within, func() { answer(late) })
	}
	return answer
}

func (c *change) carry(e handover.Effect) {
	w, k := c.k.n.w, c.k
	w.trace("%v %v %v/%d: %v", k.n.id, c.order.Kind, c.order.Partition, c.order.Epoch, e)
	switch e {
	case handover.Offer:
		c.offer()
	case handover.Freeze:
		if c.order.Kind == partmap.Move {
			c.freeze()
			return
		}
		answer := c.waits
		k.known(c.inUse(), func(vs []sched.VersionKnown) {
			if c.waits == answer {
				c.versions = vs
				c.awaitDivisible(w.now + divideTime)
			}
		})
	case handover.Hold:
		c.hold()
	case handover.Propose:
		answer := c.await(0, 0)
		k.n.proposeChange(c.order, func(ev handover.Event, _ bool) { answer(ev) })
	case handover.Settle:
		w.planned.Settled++
		c.settle(c.await(0, 0))
	case handover.Forget:
		c.forget()
	case handover.Thaw:
		c.thaw()
	case handover.Fail:
		w.planned.Aborted++
		for _, p := range c.parts {
			delete(k.strays, p.entry.ID)
		}
	case handover.Done:
		switch c.order.Kind {
		case partmap.Move:
			w.planned.Moves++
		case partmap.Split:
			w.planned.Splits++
		case partmap.Merge:
			w.planned.Merges++
		}
		c.expect(w.now + strayTime)
	}
}

// patience is how long an owner waits for the next one's word. Where things go wrong it is short now and then, because worlds are.
func (w *World) patience() time.Duration {
	if w.hostile() && w.rng.IntN(3) == 0 {
		return time.Millisecond + time.Duration(w.rng.Int64N(int64(100*time.Millisecond)))
	}
	return offerTime
}

func (c *change) inUse() (ids []starling.VersionID) {
	for _, p := range c.parts {
		ids = append(ids, p.sched.InUse()...)
	}
	return ids
}

// offer asks the next owner to get ready.
func (c *change) offer() {
	k, to := c.k, c.k.n.w.node(c.order.To)
	answer := c.await(c.k.n.w.patience(), handover.Refused)
	if to == nil || to.parts == nil || !alive(k.n, to.id) {
		k.n.after(0, func() { answer(handover.Refused) })
		return
	}
	c.stream = newPipe(k.n, to)
	t := &taker{stream: c.stream, entry: c.after[0], ids: c.inUse(), answer: answer}
	c.stream.say(k.n, to, func() { to.parts.offered(t) })
	c.stream.taker = t
}

// hold brings the state to where it will be needed, and has what comes from now on follow it.
func (c *change) hold() {
	w, k := c.k.n.w, c.k
	switch c.order.Kind {
	case partmap.Move:
		body, err := sched.EncodeSnapshot(c.states[0])
		if err != nil {
			w.fail("a state cannot be encoded: %v", err)
			return
		}
		t, to := c.stream.taker, w.node(c.order.To)
		answer := c.await(c.k.n.w.patience(), handover.Refused)
		t.answer = func(ev handover.Event) {
			if ev == handover.Held {
				c.expect(0)
			}
			answer(ev)
		}
		truth := c.truth()
		c.stream.say(k.n, to, func() { to.parts.stated(t, body, truth) })
	case partmap.Split:
		low, high := c.states[0].Divide(c.order.At)
		if w.cfg.Plant == PlantPermits {
			low.Accounts, high.Accounts = c.states[0].Accounts, c.states[0].Accounts
		}
		k.hold(&held{entry: c.after[0], state: &low, versions: c.versions, truth: c.truth()})
		k.hold(&held{entry: c.after[1], state: &high, versions: c.versions, truth: c.truth()})
		c.expect(0)
		c.step(handover.Held)
	case partmap.Merge:
		both := sched.Join(*c.states[0], *c.states[1])
		k.hold(&held{entry: c.after[0], state: &both, versions: c.versions, truth: c.truth()})
		c.expect(0)
		c.step(handover.Held)
	}
}

// truth notes, apart from the code under test, of whom the state is.
func (c *change) truth() truth {
	t := truth{frozen: c.frozen}
	for _, p := range c.stopped {
		t.since = max(t.since, p.recovered)
		t.of = append(t.of, outlived{p, p.acts})
	}
	return t
}

// expect has messages for the changed partitions follow them; until is 0 while the change is under way.
func (c *change) expect(until time.Duration) {
	for i, p := range c.parts {
		s := &stray{over: p.entry.Range, until: until}
		if c.order.Kind == partmap.Split {
			s.keys = map[starling.InstanceID]starling.Key64{}
			for _, st := range c.states[i].Instances {
				s.keys[st.ID] = st.Key
			}
		}
		c.k.strays[p.entry.ID] = s
	}
}

// settle has the map take one of two changes of this epoch: ours, or one that leaves the partition here.
func (c *change) settle(answer func(handover.Event)) {
	n := c.k.n
	stay := partmap.Change{Kind: partmap.Assign, Partition: c.order.Partition, Epoch: c.order.Epoch, To: n.id}
	again := func() { n.after(settlePause, func() { c.settle(answer) }) }
	n.proposeChange(stay, func(ev handover.Event, moved bool) {
		switch {
		case ev == handover.Applied:
			answer(handover.Lost)
		case ev == handover.Lost || moved: // the epoch has passed: by our first proposal, or by the leader
			n.proposeChange(c.order, func(ev handover.Event, _ bool) {
				switch {
				case ev != handover.Unsure:
					answer(ev)
				case !n.parts.shows(c.order.Partition, c.order.Epoch):
					answer(handover.Lost)
				default:
					again()
				}
			})
		default:
			again()
		}
	})
}

// forget has the state dropped where it is held.
func (c *change) forget() {
	for _, p := range c.after {
		c.k.forget(p)
	}
	if c.stream != nil {
		to := c.stream.to
		t := c.stream.taker
		c.stream.say(c.k.n, to, func() { to.parts.forgotten(t) })
	}
}

// shows reports whether the newest map here shows the partition in this epoch.
func (k *keeper) shows(id starling.PartitionID, epoch starling.Epoch) bool {
	p, ok := k.n.view.topology.Map.ByID(id)
	return ok && p.Epoch == epoch
}

// take gives the scheduler a message. What a former owner hands on counts as its sender's.
func (p *part) take(from starling.NodeID, m wire.Message) {
	if r, ok := m.(*wire.Relay); ok {
		from, m = r.From, r.Body
	}
	p.step(sched.Message{From: from, Body: m})
}
