package wire

import (
	"encoding/binary"
	"time"

	"starling"
)

// Append appends the body of m to dst; the kind travels beside it. It allocates nothing when dst has room.
// Numbers are little-endian, durations whole microseconds, texts and lists are preceded by their length.
// Texts over their limit are cut: the end of a sentence is worth less than the message.
func Append(dst []byte, m Message) []byte {
	w := writer{dst}
	switch m := m.(type) {
	case *Acquire:
		w.u64(m.Call, uint64(m.Partition), uint64(m.Epoch), uint64(m.Key), uint64(m.Version))
		w.duration(m.Wait)
	case *Cancel:
		w.u64(uint64(m.Partition), m.Call)
	case *Release:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.leaseIDs(m.Leases)
		w.demand(m.Demand)
	case *Renew:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.leaseIDs(m.Leases)
		w.demand(m.Demand)
	case *Grant:
		w.u64(m.Call)
		w.lease(&m.Lease)
		w.u64(uint64(m.Lease.Key))
	case *Reject:
		w.u64(m.Call, uint64(m.Partition))
		w.u8(uint8(m.Reject))
		w.text(m.Reason, WordMax)
		w.text(m.Message, TextMax)
		w.duration(m.After)
	case *Recall:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.leaseIDs(m.Leases)
	case *Renewed:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.duration(m.TTL)
		w.leaseIDs(m.Leases)
	case *Census, *AtWork:
		w.census(m)
	default:
		w.host(m)
	}
	return w.b
}

// host appends the messages between partitions and hosts.
func (w *writer) host(m Message) {
	switch m := m.(type) {
	case *Start:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.instance(m.Instance)
		w.u64(uint64(m.Key), uint64(m.Version))
	case *Stop:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.instance(m.Instance)
		w.bool(m.Now)
	case *Fence:
		w.u64(uint64(m.Partition), uint64(m.Epoch), uint64(m.Range.Lo), uint64(m.Range.Hi), uint64(m.Since))
	case *Started:
		w.u64(uint64(m.Partition), uint64(m.Host))
		w.instance(m.Instance)
		w.duration(m.Start)
		w.duration(m.Init)
	case *StartFailed:
		w.u64(uint64(m.Partition), uint64(m.Host))
		w.instance(m.Instance)
		w.u8(uint8(m.Fault))
		w.text(m.Reason, WordMax)
		w.text(m.Message, TextMax)
	case *Exited:
		w.u64(uint64(m.Partition), uint64(m.Host))
		w.instance(m.Instance)
		w.text(m.Reason, WordMax)
	case *Fenced:
		w.u64(uint64(m.Partition), uint64(m.Epoch), uint64(m.Host))
		w.u32(uint32(len(m.Instances)))
		for i := range m.Instances {
			w.instanceReport(&m.Instances[i])
		}
		w.u32(uint32(len(m.Runs)))
		for _, run := range m.Runs {
			w.u64(uint64(run.Version))
			w.duration(run.Mean)
		}
	case *HostReport:
		w.hostReport(m)
	case *Relay:
		w.u64(uint64(m.From))
		w.u8(uint8(m.Body.Kind()))
		w.b = Append(w.b, m.Body)
	default:
		w.permit(m)
	}
}

// A writer appends fields to b.
type writer struct{ b []byte }

func (w *writer) u8(v uint8)   { w.b = append(w.b, v) }
func (w *writer) u16(v uint16) { w.b = binary.LittleEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }

func (w *writer) u64(vs ...uint64) {
	for _, v := range vs {
		w.b = binary.LittleEndian.AppendUint64(w.b, v)
	}
}

func (w *writer) bool(v bool) {
	if v {
		w.u8(1)
	} else {
		w.u8(0)
	}
}

func (w *writer) duration(d time.Duration) {
	w.u64(uint64(min(max(d, 0), durationMax) / time.Microsecond))
}

func (w *writer) text(s string, limit int) {
	if len(s) > limit {
		s = s[:limit]
	}
	w.u16(uint16(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) instance(i starling.InstanceID) {
	w.u64(uint64(i.Partition), uint64(i.Epoch), i.Seq)
}

func (w *writer) leaseIDs(ids []starling.LeaseID) {
	w.u32(uint32(len(ids)))
	for _, id := range ids {
		w.u64(uint64(id))
	}
}

func (w *writer) demand(ds []Demand) {
	w.u32(uint32(len(ds)))
	for _, d := range ds {
		w.u64(uint64(d.Version))
		w.u32(d.Arrivals)
		w.u32(d.Waiting)
		w.u32(d.InFlight)
		w.u32(d.Done)
		w.duration(d.Busy)
	}
}

func (w *writer) lease(l *starling.Lease) {
	w.u64(uint64(l.ID), uint64(l.Partition), uint64(l.Epoch), uint64(l.Version))
	w.instance(l.Instance)
	w.u64(uint64(l.Host))
	w.u16(l.Slots)
	w.duration(l.TTL)
	w.duration(l.Phases.Queue)
	w.duration(l.Phases.Place)
	w.duration(l.Phases.Start)
	w.duration(l.Phases.Init)
}

func (w *writer) instanceReport(p *InstanceReport) {
	w.instance(p.Instance)
	w.u64(uint64(p.Key), uint64(p.Version))
	w.bool(p.Ready)
	w.u16(p.Busy)
	w.duration(p.Idle)
	w.u32(uint32(len(p.Leases)))
	for i := range p.Leases {
		w.lease(&p.Leases[i])
	}
}

func (w *writer) hostReport(m *HostReport) {
	w.u64(uint64(m.Host))
	w.text(string(m.Zone), WordMax)
	w.u32(m.FreeMiB)
	w.u32(m.TotalMiB)
	w.u32(m.Instances)
	w.u32(m.Starting)
	w.u16(m.CPU)
	w.bool(m.Draining)
	others := 0
	for _, p := range m.Pools {
		if p.Isolation != "" {
			others++
		}
	}
	w.u32(uint32(len(m.Pools) - others)) // an older release knows these alone
	for _, p := range m.Pools {
		if p.Isolation == "" {
			w.text(string(p.Runtime), WordMax)
			w.u32(p.Ready)
		}
	}
	w.u32(uint32(len(m.Versions)))
	for _, v := range m.Versions {
		w.u64(uint64(v))
	}
	w.u64(uint64(m.Isolations))
	w.u32(uint32(others))
	for _, p := range m.Pools {
		if p.Isolation != "" {
			w.text(string(p.Isolation), WordMax)
			w.text(string(p.Runtime), WordMax)
			w.u32(p.Ready)
		}
	}
}
