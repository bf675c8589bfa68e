package partition

import (
	"context"
	"fmt"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/actors/partition/handover"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/internal/crash"
	"starling/sched"
	"starling/transport"
)

const (
	ordersAtOnce = 8                      // changes of this node's partitions under way
	freezeTime   = 500 * time.Millisecond // for a mailbox to be worked off
	proposeTime  = 3 * time.Second        // for an answer of the manager
	settlePause  = 20 * time.Millisecond
	divideTime   = 2 * time.Second       // for ledgers to hear what a partition holds that is to be split
	askPause     = 20 * time.Millisecond // between two questions whether they have
)

// A Control is the way to the manager; cluster.View is one.
type Control interface {
	Orders() <-chan cluster.Order
	OrderDone(id uint64, err error)
	// ProposeChange returns nil when the map was changed by c. Otherwise known says that it was not and will not be.
	ProposeChange(ctx context.Context, c partmap.Change) (known bool, err error)
}

// obey carries out the manager's orders until ctx ends, each on a goroutine of its own.
func (k *Keeper) obey(ctx context.Context) {
	orders, slots := k.cfg.Control.Orders(), make(chan struct{}, ordersAtOnce)
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-orders:
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			k.group.Go(func(ctx context.Context) {
				defer func() { <-slots }()
				k.cfg.Control.OrderDone(o.ID, k.change(ctx, o))
			})
		}
	}
}

// A change is one order that is being carried out. It lives on one goroutine.
type change struct {
	keeper   *Keeper
	order    partmap.Change
	actors   []*actor            // of the partitions it changes: one, or the two of a merge
	after    []partmap.Partition // what it makes of them
	stream   transport.Stream    // to the next owner
	versions []sched.VersionKnown
	stopped  []*actor // those that this change froze, or tried to
	states   []*sched.Snapshot
	frozen   time.Time
	open     bool // this node stops before anybody knows what became of the proposal
	err      error
}

// change carries out one order and returns why it could not.
func (k *Keeper) change(ctx context.Context, o cluster.Order) error {
	c := &change{keeper: k, order: o.Change()}
	err := k.claim(c.partitions())
	if err == nil {
		defer k.unclaim(c.partitions())
		err = c.begin()
	}
	if err == nil {
		source := handover.New(c.order)
		for do := source.Step(handover.Begin); len(do) > 0; {
			e := do[0]
			do = do[1:]
			if ev, answers := c.carry(ctx, e); answers {
				do = source.Step(ev)
			}
		}
		err = c.err
	}
	if c.stream != nil {
		c.stream.CloseWrite()
	}
	word := changeWords[o.Kind]
	if err != nil {
		k.cfg.Log.Warn("a partition could not be changed as ordered", "order", word, "partition", o.Partition.String(), "epoch", uint64(o.Epoch), "err", err)
		k.changed(word, "failed").Inc()
		return err
	}
	pause := k.cfg.Now().Sub(c.frozen)
	k.cfg.Log.Debug("partition changed as ordered", "order", word, "partition", o.Partition.String(), "pause", pause)
	k.changed(word, "done").Inc()
	k.pauses(word).Update(pause.Seconds())
	return nil
}

var changeWords = map[partmap.ChangeKind]string{partmap.Move: "move", partmap.Split: "split", partmap.Merge: "merge"}

// partitions returns those that the order changes: one, or the two of a merge.
func (c *change) partitions() []starling.PartitionID {
	if c.order.Kind == partmap.Merge {
		return []starling.PartitionID{c.order.Partition, c.order.With}
	}
	return []starling.PartitionID{c.order.Partition}
}

// claim takes the partitions for one change. A second one would thaw what the first has frozen, and drop its state: an order
// may come twice, and a new leader does not know those of the one before.
func (k *Keeper) claim(ps []starling.PartitionID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range ps {
		if k.busy[p] {
			return starling.Errorf(starling.Conflict, "change partition", "%s is being changed", p)
		}
	}
	for _, p := range ps {
		k.busy[p] = true
	}
	return nil
}

func (k *Keeper) unclaim(ps []starling.PartitionID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range ps {
		delete(k.busy, p)
	}
}

