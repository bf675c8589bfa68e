package partition

import (
	"context"
	"sync"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/internal/crash"
	"starling/sched"
	"starling/transport"
)

const (
	heldMax   = 64                     // states that wait for their place in the map
	heldTime  = 10 * time.Second       // how long one waits; after that the partition is recovered like after a death
	knowTime  = 300 * time.Millisecond // for looking the versions up before anything is frozen
	offerTime = 2 * time.Second        // between the steps of a hand-over, as its receiver sees it
)

// A held is the state of a partition that is about to be this node's.
type held struct {
	entry    partmap.Partition // as the map will show it, but for the id of a half that is split off
	state    *sched.Snapshot
	versions []sched.VersionKnown
	until    time.Time
	offer    uint64   // the number of its offer; 0 until hold draws one
	early    []*batch // what came for it before the map did
	events   int      // in early
}

// nextOffer numbers the offers of states in the order in which they came.
func (k *Keeper) nextOffer() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.offers++
	return k.offers
}

// hold keeps a state until the map gives its partition to this node. It reports false when there are too many, and when one
// that was offered later is held: then the owner gave this hand-over up and went on before it took the later state.
func (k *Keeper) hold(h *held) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.offer == 0 {
		k.offers++
		h.offer = k.offers
	}
	switch o := k.held[h.entry.Range]; {
	case o == nil && len(k.held) >= heldMax, o != nil && o.offer > h.offer:
		return false
	}
	h.until = k.cfg.Now().Add(heldTime)
	k.held[h.entry.Range] = h
	return true
}

// find returns the state that was handed over for an entry of the map, or nil. A state counts only for the very epoch that
// a hand-over made: where the map says that the epoch began by a recovery, its owner may have gone on after it was told.
func (k *Keeper) find(p partmap.Partition) *held {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.held[p.Range]; h != nil && h.entry.Epoch == p.Epoch && p.Since < p.Epoch {
		crash.Here(crash.BeforeTake)
		return h
	}
	return nil
}

// used drops a state whose actor can be reached now, and gives the actor what came before.
func (k *Keeper) used(a *actor) {
	k.mu.Lock()
	h := a.from
	if k.held[a.entry.Range] == h {
		delete(k.held, a.entry.Range)
	}
	early := h.early
	h.early, a.from = nil, nil
	k.mu.Unlock()
	for _, b := range early {
		a.ref.Tell(b, len(b.msgs))
	}
}

// forget drops the state of an entry that will not come.
func (k *Keeper) forget(p partmap.Partition) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.held[p.Range]; h != nil && h.entry.Epoch == p.Epoch {
		delete(k.held, p.Range)
	}
}

// drop forgets a state that was offered, unless a later one has taken its place.
func (k *Keeper) drop(h *held) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[h.entry.Range] == h {
		delete(k.held, h.entry.Range)
	}
}

// early keeps a batch for a partition whose state is here and whose place in the map is not known yet.
func (k *Keeper) early(p starling.PartitionID, from starling.NodeID, msgs []wire.Message) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.held {
		if h.entry.ID == p && h.events+len(msgs) <= k.cfg.MailboxMax {
			h.early = append(h.early, &batch{from, msgs})
			h.events += len(msgs)
			return true
		}
	}
	return false
}

// sweep ends what waited too long, and forgets strays.
func (k *Keeper) sweep(now time.Time) {
	k.arrived(now)
	k.mu.Lock()
	defer k.mu.Unlock()
	for r, h := range k.held {
		if now.After(h.until) {
			delete(k.held, r)
		}
	}
	k.sweepStrays(now)
}

// known looks versions up, those that can be in time.
func (k *Keeper) known(ctx context.Context, ids []starling.VersionID) []sched.VersionKnown {
	ctx, cancel := context.WithTimeout(ctx, knowTime)
	defer cancel()
	out := make([]sched.VersionKnown, len(ids))
	work := make(chan int)
	var group sync.WaitGroup
	for range min(16, len(ids)) {
		group.Go(func() {
			for i := range work {
				v, err := k.cfg.Catalog.Version(ctx, ids[i])
				if err != nil {
					continue // the scheduler asks for itself
				}
				if most, err := k.limitOf(ctx, v.Function.Account); err == nil {
					out[i] = sched.VersionKnown{Version: v, ConcurrencyMax: most}
				}
			}
		})
	}
	for i := range ids {
		work <- i
	}
	close(work)
	group.Wait()
	some := out[:0]
	for _, v := range out {
		if v.Version != nil {
			some = append(some, v)
		}
	}
	return some
}

// serve takes one partition's state from its owner.
func (k *Keeper) serve(s transport.Stream) {
	defer s.Cancel()
	if !s.Peer().Roles.Has(starling.RoleScheduler) {
		return
	}
	kind, body, err := hear(s, offerTime)
	if err != nil || kind != sayOffer {
		return
	}
	o, err := decodeOffer(body)
	if err == nil {
		err = k.admit(o.entry)
	}
	if err != nil {
		say(s, sayNo, words(err), offerTime)
		return
	}
	number := k.nextOffer()
	versions := k.known(context.Background(), o.versions)
	crash.Here(crash.BeforeReady)
	if say(s, sayReady, nil, offerTime) != nil {
		return
	}
	kind, body, err = hear(s, offerTime)
	if err != nil || kind != sayState {
		return
	}
	state, err := sched.DecodeSnapshot(body)
	h := &held{entry: o.entry, state: state, versions: versions, offer: number}
	if err == nil && !k.hold(h) {
		err = starling.Errorf(starling.Overloaded, "take partition", "%d hand-overs to this node are under way, the limit, or a later one of this partition is", heldMax)
	}
	if err != nil {
		say(s, sayNo, words(err), offerTime)
		return
	}
	crash.Here(crash.BeforeHeld)
	if say(s, sayHeld, nil, offerTime) != nil {
		k.drop(h) // the owner did not hear it, and proposes nothing
		return
	}
	crash.Here(crash.AfterHeld)
	if kind, _, err = hear(s, heldTime); err == nil && kind == sayForget {
		k.drop(h)
	}
}

// admit refuses a partition that this node could not begin.
func (k *Keeper) admit(p partmap.Partition) error {
	const op = "take partition"
	switch now := k.cfg.Now(); {
	case p.Owner != k.cfg.Node:
		return starling.Errorf(starling.Invalid, op, "%s is for %s and this is %s", p.ID, p.Owner, k.cfg.Node)
	case !k.ready.Load():
		return starling.Errorf(starling.Unavailable, op, "%s is not ready for partitions", k.cfg.Node)
	case k.cfg.Topology.LeaseUntil().Before(now):
		return starling.Errorf(starling.Unavailable, op, "%s has no node lease", k.cfg.Node)
	}
	return nil
}
