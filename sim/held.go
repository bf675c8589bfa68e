package sim

import (
	"slices"
	"time"

	"starling"
	"starling/actors/partition/handover"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
)

// A held is the state of a partition that is about to be this node's.
type held struct {
	entry    partmap.Partition
	state    *sched.Snapshot
	versions []sched.VersionKnown
	until    time.Duration
	offer    uint64          // the number of its offer; 0 until hold draws one
	early    []sched.Message // what came for it before the map did
	truth    truth
}

// A truth is what checkers know of a state that is handed over.
type truth struct {
	frozen time.Duration
	since  starling.Epoch // of the last recovery
	of     []outlived
}

// An outlived counts how often a scheduler had acted when its state was taken: if it acts afterwards, the state must not be used.
type outlived struct {
	p    *part
	acts int
}

// hold keeps a state until the map gives its partition to this node. It reports false when one that was offered later is held.
func (k *keeper) hold(h *held) bool {
	if h.offer == 0 {
		k.offers++
		h.offer = k.offers
	}
	stale := k.n.w.cfg.Plant == PlantStaleState
	if o := k.held[h.entry.Range]; o != nil && (stale || o.offer > h.offer) {
		return stale // which says that it took the new one
	}
	h.until = k.n.w.now + heldTime
	k.held[h.entry.Range] = h
	return true
}

// drop forgets a state that was offered, unless a later one has taken its place.
func (k *keeper) drop(h *held) {
	if k.held[h.entry.Range] == h && k.n.w.cfg.Plant != PlantStaleState {
		delete(k.held, h.entry.Range)
	}
}

// find returns the state that was handed over for an entry of the map, or nil.
func (k *keeper) find(e partmap.Partition) *held {
	h := k.held[e.Range]
	if h != nil && k.n.w.now < h.until && (h.entry.Epoch == e.Epoch && e.Since < e.Epoch || k.n.w.cfg.Plant == PlantStaleState) {
		return h
	}
	return nil
}

// forget drops the state of an entry that will not come.
func (k *keeper) forget(e partmap.Partition) {
	if h := k.held[e.Range]; h != nil && h.entry.Epoch == e.Epoch {
		delete(k.held, e.Range)
	}
}

// early keeps a message for a partition whose state is here and whose place in the map is not known yet.
func (k *keeper) early(id starling.PartitionID, from starling.NodeID, m wire.Message) bool {
	var of *held
	for _, h := range k.held {
		if h.entry.ID == id && k.n.w.now < h.until && (of == nil || h.entry.Epoch > of.entry.Epoch) {
			of = h
		}
	}
	if of != nil {
		of.early = append(of.early, sched.Message{From: from, Body: m})
	}
	return of != nil
}

// A stray says what becomes of messages for a partition that was changed lately.
type stray struct {
	over  starling.Range
	keys  map[starling.InstanceID]starling.Key64
	until time.Duration // 0 while the change is under way
}

func (s *stray) key(id starling.InstanceID) (starling.Key64, bool) {
	k, ok := s.keys[id]
	return k, ok
}

// strayOf returns what becomes of messages for a partition; nil when they are for it itself.
func (k *keeper) strayOf(id starling.PartitionID) *stray {
	s := k.strays[id]
	if s != nil && s.until != 0 && k.n.w.now > s.until {
		delete(k.strays, id)
		return nil
	}
	return s
}

// divert hands a message to the successors that the newest map names, here or on another node.
func (k *keeper) divert(id starling.PartitionID, s *stray, from starling.NodeID, m wire.Message) {
	for _, p := range slices.Clone(handover.Route(id, m, k.n.view.topology.Map.Overlapping(s.over), s.key)) {
		switch {
		case p.Owner == k.n.id:
			k.deliver(p.ID, from, m)
		case p.Owner != 0:
			sender, body := from, m
			if r, ok := m.(*wire.Relay); ok {
				sender, body = r.From, r.Body
			}
			k.n.w.planned.relayed++
			k.n.send(wire.Address{Node: p.Owner, Partition: p.ID}, &wire.Relay{From: sender, Body: body})
		}
	}
}

