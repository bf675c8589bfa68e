package partition

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched"
)

// earlyTime is how long a message waits for its partition to begin here. The newest map reaches all nodes within a part of it;
// who sent the message asks again a little later.
const earlyTime = 200 * time.Millisecond

// An arrival is a batch that came before its partition could be reached here: the sender heard of the map before this node
// did, or the keeper is just beginning the partition.
type arrival struct {
	at   time.Time
	to   starling.PartitionID
	from starling.NodeID
	msgs []wire.Message
}

// await keeps a batch for a partition that this node may own in a moment, in the place of a refusal that would cost its sender a
// pause and another try: after a death all frontends ask at once, and all hosts answer while partitions still begin. It reports
// false when there is nothing to wait for.
func (k *Keeper) await(p starling.PartitionID, from starling.NodeID, msgs []wire.Message) bool {
	if !k.mayCome(p, msgs) {
		return false
	}
	k.mu.Lock()
	if a := (*k.actors.Load())[p]; a != nil { // it came while we looked
		k.mu.Unlock()
		k.tell(a, from, msgs)
		return true
	}
	defer k.mu.Unlock()
	if !k.ready.Load() || k.waiting+len(msgs) > k.cfg.MailboxMax {
		return false
	}
	k.waiting += len(msgs)
	k.arrivals = append(k.arrivals, arrival{k.cfg.Now(), p, from, msgs})
	return true
}

// mayCome reports whether a batch is for a life of p that this node may begin: the map gives p to us, or calls in it are of a
// later epoch than the map knows. What is no call does not say of which life it is, and nobody answers it otherwise.
func (k *Keeper) mayCome(p starling.PartitionID, msgs []wire.Message) bool {
	newest := k.cfg.Topology.Map()
	if newest == nil {
		return true
	}
	known, ok := newest.ByID(p)
	if !ok || known.Owner == k.cfg.Node {
		return true
	}
	e, calls := lastEpoch(msgs)
	return !calls || e > known.Epoch
}

// knowsMore reports whether the sender of a batch has seen a later epoch of p than this node.
func (k *Keeper) knowsMore(p starling.PartitionID, msgs []wire.Message) bool {
	known, ok := k.cfg.Topology.Map().ByID(p)
	e, calls := lastEpoch(msgs)
	return ok && calls && e > known.Epoch
}

// lastEpoch returns the latest epoch that a call of the batch is for; calls is false when there is none in it.
func lastEpoch(msgs []wire.Message) (e starling.Epoch, calls bool) {
	for _, m := range msgs {
		if r, ok := m.(*wire.Relay); ok {
			m = r.Body
		}
		if q, ok := m.(*wire.Acquire); ok {
			e, calls = max(e, q.Epoch), true
		}
	}
	return e, calls
}

// arrived gives what waited to the partitions that can be reached now, in the order in which it came, and refuses what has
// waited in vain.
func (k *Keeper) arrived(now time.Time) {
	var here, vain, kept []arrival
	k.mu.Lock()
	live := *k.actors.Load() // under the lock: whoever awaits after this sees the same or newer
	for _, w := range k.arrivals {
		switch {
		case live[w.to] != nil:
			here = append(here, w)
		case k.ready.Load() && now.Sub(w.at) < earlyTime && k.mayCome(w.to, w.msgs):
			kept = append(kept, w)
			continue
		default:
			vain = append(vain, w)
		}
		k.waiting -= len(w.msgs)
	}
	k.arrivals = kept
	k.mu.Unlock()
	for _, w := range here {
		k.tell(live[w.to], w.from, w.msgs)
	}
	for _, w := range vain {
		k.strange(w.to, w.from, w.msgs)
	}
}

// tell gives a batch to a partition that lives here.
func (k *Keeper) tell(a *actor, from starling.NodeID, msgs []wire.Message) {
	if !a.ref.Tell(&batch{from, msgs}, len(msgs)) {
		k.refused.Add(len(msgs))
		k.refuse(a.entry.ID, from, msgs, starling.Overloaded, "MailboxFull", "the scheduler is overloaded: retry later")
	}
}

// strange refuses a batch for a partition that does not live here.
func (k *Keeper) strange(p starling.PartitionID, from starling.NodeID, msgs []wire.Message) {
	k.unowned.Add(len(msgs))
	k.refuse(p, from, msgs, starling.Moved, sched.ReasonMoved, "this node does not own the partition: ask its owner")
}
