package sched

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/ledger"
)

// SnapshotMax bounds the bytes of an encoded snapshot.
const SnapshotMax = 64 << 20

// snapshotVersion is that of the encoding. A later release reads all earlier ones. Version 2 says at its end which isolations
// the hosts give, and version 3 after that which spans settle; what is not needed is not written, so that earlier releases can read it.
const snapshotVersion = 3

// snapshotMagic begins every encoded snapshot.
const snapshotMagic = "SSNP"

// spanMax bounds every span of time in a snapshot.
const spanMax = past

// EncodeSnapshot returns s as bytes for DecodeSnapshot. Where they would be more than SnapshotMax, what is remembered of versions
// not in use stays behind; if that is not enough the error is of kind Overloaded.
func EncodeSnapshot(s *Snapshot) ([]byte, error) {
	for _, remembered := range [][]RememberedState{s.Remembered, nil} {
		w := snapshotWriter{b: make([]byte, 0, 1024+128*len(s.Versions)+48*len(s.Instances)+32*len(s.Leases)+100*len(remembered))}
		w.snapshot(s, remembered)
		if len(w.b) <= SnapshotMax {
			return w.b, nil
		}
	}
	return nil, starling.Errorf(starling.Overloaded, "encode partition", "the state of %s has more than %d bytes: split the partition first", s.Partition, SnapshotMax)
}

type snapshotWriter struct{ b []byte }

func (w *snapshotWriter) num(ns ...uint64) {
	for _, n := range ns {
		w.b = binary.AppendUvarint(w.b, n)
	}
}

// count appends numbers that are never below 0.
func (w *snapshotWriter) count(ns ...int) {
	for _, n := range ns {
		w.b = binary.AppendUvarint(w.b, uint64(min(max(n, 0), math.MaxInt32)))
	}
}

func (w *snapshotWriter) span(ds ...time.Duration) {
	for _, d := range ds {
		w.b = binary.AppendUvarint(w.b, uint64(min(max(d, 0), spanMax)))
	}
}

