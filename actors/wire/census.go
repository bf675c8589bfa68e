package wire

import "starling"

// Kind returns the number on the wire.
func (*Census) Kind() Kind { return KindCensus }

// Kind returns the number on the wire.
func (*AtWork) Kind() Kind { return KindAtWork }

// census appends the messages between a partition that takes over and the frontends.
func (w *writer) census(m Message) {
	switch m := m.(type) {
	case *Census:
		w.u64(uint64(m.Partition), uint64(m.Epoch), uint64(m.Range.Lo), uint64(m.Range.Hi))
		w.nodes(m.Hosts)
	case *AtWork:
		w.u64(uint64(m.Partition), uint64(m.Epoch))
		w.nodes(m.Hosts)
		leases := m.Leases[:min(len(m.Leases), LeaseMax)]
		w.bool(m.More || len(leases) < len(m.Leases))
		w.u32(uint32(len(leases)))
		for k := range leases {
			w.lease(&leases[k])
			w.u64(uint64(leases[k].Key))
		}
	}
}

func (w *writer) nodes(ns []starling.NodeID) {
	ns = ns[:min(len(ns), HostMax)]
	w.u32(uint32(len(ns)))
	for _, n := range ns {
		w.u64(uint64(n))
	}
}

// readCensus reads them; nil for another kind.
func readCensus(kind Kind, r *reader) Message {
	switch kind {
	case KindCensus:
		return &Census{Partition: r.partition(), Epoch: r.epoch(), Range: starling.Range{Lo: starling.Key64(r.u64()), Hi: starling.Key64(r.u64())}, Hosts: r.nodes()}
	case KindAtWork:
		m := &AtWork{Partition: r.partition(), Epoch: r.epoch(), Hosts: r.nodes(), More: r.bool()}
		m.Leases = makeN[starling.Lease](r.count(LeaseMax, leaseSize+8))
		for k := range m.Leases {
			m.Leases[k] = r.lease()
			m.Leases[k].Key = starling.Key64(r.u64())
		}
		return m
	}
	return nil
}

func (r *reader) nodes() []starling.NodeID {
	ns := makeN[starling.NodeID](r.count(HostMax, 8))
	for k := range ns {
		ns[k] = r.node()
	}
	return ns
}