// begin finds the actors and what the map would make of them. It refuses an order that has passed or makes no sense.
func (c *change) begin() error {
	k, m := c.keeper, c.keeper.cfg.Topology.Map()
	if changeWords[c.order.Kind] == "" {
		return starling.Errorf(starling.Invalid, "change partition", "this node does not know change kind %d: upgrade it", c.order.Kind)
	}
	if m == nil {
		return starling.Errorf(starling.Moved, "change partition", "this node has no map yet")
	}
	after := m.Clone()
	if err := after.Apply(c.order); err != nil {
		return err
	}
	for _, id := range c.partitions() {
		p, _ := m.ByID(id)
		a := (*k.actors.Load())[id]
		if p.Owner != k.cfg.Node || a == nil || a.entry.Epoch != p.Epoch {
			return starling.Errorf(starling.Moved, "change partition", "%s does not live on %s", id, k.cfg.Node)
		}
		c.actors = append(c.actors, a)
		c.after = append(c.after[:0], after.Overlapping(p.Range)...) // of a merge both have the same successor
	}
	return nil
}

// carry carries out one effect; answers reports whether ev is its answer.
func (c *change) carry(ctx context.Context, e handover.Effect) (ev handover.Event, answers bool) {
	try := func(good handover.Event, do func(context.Context) error) (handover.Event, bool) {
		if err := do(ctx); err != nil {
			c.err = err
			return handover.Refused, true
		}
		return good, true
	}
	switch e {
	case handover.Offer:
		crash.Here(crash.BeforeOffer)
		return try(handover.Ready, c.offer)
	case handover.Freeze:
		crash.Here(crash.BeforeFreeze)
		return try(handover.Frozen, c.freeze)
	case handover.Hold:
		crash.Here(crash.BeforeHold)
		return try(handover.Held, c.hold)
	case handover.Propose:
		crash.Here(crash.BeforePropose)
		return c.propose(ctx), true
	case handover.Settle:
		return c.settle(ctx), true
	case handover.Forget:
		c.forget()
	case handover.Thaw:
		c.thaw()
	case handover.Fail:
		c.expectNo()
		if c.err == nil {
			c.err = starling.Errorf(starling.Moved, "change partition", "%s was changed otherwise meanwhile", c.order.Partition)
		}
	case handover.Done:
		crash.Here(crash.BeforeDone)
		c.err = nil
		c.expect(c.keeper.cfg.Now().Add(strayTime))
	}
	return 0, false
}

// offer asks the next owner to get ready.
func (c *change) offer(ctx context.Context) error {
	const op = "offer partition"
	k := c.keeper
	to := k.address(c.order.To)
	if to == "" {
		return starling.Errorf(starling.NotFound, op, "%s is not alive", c.order.To)
	}
	ctx, cancel := context.WithTimeout(ctx, offerTime)
	defer cancel()
	var err error
	if c.stream, err = k.cfg.Endpoint.Open(ctx, to, transport.ChannelState); err != nil {
		return err
	}
	o := offer{entry: c.after[0], versions: c.inUse()}
	o.versions = o.versions[:min(len(o.versions), offerMax/8-7)]
	if err := say(c.stream, sayOffer, o.encode(), offerTime); err != nil {
		return err
	}
	return c.answer(sayReady)
}

// answer waits for the next owner's word.
func (c *change) answer(want uint8) error {
	kind, body, err := hear(c.stream, offerTime)
	switch {
	case err != nil:
		return starling.Errorf(starling.Unavailable, "hand partition over", "%s does not answer: %w", c.order.To, err)
	case kind == sayNo:
		return starling.Errorf(starling.Unavailable, "hand partition over", "%s refuses: %s", c.order.To, body)
	case kind != want:
		return starling.Errorf(starling.Internal, "hand partition over", "%s says %d where %d was due", c.order.To, kind, want)
	}
	return nil
}

// inUse asks the actors which versions they have. It costs them one message.
func (c *change) inUse() (ids []starling.VersionID) {
	for _, a := range c.actors {
		to := make(chan []starling.VersionID, 1)
		if !a.ref.Tell(inUse{to}, 1) {
			continue
		}
		select {
		case some := <-to:
			ids = append(ids, some...)
		case <-a.ref.Done():
		case <-time.After(freezeTime):
		}
	}
	return ids
}

