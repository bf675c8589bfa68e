package sched

import (
	"encoding/binary"
	"math"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/ledger"
	"starling/sched/scale"
)

// DecodeSnapshot reads what EncodeSnapshot wrote. What is cut off, damaged, too large or of a later release is of kind Invalid.
// Memory is taken in proportion to the bytes given.
func DecodeSnapshot(b []byte) (*Snapshot, error) {
	const op = "decode partition"
	switch {
	case len(b) > SnapshotMax:
		return nil, starling.Errorf(starling.Invalid, op, "%d bytes are more than %d", len(b), SnapshotMax)
	case len(b) < len(snapshotMagic) || string(b[:len(snapshotMagic)]) != snapshotMagic:
		return nil, starling.Errorf(starling.Invalid, op, "this is no state of a partition")
	}
	r := snapshotReader{b: b[len(snapshotMagic):]}
	v := r.num()
	if v == 0 || v > snapshotVersion {
		return nil, starling.Errorf(starling.Invalid, op, "this release does not know version %d of the encoding: upgrade this node", v)
	}
	s := r.snapshot()
	for k := range s.Hosts {
		s.Hosts[k].Gives = starling.OnlyProcess
		if v > 1 {
			s.Hosts[k].Gives = starling.Isolations(r.below(math.MaxUint8))
		}
	}
	if v > 2 {
		r.settling(s)
	}
	switch {
	case r.bad != "":
		return nil, starling.Errorf(starling.Invalid, op, "the state is damaged: %s", r.bad)
	case len(r.b) > 0:
		return nil, starling.Errorf(starling.Invalid, op, "the state is damaged: %d bytes are left over", len(r.b))
	}
	return s, nil
}

// A snapshotReader reads from b until something is bad; after that it returns zeros.
type snapshotReader struct {
	b   []byte
	bad string
}

func (r *snapshotReader) fail(why string) {
	if r.bad == "" {
		r.bad, r.b = why, nil
	}
}

func (r *snapshotReader) num() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail("it ends too early")
		return 0
	}
	r.b = r.b[size:]
	return n
}

// below reads a number of at most most.
func (r *snapshotReader) below(most uint64) uint64 {
	n := r.num()
	if n > most {
		r.fail("a number is too large")
		return 0
	}
	return n
}

func (r *snapshotReader) count() int          { return int(r.below(math.MaxInt32)) }
func (r *snapshotReader) span() time.Duration { return time.Duration(r.below(uint64(spanMax))) }
func (r *snapshotReader) node() starling.NodeID {
	return starling.NodeID(r.num())
}
func (r *snapshotReader) key() starling.Key64 { return starling.Key64(r.num()) }

// some reads how many elements of at least size bytes follow.
func (r *snapshotReader) some(size int) int {
	n := r.num()
	if n > uint64(len(r.b)/size) {
		r.fail("it ends too early")
		return 0
	}
	return int(n)
}

// atMost is some with a limit.
func (r *snapshotReader) atMost(most, size int) int {
	n := r.some(size)
	if n > most {
		r.fail("a list is too long")
		return 0
	}
	return n
}

