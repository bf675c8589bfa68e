package dragonboat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	pb "github.com/lni/dragonboat/v4/raftpb"

	"starling"
	"starling/transport"
)

// A stream on ChannelRaft begins with one of these bytes; then come records of a little-endian u32 length and a
// message of Dragonboat's. Nothing travels back; the end of the other direction says that all was taken.
const (
	streamMessages = 1
	streamSnapshot = 2

	recordMax   = 80 << 20 // Dragonboat cuts at 64 MiB
	recordStep  = 1 << 20  // bytes believed before they have come
	dialWait    = time.Second
	sendStall   = 5 * time.Second
	chunkStall  = 30 * time.Second
	targetBegin = "replica-"
)

// target is the name of a replica as Dragonboat keeps it in the log. It is no address, so nodes may move.
func target(replica uint64) string { return targetBegin + strconv.FormatUint(replica, 10) }

func parseTarget(s string) (uint64, error) {
	digits, ok := strings.CutPrefix(s, targetBegin)
	id, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || id == 0 {
		return 0, starling.Errorf(starling.Invalid, "resolve replica", "%q names no replica", s)
	}
	return id, nil
}

// wireFactory makes Dragonboat's transport out of ours.
type wireFactory struct {
	cfg      Config
	admitted atomic.Bool // messages pass; before the log is checked none may
}

var _ config.TransportFactory = (*wireFactory)(nil)

// Create returns the transport of one NodeHost.
func (f *wireFactory) Create(_ config.NodeHostConfig, mh raftio.MessageHandler, ch raftio.ChunkHandler) raftio.ITransport {
	w := &wire{cfg: f.cfg, admitted: &f.admitted, messages: mh, chunks: ch, open: map[transport.Stream]struct{}{}}
	w.life, w.end = context.WithCancel(context.Background())
	return w
}

// admit lets messages pass.
func (f *wireFactory) admit() { f.admitted.Store(true) }

// Validate accepts what target returns.
func (f *wireFactory) Validate(addr string) bool {
	_, err := parseTarget(addr)
	return err == nil
}

// A wire carries the messages of one NodeHost. Received streams run on the endpoint's goroutines; Close waits
// for them.
type wire struct {
	cfg      Config
	admitted *atomic.Bool
	messages raftio.MessageHandler
	chunks   raftio.ChunkHandler
	life     context.Context // ends the dials of senders; no value travels in it
	end      context.CancelFunc

	mu     sync.Mutex // guards the rest; a leaf
	closed bool
	open   map[transport.Stream]struct{} // being received
	serves sync.WaitGroup
}

var _ raftio.ITransport = (*wire)(nil)

// Name tells Dragonboat's log what this is.
func (w *wire) Name() string { return "starling" }

// Start begins to receive.
func (w *wire) Start() error {
	w.cfg.Endpoint.Handle(transport.ChannelRaft, w.receive)
	return nil
}

// Close ends receiving and waits for it.
func (w *wire) Close() error {
	w.end()
	w.cfg.Endpoint.Handle(transport.ChannelRaft, nil)
	w.mu.Lock()
	w.closed = true
	for s := range w.open {
		s.Cancel()
	}
	w.mu.Unlock()
	w.serves.Wait()
	return nil
}

// receive serves one incoming stream.
func (w *wire) receive(s transport.Stream) {
	w.mu.Lock()
	if w.closed || !w.admitted.Load() {
		w.mu.Unlock()
		return
	}
	w.open[s] = struct{}{}
	w.serves.Add(1)
	w.mu.Unlock()
	defer w.serves.Done()
	err := w.read(s)
	w.mu.Lock()
	delete(w.open, s)
	closed := w.closed
	w.mu.Unlock()
	if err == nil {
		s.CloseWrite()
		return
	}
	s.Cancel()
	if k := starling.KindOf(err); !closed && k != starling.Unavailable {
		w.cfg.Log.Warn("raft stream refused", "peer", s.Peer().Node.String(), "error", err)
	}
}

