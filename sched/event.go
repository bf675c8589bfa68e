package sched

import (
	"time"

	"starling"
	"starling/actors/wire"
)

// An Event is what a scheduler hears: one of the structs below.
type Event interface{ event() }

// A Message is what came over the post. From is the node whose certificate the connection showed. The scheduler
// keeps no part of Body after Step returned.
type Message struct {
	From starling.NodeID
	Body wire.Message
}

// Activate begins the life of the partition at Epoch: every host named is fenced, and nothing is granted before
// each of them has answered or is down. Only a fresh scheduler takes it. Instances are numbered from Seq+1; a
// scheduler that replaces one that failed in the same epoch needs a Seq that the first did not reach. Again says that it
// does so: hosts cannot tell the leases of the two apart, so it waits until all of the first have ended. Where hosts cannot be asked,
// it asks the frontends, and waits for them likewise, at most until all leases from before have ended.
type Activate struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Hosts     []starling.NodeID
	Seq       uint64
	Again     bool

	Cut     time.Time         // when the later of Range's borders was drawn, or any time after that: what is cut there may be uneven for a lease's time
	Fronts  []starling.NodeID // the living frontends
	Missing []starling.NodeID // hosts that died lately, and may go on for frontends that reach them: Fronts are asked about them
}

// Restore begins the life of the partition at Epoch with the state of the lives before it: of one that moved here, of a half of
// one, or of two that were joined. Nothing is asked first: the scheduler grants with the next LeaseUntil, under old names and new.
// The hosts are told of the epoch beside that. Only a fresh scheduler takes it. Partition, Epoch, Range and Since are those of the
// map; Seq is as in Activate. Versions are those of Snapshot.InUse as far as the catalog had them at hand; the others are looked up,
// and their calls wait for it.
//
// What hosts sent to the life before goes to each of its successors; what is not theirs they pass over.
type Restore struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Since     starling.Epoch // of the last recovery: leases of it and later are in the books
	Seq       uint64
	Snapshot  Snapshot
	Versions  []VersionKnown
}

// Freeze has an active scheduler decide nothing from now on: nothing is granted, renewed, started, stopped or lent, and it
// wants no Tick. Its Snapshot may be handed over. It takes Thaw, Deactivate and LeaseUntil and drops every other event: keep
// them, and give them to it after Thaw or to its successor. One that is not active stays as it is; see Phase.
type Freeze struct{}

// Thaw has a frozen scheduler go on in its epoch, because nobody took its state over. Give it the messages that were kept
// before the next Tick.
type Thaw struct{}

// Deactivate ends the life of the partition here: every waiting call is told Moved. A frozen scheduler answers nobody: its calls
// wait at its successor. Where there is none, Thaw it first.
type Deactivate struct{}

// LeaseUntil says until when this node is certainly a member. The scheduler grants and starts nothing from
// Config.Guard before that instant on, until it hears of a later one.
type LeaseUntil struct{ Until time.Time }

// VersionKnown answers a lookup. Version is shared and never changed.
type VersionKnown struct {
	Version        *starling.Version
	ConcurrencyMax int // the account's
}

// Provisioned names all versions whose owners want instances at all times, and replaces what was named before. Those
// of other partitions' spans are passed over.
type Provisioned struct{ Versions []VersionKnown }

// AccountKnown answers the lookup of an account: its limit in slots, 0 when it does not exist any more.
type AccountKnown struct {
	Account        starling.AccountID
	ConcurrencyMax int
}

// VersionGone answers a lookup of a version that does not exist any more.
type VersionGone struct{ Version starling.VersionID }

// NodeDown says that the manager declared a node dead: its instances are gone, its waiting calls forgotten.
type NodeDown struct{ Node starling.NodeID }

// Tick lets time pass. Give one at NextTick, or at least every 100 ms while there is work.
type Tick struct{}

func (Message) event()      {}
func (Activate) event()     {}
func (Restore) event()      {}
func (Freeze) event()       {}
func (Thaw) event()         {}
func (Deactivate) event()   {}
func (LeaseUntil) event()   {}
func (VersionKnown) event() {}
func (VersionGone) event()  {}
func (Provisioned) event()  {}
func (AccountKnown) event() {}
func (NodeDown) event()     {}
func (Tick) event()         {}

// An Effect is what the caller must do. With a Body: send it, to the frontend or host part of node To when Partition is
// 0 and Keys is empty; to Partition on node To; or, when Keys is set, to every partition with keys in that range, at the
// owner that the newest map names. Without a Body: look up Account or Version, and come back with AccountKnown,
// VersionKnown or VersionGone.
//
// Bodies are *wire.Grant, *wire.Reject, *wire.Recall and *wire.Renewed to frontends, *wire.Start, *wire.Stop and
// *wire.Fence to hosts, *wire.Borrow, *wire.Lend and *wire.Audit to partitions. They and their slices are used again by
// the next Step: copy what outlives it.
type Effect struct {
	To        starling.NodeID
	Partition starling.PartitionID
	Keys      starling.Range
	Body      wire.Message
	Version   starling.VersionID
	Account   starling.AccountID
}

// A scratch hands out values that are used again after reset, so that effects cost no allocation in steady state.
type scratch[T any] struct {
	items []*T
	used  int
}

func (s *scratch[T]) next() *T {
	if s.used == len(s.items) {
		s.items = append(s.items, new(T))
	}
	s.used++
	return s.items[s.used-1]
}

// outbox collects the effects of one step.
type outbox struct {
	effects []Effect
	grants  scratch[wire.Grant]
	rejects scratch[wire.Reject]
	recalls scratch[wire.Recall]
	renews  scratch[wire.Renewed]
	starts  scratch[wire.Start]
	stops   scratch[wire.Stop]
	fences  scratch[wire.Fence]
	borrows scratch[wire.Borrow]
	lends   scratch[wire.Lend]
	audits  scratch[wire.Audit]
}

func (o *outbox) reset() {
	o.effects = o.effects[:0]
	o.grants.used, o.rejects.used, o.recalls.used, o.renews.used = 0, 0, 0, 0
	o.starts.used, o.stops.used, o.fences.used = 0, 0, 0
	o.borrows.used, o.lends.used, o.audits.used = 0, 0, 0
}

func (o *outbox) send(to starling.NodeID, m wire.Message) {
	o.effects = append(o.effects, Effect{To: to, Body: m})
}
