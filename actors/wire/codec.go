package wire

import (
	"encoding/binary"
	"fmt"
	"time"

	"starling"
)

// The limits of the codec. A message that breaks one is refused as a whole by Decode; Append cuts strings and
// panics on nothing, because what a node sends is bounded by the limits of the parts that make it.
const (
	LeaseMax    = 4096   // leases in one Release, Renew, Recall or Renewed
	DemandMax   = 4096   // demand lines in one Release or Renew
	InstanceMax = 20_000 // instances in one Fenced
	HostMax     = 4096   // hosts in one Census
	PoolMax     = 64     // pools in one HostReport
	CodeMax     = 64     // versions whose code is unpacked, in one HostReport
	WordMax     = 256    // bytes of a reason, runtime or zone
	TextMax     = 4096   // bytes of a sentence for people
	durationMax = 366 * 24 * time.Hour
)

// A Decoder turns bytes into messages. It takes the four messages of the path of a call out of slabs, so that one
// costs a fraction of an allocation; a slab lives as long as any message in it, therefore keep no message for
// long: copy what you need. A Decoder is for one goroutine; its zero value is ready.
type Decoder struct {
	chunk    int
	acquires []Acquire
	grants   []Grant
	releases []Release
	renews   []Renew
	leases   []starling.LeaseID
	demands  []Demand
}

// slab is how many messages share one allocation.
const slab = 64

// take hands out the next element of a slab and makes a new slab when the old one is used up.
func take[T any](s *[]T, chunk int) *T {
	if len(*s) == 0 {
		*s = make([]T, max(chunk, 1))
	}
	p := &(*s)[0]
	*s = (*s)[1:]
	return p
}

// takeN hands out n elements in a row. The result has no spare capacity, so an append to it moves it away.
func takeN[T any](s *[]T, n, chunk int) []T {
	if n == 0 {
		return nil
	}
	if len(*s) < n {
		*s = make([]T, max(n, chunk))
	}
	p := (*s)[:n:n]
	*s = (*s)[n:]
	return p
}

// Decode reads one message of the kind. The message holds no part of body. An unknown kind, a body that ends too
// early and a count, string or duration over its limit are Invalid errors; bytes behind the last field known here
// are skipped, because a newer node may have added fields.
func Decode(kind Kind, body []byte) (Message, error) {
	d := Decoder{chunk: 1}
	return d.decode(kind, body)
}

// Decode is the function Decode with slabs for messages of the path of a call.
func (d *Decoder) Decode(kind Kind, body []byte) (Message, error) {
	d.chunk = slab
	return d.decode(kind, body)
}

func (d *Decoder) decode(kind Kind, body []byte) (Message, error) {
	r := reader{b: body}
	m := d.read(kind, &r)
	if m == nil {
		return nil, starling.Errorf(starling.Invalid, "decode message", "kind %d is unknown here", kind)
	}
	if r.fault != "" {
		return nil, starling.Errorf(starling.Invalid, "decode message", "kind %d with %d bytes: %s", kind, len(body), r.fault)
	}
	return m, nil
}

func (d *Decoder) read(kind Kind, r *reader) Message {
	switch kind {
	case KindAcquire:
		m := take(&d.acquires, d.chunk)
		*m = Acquire{Call: r.u64(), Partition: r.partition(), Epoch: r.epoch(), Key: starling.Key64(r.u64()),
			Version: r.version(), Wait: r.duration()}
		return m
	case KindCancel:
		return &Cancel{Partition: r.partition(), Call: r.u64()}
	case KindRelease:
		m := take(&d.releases, d.chunk)
		*m = Release{Partition: r.partition(), Epoch: r.epoch(), Leases: d.leaseIDs(r), Demand: d.demand(r)}
		return m
	case KindRenew:
		m := take(&d.renews, d.chunk)
		*m = Renew{Partition: r.partition(), Epoch: r.epoch(), Leases: d.leaseIDs(r), Demand: d.demand(r)}
		return m
	case KindGrant:
		m := take(&d.grants, d.chunk)
		*m = Grant{Call: r.u64(), Lease: r.lease()}
		m.Lease.Key = starling.Key64(r.added(0))
		return m
	case KindReject:
		return &Reject{Call: r.u64(), Partition: r.partition(), Reject: starling.Kind(r.u8()), Reason: r.text(WordMax),
			Message: r.text(TextMax), After: r.duration()}
	case KindRecall:
		return &Recall{Partition: r.partition(), Epoch: r.epoch(), Leases: d.leaseIDs(r)}
	case KindRenewed:
		return &Renewed{Partition: r.partition(), Epoch: r.epoch(), TTL: r.duration(), Leases: d.leaseIDs(r)}
	default:
		return readHost(kind, r)
	}
}