// read hands the records of one stream to Dragonboat. Decoded messages may alias a record's bytes for ever, so
// each record has its own.
func (w *wire) read(s transport.Stream) error {
	var head [4]byte
	if _, err := io.ReadFull(s, head[:1]); err != nil {
		return err
	}
	kind := head[0]
	for {
		if _, err := io.ReadFull(s, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		record, err := readRecord(s, int(binary.LittleEndian.Uint32(head[:])))
		if err != nil {
			return err
		}
		if err := w.take(kind, record); err != nil {
			return err
		}
	}
}

// readRecord reads n bytes, taking memory as they come rather than as they are promised.
func readRecord(r io.Reader, n int) ([]byte, error) {
	if n > recordMax {
		return nil, starling.Errorf(starling.TooLarge, "read raft record", "%d bytes are over the limit of %d", n, recordMax)
	}
	record := make([]byte, 0, min(n, recordStep))
	for len(record) < n {
		step := min(n-len(record), recordStep)
		at := len(record)
		record = append(record, make([]byte, step)...)
		if _, err := io.ReadFull(r, record[at:]); err != nil {
			return nil, err
		}
	}
	return record, nil
}

// take decodes one record and hands it over. The decoder is Dragonboat's; what it cannot read, even by a panic,
// costs the stream and no more.
func (w *wire) take(kind byte, record []byte) (err error) {
	decode := func(m pb.Unmarshaler) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("%v", r)
			}
		}()
		return m.Unmarshal(record)
	}
	switch kind {
	case streamMessages:
		var b pb.MessageBatch
		if err := decode(&b); err != nil {
			return starling.Errorf(starling.Invalid, "read raft record", "not a batch of messages: %w", err)
		}
		w.messages(b)
	case streamSnapshot:
		var c pb.Chunk
		if err := decode(&c); err != nil {
			return starling.Errorf(starling.Invalid, "read raft record", "not a chunk of a snapshot: %w", err)
		}
		if !w.chunks(c) {
			return starling.Errorf(starling.Unavailable, "take snapshot", "the chunk is not wanted")
		}
	default:
		return starling.Errorf(starling.Invalid, "read raft stream", "kind %d is unknown: the peer is of another version", kind)
	}
	return nil
}

// connect opens a stream of one kind to a replica.
func (w *wire) connect(ctx context.Context, name string, kind byte) (*sender, error) {
	id, err := parseTarget(name)
	if err != nil {
		return nil, err
	}
	addr, ok := w.cfg.Resolve(id)
	if !ok {
		return nil, starling.Errorf(starling.Unavailable, "reach replica", "the address of replica %d is not known", id)
	}
	s, err := w.cfg.Endpoint.Open(ctx, addr, transport.ChannelRaft)
	if err != nil {
		return nil, err
	}
	return &sender{stream: s, buf: []byte{kind}, fresh: true}, nil
}

// GetConnection returns a connection for messages, which is made when the first is sent.
func (w *wire) GetConnection(_ context.Context, name string) (raftio.IConnection, error) {
	return &messageSender{wire: w, name: name}, nil
}

// GetSnapshotConnection returns a connection for the chunks of one snapshot.
func (w *wire) GetSnapshotConnection(ctx context.Context, name string) (raftio.ISnapshotConnection, error) {
	s, err := w.connect(ctx, name, streamSnapshot)
	if err != nil {
		return nil, err
	}
	return snapshotSender{s}, nil
}

// A sender writes records on one stream; Dragonboat uses it from one goroutine.
type sender struct {
	stream transport.Stream
	buf    []byte
	fresh  bool // buf holds the kind, which leaves with the first record
}

// marshaler is what Dragonboat's messages can do.
type marshaler interface {
	MarshalTo([]byte) (int, error)
}

func (s *sender) send(m marshaler, size int, stall time.Duration) error {
	at := 0
	if s.fresh {
		at = 1
	}
	if need := at + 4 + size; len(s.buf) < need {
		grown := make([]byte, need)
		copy(grown, s.buf[:at])
		s.buf = grown
	}
	n, err := m.MarshalTo(s.buf[at+4:])
	if err != nil {
		return fmt.Errorf("write raft record: %w", err)
	}
	binary.LittleEndian.PutUint32(s.buf[at:], uint32(n))
	s.stream.SetWriteDeadline(time.Now().Add(stall))
	_, err = s.stream.Write(s.buf[:at+4+n])
	s.fresh = false
	if len(s.buf) > recordStep {
		s.buf = nil // one large batch must not be kept for ever
	}
	return err
}

// A messageSender sends batches to one replica and makes its stream again when it is lost. It never tells
// Dragonboat of a failure: that would stay away from the peer for 500 ms and, after a long absence, for up to a
// minute, while the endpoint tries again within a second. What is dropped meanwhile Raft sends again.
type messageSender struct {
	wire *wire
	name string
	out  *sender // nil while there is no stream
}

// SendMessageBatch sends one batch or drops it.
func (s *messageSender) SendMessageBatch(b pb.MessageBatch) error {
	if !s.wire.admitted.Load() {
		return nil
	}
	if s.out == nil {
		ctx, cancel := context.WithTimeout(s.wire.life, dialWait)
		out, err := s.wire.connect(ctx, s.name, streamMessages)
		cancel()
		if err != nil {
			return nil
		}
		s.out = out
	}
	if err := s.out.send(&b, b.SizeUpperLimit(), sendStall); err != nil {
		s.Close()
	}
	return nil
}

// Close gives the stream up.
func (s *messageSender) Close() {
	if s.out != nil {
		s.out.stream.Cancel()
		s.out = nil
	}
}

type snapshotSender struct{ *sender }

// SendChunk sends one chunk.
func (s snapshotSender) SendChunk(c pb.Chunk) error { return s.send(&c, c.Size(), chunkStall) }

// Close waits until the receiver has taken the last chunk.
func (s snapshotSender) Close() {
	s.stream.CloseWrite()
	s.stream.SetReadDeadline(time.Now().Add(sendStall))
	io.Copy(io.Discard, s.stream)
	s.stream.Cancel()
}
