package cluster

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"

	"starling"
	"starling/cluster/registry"
)

// A snapshot is: magic, u16 version; then records, each u32 length, u8 kind, CBOR of that length; then an end
// record of kind 0 whose 8 bytes count the records, and u32 CRC-32C of everything before it. All numbers are
// little-endian. Records come in an order that depends on the state alone, so equal states are equal bytes.
const (
	snapshotMagic   = "STARLING"
	snapshotVersion = 1
	recordMax       = 1 << 20 // bytes of one record; the map of 4,096 partitions has 160 KiB
	recordHead      = 5       // u32 length, u8 kind
)

// The kinds of records, fixed for ever.
const (
	recordEnd      uint8 = 0
	recordHeader   uint8 = 1
	recordNode     uint8 = 2
	recordToken    uint8 = 3
	recordAccount  uint8 = 4
	recordKey      uint8 = 5
	recordFunction uint8 = 6
	recordVersion  uint8 = 7
	recordRestore  uint8 = 8  // a part of a backup that is being restored; before the cluster is made
	recordLayer    uint8 = 9  // since level 4
	recordNetwork  uint8 = 10 // since level 4
	recordRequest  uint8 = 11 // since level 4
)

// A header is what a snapshot holds once. The nodes of its topology follow as records of their own.
type header struct {
	Index       uint64    `cbor:"1,keyasint"`
	Claim       Claim     `cbor:"2,keyasint"`
	Topology    *Topology `cbor:"3,keyasint"`
	LastReplica uint64    `cbor:"4,keyasint"`
	Offset      uint64    `cbor:"5,keyasint,omitempty"`
	Restored    []byte    `cbor:"6,keyasint,omitempty"`

	Policy *registry.Policy `cbor:"7,keyasint,omitempty"` // since level 3; absent while nothing is said

	Forgotten uint64 `cbor:"8,keyasint,omitempty"` // since level 4: index of the newest request that is forgotten
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Save writes the whole state. Equal states write equal bytes.
func (s *State) Save(w io.Writer) error {
	buffered := bufio.NewWriterSize(w, 64<<10)
	out := &recordWriter{w: buffered, sum: crc32.New(castagnoli)}
	out.write([]byte(snapshotMagic))
	out.write(binary.LittleEndian.AppendUint16(nil, snapshotVersion))
	t := *s.topology
	t.Nodes, t.Map = nil, t.Map.Brief()
	h := header{Index: s.index, Claim: s.claim, Topology: &t, LastReplica: s.members.LastReplica, Offset: s.offset, Restored: s.restored, Forgotten: s.requests.forgotten}
	if p := s.catalog.Policy(); p != (registry.Policy{}) {
		h.Policy = &p
	}
	out.record(recordHeader, h)
	for _, p := range s.parts {
		out.record(recordRestore, p)
	}
	for _, q := range s.requests.list {
		out.record(recordRequest, q)
	}
	for _, n := range s.topology.Nodes {
		out.record(recordNode, n)
	}
	for _, t := range s.members.Tokens() {
		out.record(recordToken, t)
	}
	_ = s.catalog.Each(func(record any) error { // the error is out.err
		switch record.(type) {
		case starling.Account:
			out.record(recordAccount, record)
		case starling.Key:
			out.record(recordKey, record)
		case registry.LayerRecord:
			out.record(recordLayer, record)
		case starling.Network:
			out.record(recordNetwork, record)
		case registry.FunctionRecord:
			out.record(recordFunction, record)
		case *starling.Version:
			out.record(recordVersion, record)
		}
		return out.err
	})
	if err := out.end(); err != nil {
		return starling.Errorf(starling.Internal, "save state", "the snapshot could not be written: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return starling.Errorf(starling.Internal, "save state", "the snapshot could not be written: %w", err)
	}
	return nil
}

// A recordWriter writes and sums records; after an error it does nothing more.
type recordWriter struct {
	w     io.Writer
	sum   hash.Hash32
	count uint64
	err   error
}

func (o *recordWriter) write(b []byte) {
	if o.err != nil {
		return
	}
	_, _ = o.sum.Write(b) // a hash never fails
	_, o.err = o.w.Write(b)
}

func (o *recordWriter) record(kind uint8, v any) {
	body, err := encoding.Marshal(v)
	if err != nil && o.err == nil {
		o.err = err
	}
	o.raw(kind, body)
	o.count++
}

func (o *recordWriter) raw(kind uint8, body []byte) {
	head := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	o.write(append(head, kind))
	o.write(body)
}

func (o *recordWriter) end() error {
	o.raw(recordEnd, binary.LittleEndian.AppendUint64(nil, o.count))
	o.write(binary.LittleEndian.AppendUint32(nil, o.sum.Sum32()))
	return o.err
}

// Restore replaces the whole state by a snapshot, or leaves it as it was when the snapshot is damaged, cut
// short, or of another version. The feed of changes begins anew after it.
func (s *State) Restore(r io.Reader) error {
	const op = "restore state"
	in := &recordReader{r: bufio.NewReaderSize(r, 64<<10), sum: crc32.New(castagnoli)}
	top, err := in.read(len(snapshotMagic) + 2)
	if err != nil || string(top[:len(snapshotMagic)]) != snapshotMagic {
		return starling.Errorf(starling.Internal, op, "this is no snapshot of a cluster's state: restore the data directory from another replica")
	}
	if v := binary.LittleEndian.Uint16(top[len(snapshotMagic):]); v != snapshotVersion {
		return starling.Errorf(starling.Internal, op, "the snapshot has format %d and this node reads %d: upgrade it", v, snapshotVersion)
	}
	fresh := NewState()
	if err := fresh.load(in); err != nil {
		return starling.Errorf(starling.Internal, op, "the snapshot is damaged: take another copy, or let this manager come back as a new replica: %w", err)
	}
	fresh.feed.floor = fresh.index
	*s = *fresh
	return nil
}

// A recordReader reads and sums records.
type recordReader struct {
	r     io.Reader
	sum   hash.Hash32
	count uint64
}

// read returns the next n bytes. It grows as bytes come, so that a damaged length costs no memory.
func (in *recordReader) read(n int) ([]byte, error) {
	var b bytes.Buffer
	if _, err := io.CopyN(&b, in.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	_, _ = in.sum.Write(b.Bytes()) // a hash never fails
	return b.Bytes(), nil
}

// next returns the next record; at the end it has checked the count and the sum and kind is recordEnd.
func (in *recordReader) next() (kind uint8, body []byte, err error) {
	head, err := in.read(recordHead)
	if err != nil {
		return 0, nil, err
	}
	size := binary.LittleEndian.Uint32(head)
	kind = head[4]
	if size > recordMax || kind == recordEnd && size != 8 {
		return 0, nil, starling.Errorf(starling.Internal, "read record", "record %d claims %d bytes", in.count, size)
	}
	if body, err = in.read(int(size)); err != nil || kind != recordEnd {
		in.count++
		return kind, body, err
	}
	want := in.sum.Sum32()
	sum, err := in.read(4)
	if err != nil {
		return 0, nil, err
	}
	if binary.LittleEndian.Uint32(sum) != want || binary.LittleEndian.Uint64(body) != in.count {
		return 0, nil, starling.Errorf(starling.Internal, "read record", "the checksum or the count of %d records is wrong", in.count)
	}
	return kind, nil, nil
}

// load fills an empty state and checks all its invariants.
func (s *State) load(in *recordReader) error {
	seenHeader := false
	for {
		kind, body, err := in.next()
		if err != nil {
			return err
		}
		if kind == recordEnd {
			break
		}
		if (kind == recordHeader) == seenHeader {
			return starling.Errorf(starling.Internal, "load state", "the header is missing or there twice")
		}
		seenHeader = true
		if err := s.loadRecord(kind, body); err != nil {
			return err
		}
	}
	if !seenHeader {
		return starling.Errorf(starling.Internal, "load state", "the header is missing")
	}
	s.topology.Nodes = s.members.Nodes()
	if err := s.topology.Map.Check(); err != nil {
		return err
	}
	return s.catalog.Check()
}

func (s *State) loadRecord(kind uint8, body []byte) error {
	switch kind {
	case recordHeader:
		var h header
		if err := decoding.Unmarshal(body, &h); err != nil {
			return err
		}
		if h.Topology == nil || h.Topology.Map == nil || len(h.Topology.Nodes) > 0 {
			return starling.Errorf(starling.Internal, "load state", "the header holds no map, or nodes")
		}
		h.Topology.Map.Complete()
		s.index, s.claim, s.topology, s.offset, s.restored = h.Index, h.Claim, h.Topology, h.Offset, h.Restored
		s.members.LastNode, s.members.LastReplica = h.Topology.Last, h.LastReplica
		s.requests.forgotten = h.Forgotten
		if h.Policy != nil {
			return s.catalog.SetPolicy(*h.Policy)
		}
		return nil
	case recordRestore:
		return loadAs(body, func(p restorePart) error { s.parts = append(s.parts, p); return nil })
	case recordRequest:
		return loadAs(body, func(q request) error { s.requests.add(q); return nil })
	case recordNode:
		return loadAs(body, func(n starling.Node) error { s.members.LoadNode(n); return nil })
	case recordToken:
		return loadAs(body, func(t registry.Token) error { s.members.LoadToken(t); return nil })
	case recordAccount:
		return loadAs(body, s.catalog.LoadAccount)
	case recordKey:
		return loadAs(body, s.catalog.LoadKey)
	case recordLayer:
		return loadAs(body, s.catalog.LoadLayer)
	case recordNetwork:
		return loadAs(body, s.catalog.LoadNetwork)
	case recordFunction:
		return loadAs(body, s.catalog.LoadFunction)
	case recordVersion:
		return loadAs(body, func(v starling.Version) error { return s.catalog.LoadVersion(&v) })
	}
	return starling.Errorf(starling.Internal, "load state", "record kind %d is not known here: upgrade this node", kind)
}

// loadAs decodes one record and hands it on.
func loadAs[T any](body []byte, put func(T) error) error {
	var v T
	if err := decoding.Unmarshal(body, &v); err != nil {
		return err
	}
	return put(v)
}

// Hash returns the SHA-256 of the state's snapshot: replicas at the same index have the same hash.
func (s *State) Hash() [32]byte {
	h := sha256.New()
	_ = s.Save(h) // a hash never fails, and encoding is covered by every test of Save
	return [32]byte(h.Sum(nil))
}
