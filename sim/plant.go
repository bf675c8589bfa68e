package sim

import (
	"starling/actors/wire"
	"starling/cluster"
)

// A Plant is a bug put into the simulator's own glue, so that a checker can be shown to see it.
type Plant uint8

const (
	PlantNothing    Plant = iota
	PlantTwoAnswers       // a frontend answers some calls twice
	PlantLoseAnswer       // a frontend forgets to answer some calls
	PlantNoGuard          // schedulers never hear that their node lease ends
	PlantCorruptNet       // the network swaps the instances of grants, and hosts do not look
	PlantNoFence          // hosts answer fences and do not obey them; nobody hears that a node lease ends, or frontends would begin nothing there
	PlantSlots            // hosts do not count the calls of an instance
	PlantMemory           // hosts are never full
	PlantLimit            // the catalog answers with ten times the limits
	PlantGap              // the leader pushes maps with a gap
	PlantZombie           // hosts say that an instance has ended and keep it
	PlantStale            // a scheduler is put back, now and then, as a copy of its value was before an event: half of its books are shared
	PlantTwice            // two changes of one partition at once
	PlantThaw             // an owner thaws although its proposal may come true
	PlantPermits          // both halves of a partition keep all permits
	PlantStaleState       // a target keeps the first state it was given, whatever became of it
	PlantHonour           // hosts honour leases from before the last recovery; node leases as with PlantNoFence
	PlantAgain            // a scheduler that failed is made anew although its state is being handed over
	PlantCensus           // a new owner does not ask frontends about hosts that died
	PlantHoard            // what borrowers say when they want no permits any more is lost
)

// corrupt names, in some grants, the instance of the grant before.
func (w *World) corrupt(g *wire.Grant) {
	last := w.checks.lastGrant
	w.checks.lastGrant = *g
	if last.Lease.ID != 0 && w.rng.IntN(4) == 0 {
		g.Lease.Instance, g.Lease.Host = last.Lease.Instance, last.Lease.Host
	}
}

// gap returns a topology whose map misses a key.
func gap(t *cluster.Topology) *cluster.Topology {
	c := *t
	c.Map = t.Map.Clone()
	if n := len(c.Map.Partitions); n > 1 {
		c.Map.Partitions[n-1].Range.Lo++
	}
	return &c
}