func (w *snapshotWriter) text(s string, most int) {
	s = s[:min(len(s), most)]
	w.b = binary.AppendUvarint(w.b, uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *snapshotWriter) flags(fs ...bool) {
	b := byte(0)
	for k, f := range fs {
		if f {
			b |= 1 << k
		}
	}
	w.b = append(w.b, b)
}

func (w *snapshotWriter) keys(rs []starling.Range) {
	w.count(len(rs))
	for _, r := range rs {
		w.num(uint64(r.Lo), uint64(r.Hi))
	}
}

func (w *snapshotWriter) homes(hs [homesMax]starling.NodeID) {
	for _, h := range hs {
		w.num(uint64(h))
	}
}

func (w *snapshotWriter) snapshot(s *Snapshot, remembered []RememberedState) {
	w.b = append(w.b, snapshotMagic...)
	version := uint64(1)
	for k := range s.Hosts {
		if s.Hosts[k].Gives != starling.OnlyProcess {
			version = 2
		}
	}
	if len(s.Settling) > 0 {
		version = snapshotVersion
	}
	w.num(version, uint64(s.Partition), uint64(s.Epoch), uint64(s.Range.Lo), uint64(s.Range.Hi), s.Seq, uint64(s.Generation), s.Number)
	w.count(len(s.Hosts))
	for k := range s.Hosts {
		w.host(&s.Hosts[k])
	}
	w.count(len(s.Accounts))
	for k := range s.Accounts {
		a := &s.Accounts[k]
		w.text(string(a.ID), wire.WordMax)
		w.count(a.Max, a.Purse.Permits, a.Purse.Limit, a.Purse.Peak, a.Purse.Before)
		w.num(uint64(a.Purse.Term.Epoch), a.Purse.Term.Life, a.Purse.Seen)
		w.span(a.Purse.Looked)
	}
	w.count(len(s.Books))
	for k := range s.Books {
		w.book(&s.Books[k])
	}
	w.count(len(s.Versions))
	for k := range s.Versions {
		w.version(&s.Versions[k])
	}
	w.count(len(remembered))
	for k := range remembered {
		r := &remembered[k]
		w.num(uint64(r.ID), uint64(r.Key))
		w.homes(r.Homes)
		w.b = r.Learned.Append(w.b)
	}
	w.things(s)
	if version > 1 {
		for k := range s.Hosts {
			w.num(uint64(s.Hosts[k].Gives))
		}
	}
	if version > 2 {
		w.settling(s)
	}
}

func (w *snapshotWriter) settling(s *Snapshot) {
	w.count(len(s.Settling))
	for _, e := range s.Settling {
		w.num(uint64(e.Key))
		w.count(e.Withheld)
		w.span(e.Left)
	}
}

// things appends instances, leases and calls. A lease names its instance by its place.
func (w *snapshotWriter) things(s *Snapshot) {
	place := make(map[starling.InstanceID]int, len(s.Instances))
	w.count(len(s.Instances))
	for k := range s.Instances {
		i := &s.Instances[k]
		place[i.ID] = k
		w.num(uint64(i.ID.Partition), uint64(i.ID.Epoch), i.ID.Seq, uint64(i.Host), uint64(i.Key), uint64(i.Version), uint64(i.Phase))
		w.span(i.Age, i.Idle)
	}
	leases := s.Leases
	orphan := func(l LeaseState) bool { _, ok := place[l.Instance]; return !ok }
	if slices.ContainsFunc(leases, orphan) {
		leases = slices.DeleteFunc(slices.Clone(leases), orphan)
	}
	w.count(len(leases))
	for k := range leases {
		l := &leases[k]
		w.num(uint64(l.Partition), uint64(l.Epoch), uint64(l.ID), uint64(place[l.Instance]), uint64(l.Frontend))
		w.flags(l.Recalled)
		w.span(l.Left)
	}
	w.count(len(s.Waiting))
	for k := range s.Waiting {
		c := &s.Waiting[k]
		w.num(c.Call, uint64(c.Frontend), uint64(c.Version), uint64(c.Key))
		w.span(c.Age, c.Left)
	}
}

func (w *snapshotWriter) host(h *HostState) {
	w.num(uint64(h.Node))
	w.text(string(h.Zone), wire.WordMax)
	w.flags(h.Fenced, h.Reported, h.Draining, h.Full)
	w.b = binary.AppendVarint(w.b, int64(min(max(h.FreeMiB, math.MinInt32), math.MaxInt32)))
	w.count(h.TotalMiB, h.CPU, h.Others)
	w.span(h.Avoid)
	pools, code := h.Pools[:min(len(h.Pools), wire.PoolMax)], h.Code[:min(len(h.Code), wire.CodeMax)]
	w.count(len(pools))
	for _, p := range pools {
		w.text(string(p), wire.WordMax)
	}
	w.count(len(code))
	for _, v := range code {
		w.num(uint64(v))
	}
}

func (w *snapshotWriter) book(b *ledger.BookState) {
	w.text(string(b.Account), wire.WordMax)
	w.num(uint64(b.Term.Epoch), b.Term.Life, b.Number)
	w.count(b.Limit)
	w.flags(b.Known)
	w.keys(b.Unheard)
	w.count(len(b.Loans))
	for k := range b.Loans {
		l := &b.Loans[k]
		w.num(uint64(l.Node), uint64(l.Partition), uint64(l.Epoch), l.Seq, l.Number, l.Seen)
		w.keys(l.Keys)
		w.count(l.Held, l.Need, l.Want, l.Allowed)
		w.flags(l.Behind)
		w.span(l.Heard, l.Lent)
	}
}

func (w *snapshotWriter) version(v *VersionState) {
	w.num(uint64(v.ID))
	w.text(string(v.Account), wire.WordMax)
	w.num(uint64(v.Key))
	w.count(v.Limit, v.Failures, v.Troubles, v.Dead, v.Want, v.Keep, 0, int(v.Ahead)) // 0: earlier releases settled by version
	w.flags(v.Gone, v.Floored, v.Again >= 0)
	w.homes(v.Homes)
	w.span(v.Hold, v.IdleKeep, v.Again, 0)
	w.text(v.Reason, wire.WordMax)
	w.text(v.Text, wire.TextMax)
	w.text(v.Trouble, wire.TextMax)
	w.b = binary.BigEndian.AppendUint32(w.b, math.Float32bits(v.Retries))
	w.b = v.Learned.Append(w.b)
}