// A taker is the next owner's end of a hand-over.
type taker struct {
	stream   *pipe
	entry    partmap.Partition
	ids      []starling.VersionID
	versions []sched.VersionKnown
	until    time.Duration // it waits for the next word
	over     bool
	offer    uint64
	held     *held
	answer   func(handover.Event) // at the owner
}

// reply says a word to the owner.
func (k *keeper) reply(t *taker, ev handover.Event) {
	t.stream.say(k.n, t.stream.from, func() { t.answer(ev) })
}

// offered looks the versions up, or refuses a partition that this node could not begin.
func (k *keeper) offered(t *taker) {
	w := k.n.w
	if t.entry.Owner != k.n.id || k.n.leaseUntil() < w.now {
		t.over = true
		k.reply(t, handover.Refused)
		return
	}
	k.offers++
	t.offer = k.offers
	k.known(t.ids, func(vs []sched.VersionKnown) {
		t.versions, t.until = vs, w.now+offerTime
		k.reply(t, handover.Ready)
	})
}

// stated takes the state. At the end of its patience a node may find either the state or that it waited too long.
func (k *keeper) stated(t *taker, body []byte, truth truth) {
	w := k.n.w
	if t.over || w.now > t.until && w.rng.IntN(2) == 0 {
		t.over = true
		return
	}
	state, err := sched.DecodeSnapshot(body)
	if err != nil {
		w.fail("a state cannot be decoded: %v", err)
		return
	}
	t.held = &held{entry: t.entry, state: state, versions: t.versions, truth: truth, offer: t.offer}
	if !k.hold(t.held) {
		t.over = true
		k.reply(t, handover.Refused)
		return
	}
	t.until = w.now + heldTime
	k.reply(t, handover.Held)
}

func (k *keeper) forgotten(t *taker) {
	if t.held != nil && !t.over && k.n.w.now <= t.until {
		k.drop(t.held)
	}
	t.over = true
}

// known looks versions up, those that can be in time.
func (k *keeper) known(ids []starling.VersionID, then func([]sched.VersionKnown)) {
	w := k.n.w
	var out []sched.VersionKnown
	d := 2 * w.cfg.Net.Delay
	for _, id := range ids {
		if f := w.versions[id]; f != nil && (!w.hostile() || w.rng.Float64() >= 0.02+w.cfg.Net.Loss) {
			out = append(out, sched.VersionKnown{Version: f.version, ConcurrencyMax: w.accountMax()})
		} else {
			d = knowTime
		}
	}
	k.n.after(d, func() { then(out) })
}

// alive reports whether n knows of a living node.
func alive(n *node, id starling.NodeID) bool { return slices.Contains(n.view.alive, id) }

// A pipe is the connection of one hand-over. In each direction it is in order; a word that a cut link loses is sent again
// for as long as its speaker waits. It ends with either node.
type pipe struct {
	from, to *node
	lives    [2]int
	last     [2]time.Duration // by direction: when the last word arrives
	taker    *taker
}

func newPipe(from, to *node) *pipe {
	return &pipe{from: from, to: to, lives: [2]int{from.life, to.life}}
}

// resend is the pause before a lost word is sent again.
const resend = 40 * time.Millisecond

// say lets f happen at the other end.
func (s *pipe) say(from, to *node, f func()) {
	w, dir := from.w, 0
	if from == s.to {
		dir = 1
	}
	life, until := s.lives[1-dir], from.w.now+offerTime
	d := w.cfg.Net.Delay + time.Duration(w.rng.Int64N(int64(w.cfg.Net.Jitter)+1))
	if w.hostile() && w.rng.Float64() < w.cfg.Net.Slow { // a large state, a lost packet, a slow disk
		d += time.Duration(w.rng.Int64N(int64(1500 * time.Millisecond)))
	}
	var arrive func()
	arrive = func() {
		switch {
		case !to.up || to.life != life:
		case from != to && w.cut(from, to):
			if w.now < until {
				s.last[dir] = max(s.last[dir], w.now+resend)
				w.at(resend, do(arrive))
			}
		default:
			(&timer{to, life, f}).run(w)
		}
	}
	s.last[dir] = max(s.last[dir], w.now+d)
	w.at(s.last[dir]-w.now, do(arrive))
}
