package cluster

import (
	"context"
	"sync"
	"sync/atomic"

	"starling"
	"starling/cluster/partmap"
)

// An orderBox holds the leader's orders until this node's keeper takes them, and their outcomes until they are told.
type orderBox struct {
	queue chan Order
	taken atomic.Bool // somebody reads queue
	mu    sync.Mutex  // a leaf: guards done
	done  []OrderDone
}

// Orders returns the orders of the manager that leads, for the one who carries them out: the first call tells the
// cluster that this node takes orders. The queue is bounded and never closed; an order that finds it full is refused as
// Overloaded. Answer each with OrderDone, and drop one whose epoch has passed.
func (v *View) Orders() <-chan Order {
	v.orders.taken.Store(true)
	return v.orders.queue
}

// OrderDone tells the leader, with a heartbeat that is sent at once, what came of an order: nil when the map was
// changed as ordered. It never blocks. The leader forgets an order after OrderTime by itself.
func (v *View) OrderDone(id uint64, err error) {
	v.orders.mu.Lock()
	if v.orders.done = append(v.orders.done, OrderDone{ID: id, Refusal: refusalOf(err)}); len(v.orders.done) > doneMax {
		v.orders.done = v.orders.done[1:]
	}
	v.orders.mu.Unlock()
	v.beat()
}

// take queues one order, or refuses it.
func (v *View) take(o Order) {
	if v.orders.taken.Load() {
		select {
		case v.orders.queue <- o:
			return
		default:
		}
	}
	v.OrderDone(o.ID, starling.Errorf(starling.Overloaded, "take order", "%d orders wait on %s, the limit", orderMax, v.cfg.Node.ID).With("OrdersFull"))
}

// outcomes takes what is to be told with the next heartbeat. What is lost with a session was known to the leader of that
// session only, which forgets the order in time.
func (b *orderBox) outcomes() []OrderDone {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := b.done
	b.done = nil
	return done
}

// ProposeChange proposes one change of a partition that this node owns: a Move, Split or Merge after the owner froze, or
// an Assign to itself. It waits until ctx ends (or 15 s when it has no end).
//
// With a nil error the map was changed by it. With known set the error is a refusal: the map was not changed by it, nor by an
// equal proposal before, and will not be; Moved means that the partition's epoch has passed. Otherwise the change may have been
// made, or may be made later, unless the error is Moved.
func (v *View) ProposeChange(ctx context.Context, c partmap.Change) (known bool, err error) {
	raw, err := EncodeCommand(ChangeMap{Changes: []partmap.Change{c}})
	if err != nil {
		return true, err
	}
	a, uncertain, err := v.retry(ctx, MessagePropose, always{Proposal{Command: raw}})
	if err == nil && len(a.reply.Refused) > 0 {
		err = starling.Errorf(a.reply.refusedAs(0), "change partition", "%s", a.reply.Refused[0])
	}
	switch {
	case err == nil:
		return true, nil
	case starling.KindOf(err) != starling.Moved:
		return !uncertain && starling.KindOf(err) != starling.Internal, err // Internal: the answer could not be read
	}
	// An earlier try, or an earlier proposal of the same change, may have been carried out and its answer lost. The map tells,
	// unless more happened since, now that it cannot come any more: a refusal of the same change proves that its epoch has passed.
	now, readErr := v.Read(ctx, Query{What: QueryTopology})
	if readErr != nil {
		return false, err
	}
	if now.Topology == nil || now.Topology.Map == nil {
		return false, err
	}
	if now.Topology.Map.Made(c) {
		return true, nil
	}
	return now.Topology.Map.Beaten(c), err
}
