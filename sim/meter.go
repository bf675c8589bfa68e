package sim

import (
	"time"

	"starling/cluster"
	"starling/cluster/partmap"
)

// A Meter counts what crosses the sessions of leading managers, as it is encoded on the wire, and what planning takes.
type Meter struct {
	Clock func() time.Duration // real time, for Planning
	Whole bool                 // every change is pushed as a whole topology, as releases before deltas did

	Heartbeats, Renewals, Pushes Count
	Rounds                       int // of planning
	Planning                     time.Duration
}

// A Count counts messages and their bytes.
type Count struct{ Messages, Bytes uint64 }

func (c *Count) add(kind cluster.MessageKind, v any) {
	raw, err := cluster.EncodeMessage(kind, v)
	if err != nil {
		panic(err) // a message of ours that cannot be encoded
	}
	c.Messages, c.Bytes = c.Messages+1, c.Bytes+uint64(len(raw))
}

// heard counts a heartbeat, with the load and the reports of a real node's. A nil Meter counts nothing.
func (m *Meter) heard(n *node, h cluster.Heartbeat) {
	if m == nil {
		return
	}
	h.Seq, h.Takes = uint64(n.w.now/time.Millisecond), true
	h.Load = cluster.Load{Partitions: 40, Acquires: 20_000, FreeMiB: 30_000, TotalMiB: 60_000, Instances: 200, CPU: 500}
	if n.view.beats++; n.view.beats%5 == 0 { // cluster.ReportInterval
		h.Report = &cluster.Report{Rows: []partmap.Load{}}
		for _, p := range n.view.topology.Map.OwnedBy(n.id) {
			if len(h.Report.Rows) < partmap.LoadMax {
				h.Report.Rows = append(h.Report.Rows, partmap.Load{Partition: p.ID, Epoch: p.Epoch, Acquires: 500, Leases: 300, CPU: 40})
			}
		}
	}
	m.Heartbeats.add(cluster.MessageHeartbeat, h)
}

func (m *Meter) renewed(length time.Duration, index uint64) {
	if m != nil {
		m.Renewals.add(cluster.MessageRenewal, cluster.Renewal{Seq: 100_000, Lease: length.Microseconds(), Index: index})
	}
}

func (m *Meter) pushed(kind cluster.MessageKind, v any) {
	if m != nil {
		m.Pushes.add(kind, v)
	}
}

// planning runs f and counts its time.
func (m *Meter) planning(f func()) {
	if m == nil {
		f()
		return
	}
	began := m.Clock()
	f()
	m.Rounds, m.Planning = m.Rounds+1, m.Planning+m.Clock()-began
}
