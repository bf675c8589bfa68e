package handover

import (
	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched/ledger"
)

// Keys finds the key of an instance; false for one that is not known.
type Keys func(starling.InstanceID) (starling.Key64, bool)

// Route says to which of the successors of a partition a message is for that was sent to the partition id. Successors are
// those whose ranges meet the former one's, in order. Of several, what names no key, or an instance that is not known, goes to the one that kept the id: it may be
// meant for that one's present life, which tells by the epoch. Where none kept it, it goes to nobody: its sender repeats it.
func Route(id starling.PartitionID, m wire.Message, successors []partmap.Partition, keys Keys) []partmap.Partition {
	if len(successors) < 2 {
		return successors
	}
	var to []partmap.Partition
	switch m := m.(type) {
	case *wire.Relay:
		return Route(id, m.Body, successors, keys)
	case *wire.Acquire:
		return ownerOf(successors, m.Key)
	case *wire.Cancel, *wire.Release:
		return successors // each knows what it does not have
	case *wire.Started:
		to = ownerOfInstance(successors, keys, m.Instance)
	case *wire.StartFailed:
		to = ownerOfInstance(successors, keys, m.Instance)
	case *wire.Exited:
		to = ownerOfInstance(successors, keys, m.Instance)
	case *wire.Borrow:
		return ownerOf(successors, ledger.KeyOf(m.Account))
	}
	if len(to) > 0 {
		return to
	}
	for i, p := range successors {
		if p.ID == id {
			return successors[i : i+1]
		}
	}
	return nil
}

func ownerOf(successors []partmap.Partition, k starling.Key64) []partmap.Partition {
	for i, p := range successors {
		if p.Range.Contains(k) {
			return successors[i : i+1]
		}
	}
	return nil
}

func ownerOfInstance(successors []partmap.Partition, keys Keys, id starling.InstanceID) []partmap.Partition {
	if k, ok := keys(id); ok {
		return ownerOf(successors, k)
	}
	return nil
}