// freeze stops the actors and takes their states.
func (c *change) freeze(ctx context.Context) error {
	const op = "freeze partition"
	if c.order.Kind != partmap.Move {
		c.versions = c.keeper.known(ctx, c.inUse())
	}
	if c.order.Kind == partmap.Split {
		if err := c.awaitDivisible(ctx); err != nil {
			return err
		}
	}
	c.frozen = c.keeper.cfg.Now()
	end := time.NewTimer(freezeTime)
	defer end.Stop()
	for _, a := range c.actors {
		if !c.keeper.standStill(a.entry) {
			return starling.Errorf(starling.Conflict, op, "%s was frozen before, and nothing is known of what became of it", a.entry.ID)
		}
		c.stopped = append(c.stopped, a)
		to := make(chan frozen, 1)
		if !a.ref.Tell(freeze{to, c.order.Kind == partmap.Split}, 1) {
			return starling.Errorf(starling.Overloaded, op, "the mailbox of %s is full", a.entry.ID)
		}
		select {
		case f := <-to:
			if f.err != nil {
				return f.err
			}
			c.states = append(c.states, f.state)
		case <-a.ref.Done():
			return starling.Errorf(starling.Moved, op, "%s ended meanwhile", a.entry.ID)
		case <-ctx.Done():
			return starling.Errorf(starling.Unavailable, op, "this node is stopping")
		case <-end.C:
			return starling.Errorf(starling.Overloaded, op, "the mailbox of %s was not worked off in %v", a.entry.ID, freezeTime)
		}
	}
	return nil
}

// awaitDivisible waits until the partition may be cut. It goes on granting meanwhile; one that was not joined or taken over a moment ago
// may be cut at once.
func (c *change) awaitDivisible(ctx context.Context) error {
	a := c.actors[0]
	for end := c.keeper.cfg.Now().Add(divideTime); c.keeper.cfg.Now().Before(end); {
		to := make(chan bool, 1)
		if a.ref.Tell(cut{to}, 1) {
			select {
			case ok := <-to:
				if ok {
					return nil
				}
			case <-a.ref.Done():
				return starling.Errorf(starling.Moved, "split partition", "%s ended meanwhile", a.entry.ID)
			case <-time.After(freezeTime):
			}
		}
		select {
		case <-ctx.Done():
			return starling.Errorf(starling.Unavailable, "split partition", "this node is stopping")
		case <-time.After(askPause):
		}
	}
	return starling.Errorf(starling.Unavailable, "split partition", "the ledgers did not say in %v that they know what %s holds", divideTime, a.entry.ID)
}

// hold brings the state to where it will be needed, and has what comes from now on follow it.
func (c *change) hold(context.Context) error {
	k := c.keeper
	switch c.order.Kind {
	case partmap.Move:
		body, err := sched.EncodeSnapshot(c.states[0])
		if err != nil {
			return err
		}
		if len(body) > stateMax {
			return starling.Errorf(starling.TooLarge, "hand partition over", "the state of %s has %d bytes, the limit is %d: split it first", c.order.Partition, len(body), stateMax)
		}
		if err := say(c.stream, sayState, body, offerTime); err != nil {
			return starling.Errorf(starling.Unavailable, "hand partition over", "%s does not take the state: %w", c.order.To, err)
		}
		if err := c.answer(sayHeld); err != nil {
			return err
		}
	case partmap.Split:
		low, high := c.states[0].Divide(c.order.At)
		if !k.hold(&held{entry: c.after[0], state: &low, versions: c.versions}) || !k.hold(&held{entry: c.after[1], state: &high, versions: c.versions}) {
			return starling.Errorf(starling.Overloaded, "split partition", "%d changes are under way here, the limit", heldMax)
		}
	case partmap.Merge:
		both := sched.Join(*c.states[0], *c.states[1])
		if !k.hold(&held{entry: c.after[0], state: &both, versions: c.versions}) {
			return starling.Errorf(starling.Overloaded, "merge partitions", "%d changes are under way here, the limit", heldMax)
		}
	}
	c.expect(time.Time{})
	return nil
}

