package manager

import (
	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
)

// follow notes what happened to the map since it was last looked at. at is in Unix milliseconds.
func (d *Desk) follow(m *partmap.Map, at int64) {
	if m == d.seen {
		return
	}
	old := d.seen
	d.seen = m
	if old == nil {
		return // what was there before this reign is no event of it
	}
	before := make(map[starling.PartitionID]partmap.Partition, len(old.Partitions))
	for _, p := range old.Partitions {
		before[p.ID] = p
	}
	var parent cause
	for _, p := range m.Partitions {
		was, known := before[p.ID]
		delete(before, p.ID)
		if known && was.Epoch == p.Epoch {
			continue
		}
		e := cluster.Event{Time: at, Partition: p.ID, Range: p.Range, Epoch: p.Epoch, Owner: p.Owner, From: was.Owner}
		switch {
		case !known:
			e.What, e.From, e.Reason = "split", p.Owner, parent.reason // the part below was met just before
		case p.Owner == 0:
			e.What = "released"
		case p.Since == p.Epoch:
			e.What = "assigned"
		case p.Range.Hi != was.Range.Hi && partmap.Within(p.Range, was.Range):
			e.What = "split"
		case p.Range != was.Range:
			e.What = "merged"
		default:
			e.What = "moved"
		}
		if c := d.why[p.ID]; known && c.epoch == was.Epoch {
			e.Reason, parent = c.reason, c
		}
		d.record(e)
	}
	for _, p := range old.Partitions {
		if _, gone := before[p.ID]; gone {
			d.record(cluster.Event{Time: at, What: "gone", Partition: p.ID, Range: p.Range, Epoch: p.Epoch, From: p.Owner, Reason: d.why[p.ID].reason})
			delete(d.why, p.ID)
		}
	}
}

func (d *Desk) record(e cluster.Event) {
	d.counted++
	e.Number = d.counted
	if d.events = append(d.events, e); len(d.events) > cluster.HistoryMax {
		d.events = d.events[1:]
	}
}

// history returns the events after the one with this number.
func (d *Desk) history(q cluster.HistoryQuery) cluster.History {
	h := cluster.History{Claim: d.claim}
	for _, e := range d.events {
		if q.Claim != d.claim || e.Number > q.After {
			h.Events = append(h.Events, e)
		}
	}
	return h
}
