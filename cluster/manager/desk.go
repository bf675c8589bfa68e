package manager

import (
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
)

// The limits of orders in flight. The plan keeps to fewer (balance.Config.InFlight); the rest is the operators'.
const (
	orderMax     = 16 // in all
	orderNodeMax = 8  // for one node
)

// A Desk holds the orders that a leader has given and not heard of yet, and what it saw happen to the map. An order that
// is not answered in time is forgotten: whether it is carried out later, the epoch decides. It reads no clock and has one
// caller at a time.
type Desk struct {
	claim   uint64
	last    uint64
	open    map[uint64]*ticket
	why     map[starling.PartitionID]cause // of the newest change that was ordered or planned for each partition
	seen    *partmap.Map                   // as of the newest event
	events  []cluster.Event
	counted uint64
}

// A ticket is one order in flight.
type ticket struct {
	order  cluster.Order
	node   starling.NodeID
	reason string
	began  time.Time
	sent   bool
	done   chan error // of capacity 1; takes the outcome when an operator waits for it
}

// A cause is why a partition leaves an epoch.
type cause struct {
	epoch  starling.Epoch
	reason string
}

// NewDesk returns the desk of a reign.
func NewDesk(claim uint64) *Desk {
	return &Desk{claim: claim, open: map[uint64]*ticket{}, why: map[starling.PartitionID]cause{}}
}

// order notes a new order. It is refused while one for either of its partitions is in flight, and when there are too many.
func (d *Desk) order(p balance.Proposal, now time.Time) (*ticket, error) {
	const op = "order change"
	c, busy := p.Change, d.busy()
	for _, id := range []starling.PartitionID{c.Partition, c.With} {
		if _, ok := busy[id]; ok && id != 0 {
			return nil, starling.Errorf(starling.Conflict, op, "a change of %s is in flight: try again when it is done", id).With("InFlight")
		}
	}
	here := 0
	for _, t := range d.open {
		if t.node == p.Owner {
			here++
		}
	}
	if len(d.open) >= orderMax || here >= orderNodeMax {
		return nil, starling.Errorf(starling.Overloaded, op, "%d changes are in flight, %d of them on %s: try again when they are done", len(d.open), here, p.Owner).With("InFlight")
	}
	d.last++
	o := cluster.Order{ID: d.claim<<20 | d.last&(1<<20-1), Kind: c.Kind, Partition: c.Partition, Epoch: c.Epoch, To: c.To, At: c.At, With: c.With, WithEpoch: c.WithEpoch}
	t := &ticket{order: o, node: p.Owner, reason: p.Reason, began: now, done: make(chan error, 1)}
	d.open[o.ID] = t
	d.note(c, p.Reason)
	return t, nil
}

// note remembers why a partition will leave its epoch.
func (d *Desk) note(c partmap.Change, reason string) {
	d.why[c.Partition] = cause{c.Epoch, reason}
	if c.With != 0 {
		d.why[c.With] = cause{c.WithEpoch, reason}
	}
}

// busy returns the partitions with a change in flight, and the node to which each moves; 0 for none.
func (d *Desk) busy() map[starling.PartitionID]starling.NodeID {
	busy := make(map[starling.PartitionID]starling.NodeID, len(d.open))
	for _, t := range d.open {
		busy[t.order.Partition] = t.order.To
		if t.order.With != 0 {
			busy[t.order.With] = 0
		}
	}
	return busy
}

// unsent returns the orders that a node has not been sent, oldest first, and notes that it is.
func (d *Desk) unsent(n starling.NodeID) []cluster.Order {
	var orders []cluster.Order
	for _, t := range d.open {
		if t.node == n && !t.sent {
			t.sent = true
			orders = append(orders, t.order)
		}
	}
	slices.SortFunc(orders, func(a, b cluster.Order) int { return int(a.ID) - int(b.ID) })
	return orders
}

// close ends an order with what its node says of it; nil when it is not in flight.
func (d *Desk) close(id uint64, node starling.NodeID, err error) *ticket {
	t := d.open[id]
	if t == nil || t.node != node {
		return nil
	}
	delete(d.open, id)
	t.done <- err
	return t
}

// expire ends the orders that were given OrderTime ago and those whose epoch another change has ended, in the order in which
// they were given: the owner died, and its orders would hold up those that even out what is left. One that the map shows as
// done has succeeded: its answer was lost.
func (d *Desk) expire(m *partmap.Map, now time.Time) (late []*ticket, outcomes []error) {
	for _, t := range d.open {
		if now.Sub(t.began) >= cluster.OrderTime || m.Beaten(t.order.Change()) {
			late = append(late, t)
		}
	}
	slices.SortFunc(late, func(a, b *ticket) int { return int(a.order.ID) - int(b.order.ID) })
	for _, t := range late {
		var err error
		switch {
		case m.Beaten(t.order.Change()):
			err = starling.Errorf(starling.Moved, "change partition", "%s was changed otherwise meanwhile", t.order.Partition)
		case !m.Made(t.order.Change()):
			err = starling.Errorf(starling.Timeout, "change partition", "%s did not answer in %v: the change may still come", t.node, cluster.OrderTime)
		}
		delete(d.open, t.order.ID)
		t.done <- err
		outcomes = append(outcomes, err)
	}
	return late, outcomes
}

// planned returns the orders in flight, oldest first.
func (d *Desk) planned() []cluster.Planned {
	var out []*ticket
	for _, t := range d.open {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *ticket) int { return int(a.order.ID) - int(b.order.ID) })
	planned := make([]cluster.Planned, 0, len(out))
	for _, t := range out {
		planned = append(planned, cluster.Planned{Change: t.order.Change(), Owner: t.node, Reason: t.reason})
	}
	return planned
}