// readHost reads the messages between partitions and hosts; nil for an unknown kind.
func readHost(kind Kind, r *reader) Message {
	switch kind {
	case KindStart:
		return &Start{Partition: r.partition(), Epoch: r.epoch(), Instance: r.instance(), Key: starling.Key64(r.u64()), Version: r.version()}
	case KindStop:
		return &Stop{Partition: r.partition(), Epoch: r.epoch(), Instance: r.instance(), Now: r.bool()}
	case KindFence:
		m := &Fence{Partition: r.partition(), Epoch: r.epoch(), Range: starling.Range{Lo: starling.Key64(r.u64()), Hi: starling.Key64(r.u64())}}
		m.Since = starling.Epoch(r.added(uint64(m.Epoch)))
		return m
	case KindStarted:
		return &Started{Partition: r.partition(), Host: r.node(), Instance: r.instance(), Start: r.duration(), Init: r.duration()}
	case KindStartFailed:
		return &StartFailed{Partition: r.partition(), Host: r.node(), Instance: r.instance(), Fault: starling.Kind(r.u8()),
			Reason: r.text(WordMax), Message: r.text(TextMax)}
	case KindExited:
		return &Exited{Partition: r.partition(), Host: r.node(), Instance: r.instance(), Reason: r.text(WordMax)}
	case KindFenced:
		m := &Fenced{Partition: r.partition(), Epoch: r.epoch(), Host: r.node()}
		n := r.count(InstanceMax, instanceReportMin)
		m.Instances = makeN[InstanceReport](n)
		for i := range m.Instances {
			m.Instances[i] = r.instanceReport()
		}
		if len(r.b) > 0 {
			m.Runs = makeN[RunReport](r.count(InstanceMax, runReportSize))
		}
		for i := range m.Runs {
			m.Runs[i] = RunReport{Version: r.version(), Mean: r.duration()}
		}
		return m
	case KindHostReport:
		return readHostReport(r)
	case KindRelay:
		return readRelay(r)
	default:
		return readPermit(kind, r)
	}
}

func readRelay(r *reader) Message {
	m, kind := &Relay{From: r.node()}, Kind(r.u8())
	if kind == KindRelay {
		r.fail("a relay in a relay")
		return m
	}
	d := Decoder{chunk: 1}
	if m.Body = d.read(kind, r); m.Body == nil {
		r.fail(fmt.Sprintf("kind %d in a relay is unknown here", kind))
	}
	return m
}

func readHostReport(r *reader) Message {
	m := &HostReport{Host: r.node(), Zone: starling.Zone(r.text(WordMax)), FreeMiB: r.u32(), TotalMiB: r.u32(), Instances: r.u32(),
		Starting: r.u32(), CPU: r.u16(), Draining: r.bool()}
	m.Pools = makeN[PoolReport](r.count(PoolMax, 6))
	for i := range m.Pools {
		m.Pools[i] = PoolReport{Runtime: starling.Runtime(r.text(WordMax)), Ready: r.u32()}
	}
	m.Versions = makeN[starling.VersionID](r.count(CodeMax, 8))
	for i := range m.Versions {
		m.Versions[i] = r.version()
	}
	if len(r.b) == 0 { // an older release
		m.Isolations = starling.OnlyProcess
		return m
	}
	isolations := r.u64()
	if m.Isolations = starling.Isolations(isolations); uint64(m.Isolations) != isolations {
		r.fail("it has more isolations than there are")
	}
	for range r.count(PoolMax-len(m.Pools), 8) {
		p := PoolReport{Isolation: starling.Isolation(r.text(WordMax)), Runtime: starling.Runtime(r.text(WordMax)), Ready: r.u32()}
		if p.Isolation == "" {
			r.fail("a pool stands in the wrong list") // those without an isolation are in the first
		}
		m.Pools = append(m.Pools, p)
	}
	return m
}