// expect has messages for the changed partitions follow them until then.
func (c *change) expect(until time.Time) {
	var ids []starling.PartitionID
	var strays []*stray
	for i, a := range c.actors {
		s := &stray{over: a.entry.Range, until: until}
		if c.order.Kind == partmap.Split {
			s.keys = keysOf(c.states[i])
		}
		ids, strays = append(ids, a.entry.ID), append(strays, s)
	}
	c.keeper.expect(ids, strays)
}

func keysOf(s *sched.Snapshot) map[starling.InstanceID]starling.Key64 {
	keys := make(map[starling.InstanceID]starling.Key64, len(s.Instances))
	for _, i := range s.Instances {
		keys[i.ID] = i.Key
	}
	return keys
}

func (c *change) expectNo() {
	var ids []starling.PartitionID
	for _, a := range c.actors {
		ids = append(ids, a.entry.ID)
	}
	c.keeper.expectNo(ids)
}

// propose proposes the change and finds out what became of it.
func (c *change) propose(ctx context.Context) handover.Event {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	known, err := c.keeper.cfg.Control.ProposeChange(ctx, c.order)
	c.err = err
	switch {
	case err == nil:
		return handover.Applied
	case known:
		return handover.Lost
	}
	return handover.Unsure
}

// settle has the map take one of two changes of this epoch: ours, or one that leaves the partition here, where it is
// recovered like after a death.
func (c *change) settle(ctx context.Context) handover.Event {
	stay := partmap.Change{Kind: partmap.Assign, Partition: c.order.Partition, Epoch: c.order.Epoch, To: c.keeper.cfg.Node}
	for ctx.Err() == nil {
		bounded, cancel := context.WithTimeout(ctx, proposeTime)
		known, err := c.keeper.cfg.Control.ProposeChange(bounded, stay)
		cancel()
		if err == nil {
			return handover.Lost
		}
		if known || starling.KindOf(err) == starling.Moved { // the epoch has passed: by our first proposal, or by the leader
			if ev := c.propose(ctx); ev != handover.Unsure {
				return ev
			}
			if c.passed() { // more happened since, and nobody can tell any more: what has passed is not thawed
				return handover.Lost
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(settlePause):
		}
	}
	c.open = true
	return handover.Lost
}

// passed reports whether this node has heard that the epoch of the order has passed.
func (c *change) passed() bool { return !c.keeper.owns(c.order.Partition, c.order.Epoch) }

// owns reports whether the newest map here shows the partition in this epoch.
func (k *Keeper) owns(id starling.PartitionID, epoch starling.Epoch) bool {
	p, ok := k.cfg.Topology.Map().ByID(id)
	return ok && p.Epoch == epoch
}

// forget has the state dropped where it is held.
func (c *change) forget() {
	for _, p := range c.after {
		c.keeper.forget(p)
	}
	if c.stream != nil {
		_ = say(c.stream, sayForget, nil, offerTime) // it is dropped in time anyway
	}
}

// thaw has the actors go on that this change froze. One whose epoch has passed ends when this node hears of the map; if it has, maybe nobody knows
// by which change, and the actor stays as it is until it ends.
func (c *change) thaw() {
	if c.open {
		return // they end as they are
	}
	for _, a := range c.stopped {
		if !c.keeper.owns(a.entry.ID, a.entry.Epoch) {
			continue
		}
		c.keeper.goOn(a.entry.ID)
		for !a.ref.Tell(thaw{}, 1) { // a full mailbox is worked off, or the actor has ended
			select {
			case <-a.ref.Done():
			case <-time.After(time.Millisecond):
				continue
			}
			break
		}
	}
}

func (k *Keeper) address(n starling.NodeID) string {
	for _, node := range k.cfg.Topology.Alive() {
		if node.ID == n {
			return node.Addr
		}
	}
	return ""
}

// pauses shows how long partitions stood still: from freeze to the change of the map.
func (k *Keeper) pauses(word string) *metrics.PrometheusHistogram {
	return k.set.GetOrCreatePrometheusHistogramExt(fmt.Sprintf(`starling_partition_change_pause_seconds{change=%q}`, word),
		[]float64{1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5})
}

func (k *Keeper) changed(word, outcome string) *metrics.Counter {
	return k.set.GetOrCreateCounter(fmt.Sprintf(`starling_partition_changes_total{change=%q,outcome=%q}`, word, outcome))
}