func (r *snapshotReader) text(most int) string {
	n := r.atMost(most, 1)
	if r.bad != "" {
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// flags reads a byte of n flags.
func (r *snapshotReader) flags(n int) (fs [8]bool) {
	if len(r.b) == 0 {
		r.fail("it ends too early")
		return fs
	}
	b := r.b[0]
	r.b = r.b[1:]
	if int(b) >= 1<<n {
		r.fail("a flag is unknown")
	}
	for k := range n {
		fs[k] = b&(1<<k) != 0
	}
	return fs
}

func (r *snapshotReader) keys() []starling.Range {
	rs := list[starling.Range](r.some(2))
	for k := range rs {
		rs[k] = starling.Range{Lo: r.key(), Hi: r.key()}
	}
	return rs
}

func (r *snapshotReader) homes() (hs [homesMax]starling.NodeID) {
	for k := range hs {
		hs[k] = r.node()
	}
	return hs
}

func (r *snapshotReader) learned() scale.State {
	if r.bad != "" {
		return scale.State{}
	}
	st, rest, err := scale.DecodeState(r.b)
	if err != nil {
		r.fail("what a governor has learned cannot be read")
		return scale.State{}
	}
	r.b = rest
	return st
}

// list makes a slice that is nil when empty, as encoders do not tell the two apart.
func list[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, n)
}

// The least bytes of each kind of element: they bound what a count may claim.
const (
	hostBytes, accountBytes, bookBytes, loanBytes = 10, 10, 8, 14
	versionBytes, rememberedBytes                 = 28, 7
	instanceBytes, leaseBytes, callBytes          = 9, 7, 6
	settleBytes                                   = 3
)

// The most elements of each kind. Those of a partition that works are a tenth of it at most.
const (
	hostMax       = 1 << 16
	rememberedMax = 1 << 18
	thingMax      = 1 << 20 // accounts, ledgers, versions, instances, leases, calls
)

func (r *snapshotReader) snapshot() *Snapshot {
	s := &Snapshot{Partition: starling.PartitionID(r.num()), Epoch: starling.Epoch(r.num()), Range: starling.Range{Lo: r.key(), Hi: r.key()}, Seq: r.num(),
		Generation: uint32(r.below(math.MaxUint32)), Number: r.num()}
	s.Hosts = list[HostState](r.atMost(hostMax, hostBytes))
	for k := range s.Hosts {
		s.Hosts[k] = r.host()
	}
	s.Accounts = list[AccountState](r.atMost(thingMax, accountBytes))
	for k := range s.Accounts {
		s.Accounts[k] = AccountState{ID: starling.AccountID(r.text(wire.WordMax)), Max: r.count(), Purse: ledger.PurseState{Permits: r.count(), Limit: r.count(),
			Peak: r.count(), Before: r.count(), Term: r.term(), Seen: r.num(), Looked: r.span()}}
	}
	s.Books = list[ledger.BookState](r.atMost(thingMax, bookBytes))
	for k := range s.Books {
		s.Books[k] = r.book()
	}
	s.Versions = list[VersionState](r.atMost(thingMax, versionBytes))
	for k := range s.Versions {
		var e SettleState
		if s.Versions[k], e = r.version(); e.Left > 0 {
			s.Settling = joinSettling(s.Settling, []SettleState{e})
		}
	}
	s.Remembered = list[RememberedState](r.atMost(rememberedMax, rememberedBytes))
	for k := range s.Remembered {
		s.Remembered[k] = RememberedState{ID: starling.VersionID(r.num()), Key: r.key(), Homes: r.homes(), Learned: r.learned()}
	}
	r.things(s)
	return s
}

func (r *snapshotReader) term() wire.Term {
	return wire.Term{Epoch: starling.Epoch(r.num()), Life: r.num()}
}

func (r *snapshotReader) things(s *Snapshot) {
	s.Instances = list[InstanceState](r.atMost(thingMax, instanceBytes))
	for k := range s.Instances {
		s.Instances[k] = InstanceState{ID: starling.InstanceID{Partition: starling.PartitionID(r.num()), Epoch: starling.Epoch(r.num()), Seq: r.num()}, Host: r.node(), Key: r.key(),
			Version: starling.VersionID(r.num()), Phase: InstancePhase(r.below(uint64(Lost))), Age: r.span(), Idle: r.span()}
	}
	s.Leases = list[LeaseState](r.atMost(thingMax, leaseBytes))
	for k := range s.Leases {
		l := LeaseState{Partition: starling.PartitionID(r.num()), Epoch: starling.Epoch(r.num()), ID: starling.LeaseID(r.num())}
		at := r.num()
		if at >= uint64(len(s.Instances)) {
			r.fail("a lease has no instance")
			return
		}
		l.Instance, l.Frontend, l.Recalled, l.Left = s.Instances[at].ID, r.node(), r.flags(1)[0], r.span()
		s.Leases[k] = l
	}
	s.Waiting = list[WaitingState](r.atMost(thingMax, callBytes))
	for k := range s.Waiting {
		s.Waiting[k] = WaitingState{Call: r.num(), Frontend: r.node(), Version: starling.VersionID(r.num()), Key: r.key(), Age: r.span(), Left: r.span()}
	}
}

func (r *snapshotReader) host() HostState {
	h := HostState{Node: r.node(), Zone: starling.Zone(r.text(wire.WordMax))}
	fs := r.flags(4)
	h.Fenced, h.Reported, h.Draining, h.Full = fs[0], fs[1], fs[2], fs[3]
	free, size := binary.Varint(r.b)
	if size <= 0 || free > math.MaxInt32 || free < math.MinInt32 {
		r.fail("a host's room is no number")
		return h
	}
	r.b = r.b[size:]
	h.FreeMiB, h.TotalMiB, h.CPU, h.Others, h.Avoid = int(free), r.count(), r.count(), r.count(), r.span()
	h.Pools = list[starling.Runtime](r.atMost(wire.PoolMax, 1))
	for k := range h.Pools {
		h.Pools[k] = starling.Runtime(r.text(wire.WordMax))
	}
	h.Code = list[starling.VersionID](r.atMost(wire.CodeMax, 1))
	for k := range h.Code {
		h.Code[k] = starling.VersionID(r.num())
	}
	return h
}

func (r *snapshotReader) book() ledger.BookState {
	b := ledger.BookState{Account: starling.AccountID(r.text(wire.WordMax)), Term: r.term(), Number: r.num(), Limit: r.count(), Known: r.flags(1)[0], Unheard: r.keys()}
	b.Loans = list[ledger.LoanState](r.atMost(thingMax, loanBytes))
	for k := range b.Loans {
		b.Loans[k] = ledger.LoanState{Node: r.node(), Partition: starling.PartitionID(r.num()), Epoch: starling.Epoch(r.num()), Seq: r.num(), Number: r.num(), Seen: r.num(),
			Keys: r.keys(), Held: r.count(), Need: r.count(), Want: r.count(), Allowed: r.count(), Behind: r.flags(1)[0], Heard: r.span(), Lent: r.span()}
	}
	return b
}

// settling reads the spans that settle.
func (r *snapshotReader) settling(s *Snapshot) {
	s.Settling = list[SettleState](r.atMost(thingMax, settleBytes))
	for k := range s.Settling {
		s.Settling[k] = SettleState{Key: r.key(), Withheld: r.count(), Left: r.span()}
	}
}

// version reads a version, and what earlier releases have its span observe.
func (r *snapshotReader) version() (v VersionState, e SettleState) {
	v = VersionState{ID: starling.VersionID(r.num()), Account: starling.AccountID(r.text(wire.WordMax)), Key: r.key(), Limit: r.count(), Failures: r.count(), Troubles: r.count(),
		Dead: r.count(), Want: r.count(), Keep: r.count()}
	e = SettleState{Key: spanOf(v.Key), Withheld: r.count()}
	v.Ahead = uint32(r.count())
	fs := r.flags(3)
	v.Gone, v.Floored = fs[0], fs[1]
	v.Homes = r.homes()
	v.Hold, v.IdleKeep, v.Again, e.Left = r.span(), r.span(), r.span(), r.span()
	if !fs[2] {
		v.Again = -1
	}
	v.Reason, v.Text, v.Trouble = r.text(wire.WordMax), r.text(wire.TextMax), r.text(wire.TextMax)
	if len(r.b) < 4 {
		r.fail("it ends too early")
		return v, e
	}
	v.Retries = math.Float32frombits(binary.BigEndian.Uint32(r.b))
	r.b = r.b[4:]
	if !(v.Retries >= 0 && v.Retries <= retryMax) {
		r.fail("a number is too large")
	}
	v.Learned = r.learned()
	return v, e
}
