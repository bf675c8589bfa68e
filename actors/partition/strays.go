package partition

import (
	"maps"
	"time"

	"starling"
	"starling/actors/partition/handover"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// strayTime is how long what still comes to a partition's former place is handed on: every node has the new map long
// before.
const strayTime = 2 * time.Second

// A stray says what becomes of messages for a partition that was changed lately.
type stray struct {
	over  starling.Range                         // that it had
	keys  map[starling.InstanceID]starling.Key64 // of its instances, when it was split
	until time.Time                              // zero while the change is under way
}

func (s *stray) key(id starling.InstanceID) (starling.Key64, bool) {
	k, ok := s.keys[id]
	return k, ok
}

// expect has the messages for these partitions follow them.
func (k *Keeper) expect(ps []starling.PartitionID, s []*stray) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changeStrays(func(m map[starling.PartitionID]*stray) {
		for i, p := range ps {
			m[p] = s[i]
		}
	})
}

// expectNo ends that; the change did not come about.
func (k *Keeper) expectNo(ps []starling.PartitionID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changeStrays(func(m map[starling.PartitionID]*stray) {
		for _, p := range ps {
			delete(m, p)
		}
	})
}

// changeStrays replaces the map of strays; nil stands for none, which is what there is nearly always. The caller holds mu.
func (k *Keeper) changeStrays(edit func(map[starling.PartitionID]*stray)) {
	m := map[starling.PartitionID]*stray{}
	if old := k.strays.Load(); old != nil {
		m = maps.Clone(*old)
	}
	edit(m)
	if len(m) == 0 {
		k.strays.Store(nil)
		return
	}
	k.strays.Store(&m)
}

// sweepStrays forgets those whose time is over. The caller holds mu.
func (k *Keeper) sweepStrays(now time.Time) {
	if k.strays.Load() == nil {
		return
	}
	k.changeStrays(func(m map[starling.PartitionID]*stray) {
		maps.DeleteFunc(m, func(_ starling.PartitionID, s *stray) bool { return !s.until.IsZero() && now.After(s.until) })
	})
}

// strayOf returns what becomes of messages for p; nil when they are for p itself.
func (k *Keeper) strayOf(p starling.PartitionID) *stray {
	m := k.strays.Load()
	if m == nil {
		return nil
	}
	return (*m)[p]
}

// divert hands each message for p to the successors that the newest map names, here or on another node.
func (k *Keeper) divert(p starling.PartitionID, s *stray, from starling.NodeID, msgs []wire.Message) {
	successors := k.cfg.Topology.Map().Overlapping(s.over)
	here := map[starling.PartitionID][]wire.Message{}
	for _, m := range msgs {
		for _, next := range handover.Route(p, m, successors, s.key) {
			if next.Owner == k.cfg.Node {
				here[next.ID] = append(here[next.ID], m)
				continue
			}
			k.relay(next, from, m)
		}
	}
	for p, ms := range here {
		k.deliver(p, from, ms)
	}
}

// relay hands a message on to another node's partition. What was handed on once already goes under its first sender.
func (k *Keeper) relay(p partmap.Partition, from starling.NodeID, m wire.Message) {
	if p.Owner == 0 {
		return // asked again
	}
	k.relayed.Inc()
	if r, ok := m.(*wire.Relay); ok {
		from, m = r.From, r.Body
	}
	k.cfg.Post.Send(wire.Address{Node: p.Owner, Partition: p.ID}, &wire.Relay{From: from, Body: m})
}