func makeN[T any](n int) []T {
	if n == 0 {
		return nil
	}
	return make([]T, n)
}

func (d *Decoder) leaseIDs(r *reader) []starling.LeaseID {
	ids := takeN(&d.leases, r.count(LeaseMax, 8), d.chunk*8)
	for i := range ids {
		ids[i] = starling.LeaseID(r.u64())
	}
	return ids
}

func (d *Decoder) demand(r *reader) []Demand {
	ds := takeN(&d.demands, r.count(DemandMax, demandSize), d.chunk)
	for i := range ds {
		ds[i] = Demand{Version: r.version(), Arrivals: r.u32(), Waiting: r.u32(), InFlight: r.u32(), Done: r.u32(), Busy: r.duration()}
	}
	return ds
}

// Smallest encodings, so that a count cannot ask for more memory than its bytes could fill.
const (
	demandSize        = 8 + 4*4 + 8
	leaseSize         = 8*4 + 24 + 8 + 2 + 8 + 4*8
	runReportSize     = 8 + 8
	instanceReportMin = 24 + 8 + 8 + 1 + 2 + 8 + 4
)

// A reader takes fields off the front of b. After a fault every field is zero and the first fault stays.
type reader struct {
	b     []byte
	fault string
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.fail("it ends too early")
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) fail(why string) {
	if r.fault == "" {
		r.fault = why
	}
	r.b = nil
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// added reads a number that an older release does not send.
func (r *reader) added(missing uint64) uint64 {
	if len(r.b) == 0 {
		return missing
	}
	return r.u64()
}

// addedFlag reads a flag that an older release does not send.
func (r *reader) addedFlag() bool {
	b := r.added(0)
	if b > 1 {
		r.fail("a flag is neither 0 nor 1")
	}
	return b == 1
}

func (r *reader) bool() bool {
	b := r.u8()
	if b > 1 {
		r.fail("a flag is neither 0 nor 1")
	}
	return b == 1
}

func (r *reader) duration() time.Duration {
	us := r.u64()
	if us > uint64(durationMax/time.Microsecond) {
		r.fail("a duration is over a year")
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// count reads how many elements of at least size bytes follow.
func (r *reader) count(limit, size int) int {
	n := r.u32()
	if n > uint32(limit) {
		r.fail(fmt.Sprintf("a count of %d is over the limit of %d", n, limit))
		return 0
	}
	if int(n)*size > len(r.b) {
		r.fail("it ends too early")
		return 0
	}
	return int(n)
}

func (r *reader) text(limit int) string {
	n := int(r.u16())
	if n > limit {
		r.fail(fmt.Sprintf("a text of %d bytes is over the limit of %d", n, limit))
		return ""
	}
	return string(r.take(n))
}

func (r *reader) partition() starling.PartitionID { return starling.PartitionID(r.u64()) }
func (r *reader) epoch() starling.Epoch           { return starling.Epoch(r.u64()) }
func (r *reader) version() starling.VersionID     { return starling.VersionID(r.u64()) }
func (r *reader) node() starling.NodeID           { return starling.NodeID(r.u64()) }

func (r *reader) instance() starling.InstanceID {
	return starling.InstanceID{Partition: r.partition(), Epoch: r.epoch(), Seq: r.u64()}
}

func (r *reader) lease() starling.Lease {
	if len(r.b) < leaseSize {
		r.fail("it ends too early")
		return starling.Lease{}
	}
	return starling.Lease{ID: starling.LeaseID(r.u64()), Partition: r.partition(), Epoch: r.epoch(), Version: r.version(),
		Instance: r.instance(), Host: r.node(), Slots: r.u16(), TTL: r.duration(),
		Phases: starling.Phases{Queue: r.duration(), Place: r.duration(), Start: r.duration(), Init: r.duration()}}
}

func (r *reader) instanceReport() InstanceReport {
	p := InstanceReport{Instance: r.instance(), Key: starling.Key64(r.u64()), Version: r.version(), Ready: r.bool(), Busy: r.u16(), Idle: r.duration()}
	p.Leases = makeN[starling.Lease](r.count(starling.SlotsMax, leaseSize))
	for i := range p.Leases {
		p.Leases[i] = r.lease()
		p.Leases[i].Key = p.Key
	}
	return p
}
