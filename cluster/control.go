package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// What crosses ChannelControl and ChannelJoin. A stream carries either one session (Hello, then heartbeats one
// way and pushes the other) or one call (a question, its answer, the end). On the wire a message is u32
// little-endian length of what follows, u8 kind, CBOR. Kinds and fields are only ever added to.

// A MessageKind is the number of a message; fixed for ever.
type MessageKind uint8

const (
	MessageHello     MessageKind = 1  // Hello: opens a session
	MessageHeartbeat MessageKind = 2  // Heartbeat
	MessageWelcome   MessageKind = 10 // Welcome: the session is open
	MessageRedirect  MessageKind = 11 // Redirect: answers anything at a manager that does not lead
	MessageTopology  MessageKind = 12 // TopologyPush
	MessageFeed      MessageKind = 13 // FeedPush
	MessageRenewal   MessageKind = 14 // Renewal: answers a Heartbeat
	MessageOrder     MessageKind = 15 // Order, from the leader to an owner
	MessageDelta     MessageKind = 16 // TopologyDelta, to a node that said Hello.Deltas
	MessagePropose   MessageKind = 20 // Proposal, answered by MessageReply
	MessageRead      MessageKind = 21 // Query, answered by MessageReply
	MessageStatus    MessageKind = 22 // nothing, answered by MessageStatusIs
	MessageCertify   MessageKind = 23 // Certify, answered by MessageCertified
	MessageChange    MessageKind = 24 // ChangeRequest, answered by MessageReply when it is done or refused
	MessagePlan      MessageKind = 25 // nothing, answered by MessagePlanIs
	MessageHistory   MessageKind = 26 // HistoryQuery, answered by MessageHistoryIs
	MessageReply     MessageKind = 30 // ReplyBody
	MessageStatusIs  MessageKind = 31 // Status
	MessageCertified MessageKind = 32 // Certified
	MessagePlanIs    MessageKind = 33 // PlanReport
	MessageHistoryIs MessageKind = 34 // History
	MessageJoin      MessageKind = 40 // JoinRequest, answered by MessageJoined or MessageReply with the refusal
	MessageJoined    MessageKind = 41 // JoinReply
	MessageBackup    MessageKind = 60 // nothing, answered by MessageBackupIs and then all MessagePiece
	MessageBackupIs  MessageKind = 61 // Backup
	MessagePiece     MessageKind = 62 // Piece
	MessageRejoin    MessageKind = 63 // Rejoin, answered by MessageRejoined
	MessageRejoined  MessageKind = 64 // Rejoined
)

var pushNames = map[MessageKind]string{MessageTopology: "topology", MessageFeed: "feed", MessageRenewal: "renewal", MessageOrder: "order", MessageDelta: "delta"}

// String returns the word of what a leader sends in a session, the number of any other message.
func (k MessageKind) String() string {
	if name := pushNames[k]; name != "" {
		return name
	}
	return strconv.Itoa(int(k))
}

// The longest messages, in bytes. A whole page of versions with full environments has about 6 MiB.
const (
	MessageMax     = 16 << 20 // from a manager
	MessageAskMax  = 512 << 10
	MessageJoinMax = 64 << 10 // from an end without a certificate
)

// MessageHead is the length of what stands before a message's body on the wire, in bytes.
const MessageHead = 5

// Hello opens a session of the node that the stream's certificate names.
type Hello struct {
	Fresh bool   `cbor:"1,keyasint"` // this process never held a node lease: what an earlier one owned is forgotten
	Feed  uint64 `cbor:"2,keyasint"` // the feed is known up to this index
	Level Level  `cbor:"3,keyasint"` // 0 for a release that says none, which is level 1

	Deltas   bool   `cbor:"4,keyasint,omitempty"` // the node reads TopologyDelta
	Topology uint64 `cbor:"5,keyasint,omitempty"` // index of the topology that it has; 0 for none that it wants to keep
}

// Heartbeat asks for a renewal of the node lease.
type Heartbeat struct {
	Seq     uint64 `cbor:"1,keyasint"`
	Seen    uint64 `cbor:"2,keyasint"` // index of the topology that the node acts on
	Leaving bool   `cbor:"3,keyasint"` // the node has given up its lease and will not ask again
	Load    Load   `cbor:"4,keyasint"`

	Report   *Report     `cbor:"5,keyasint,omitempty"` // nil when there is nothing new
	Done     []OrderDone `cbor:"6,keyasint,omitempty"` // what came of orders
	Takes    bool        `cbor:"7,keyasint,omitempty"` // somebody on the node carries out orders, and takes what is moved here
	Stopping bool        `cbor:"8,keyasint,omitempty"` // the node will leave soon: its partitions should move away
}

// A Report is what a node says of its partitions, every ReportInterval.
type Report struct {
	Rows []partmap.Load `cbor:"1,keyasint"` // the busiest, at most partmap.LoadMax
}

// ReportInterval is the time between two reports of a node's partitions.
const ReportInterval = 500 * time.Millisecond

// Load is what a node says of itself, ten times a second.
type Load struct {
	Partitions uint32 `cbor:"1,keyasint" json:"partitions"` // owned
	Acquires   uint32 `cbor:"2,keyasint" json:"acquires"`   // decided in the last second
	FreeMiB    uint32 `cbor:"3,keyasint" json:"freeMiB"`    // memory that new instances may claim
	TotalMiB   uint32 `cbor:"4,keyasint" json:"totalMiB"`
	Instances  uint32 `cbor:"5,keyasint" json:"instances"`
	CPU        uint16 `cbor:"6,keyasint" json:"cpu"` // busy share of all cores, in thousandths

	Isolations starling.Isolations `cbor:"7,keyasint,omitempty" json:"isolations,omitempty"` // that the host can give; an older release says none and gives process
	Flows      uint32              `cbor:"8,keyasint,omitempty" json:"flows,omitempty"`      // of functions, that the gateway carries
}

// Welcome says that the session is open and under which claim the manager leads.
type Welcome struct {
	Claim uint64 `cbor:"1,keyasint"`
}

// Redirect says who leads, as far as this manager knows.
type Redirect struct {
	Leader starling.NodeID `cbor:"1,keyasint"` // 0 when unknown
	Addr   string          `cbor:"2,keyasint"`
}

// TopologyPush carries what changed: the topology, or only who is alive when Topology is nil.
type TopologyPush struct {
	Topology *Topology         `cbor:"1,keyasint,omitempty"`
	Alive    []starling.NodeID `cbor:"2,keyasint"` // in order
}

// FeedPush carries the feed up to To. With Reset all that was read before is stale.
type FeedPush struct {
	To      uint64   `cbor:"1,keyasint"`
	Reset   bool     `cbor:"2,keyasint"`
	Changes []Change `cbor:"3,keyasint"`
}

// Renewal answers a heartbeat. The lease ends Lease after the heartbeat was sent, and is good only for a node
// that has the topology of Index.
type Renewal struct {
	Seq   uint64 `cbor:"1,keyasint"`
	Lease int64  `cbor:"2,keyasint"` // microseconds; 0 grants nothing
	Index uint64 `cbor:"3,keyasint"`
	Since uint64 `cbor:"4,keyasint,omitempty"` // index of the leader's state when it lets proposals name their request; 0 when not
}

// Proposal carries one encoded command. With a Request it may be proposed again: it is carried out once.
type Proposal struct {
	Command []byte `cbor:"1,keyasint"`
	Request []byte `cbor:"2,keyasint,omitempty"` // 16 random bytes, only to a leader whose last Renewal has a Since; empty for none
	Since   uint64 `cbor:"3,keyasint,omitempty"` // of a Renewal before the request was proposed first
}

// ReplyBody carries one encoded reply (DecodeReply).
type ReplyBody struct {
	Reply []byte `cbor:"1,keyasint"`
}

// Certify asks for a new certificate for the node that the stream's certificate names.
type Certify struct {
	Request []byte `cbor:"1,keyasint"` // PKCS #10, DER
}

// Certified carries a node's new certificate.
type Certified struct {
	Certificate []byte `cbor:"1,keyasint"` // DER
}

// Status is the leader's soft state: what operators see of the nodes.
type Status struct {
	Leader starling.NodeID `cbor:"1,keyasint" json:"leader"`
	Claim  uint64          `cbor:"2,keyasint" json:"claim"` // Raft index at which the leader's reign began
	Nodes  []NodeStatus    `cbor:"3,keyasint" json:"nodes"` // by id

	Orders    []Planned `cbor:"4,keyasint" json:"orders"`    // in flight
	Imbalance float64   `cbor:"5,keyasint" json:"imbalance"` // load of the most loaded scheduler node over the mean; 0 before the first look
}

// NodeStatus is one node as the leader hears it.
type NodeStatus struct {
	Node  starling.Node `cbor:"1,keyasint" json:"node"`
	Alive bool          `cbor:"2,keyasint" json:"alive"`
	Heard int64         `cbor:"3,keyasint" json:"heardMS"` // milliseconds since its last heartbeat; -1 for never
	Seen  uint64        `cbor:"4,keyasint" json:"seen"`
	Load  Load          `cbor:"5,keyasint" json:"load"`
	Level Level         `cbor:"6,keyasint" json:"level"` // of its release; 0 when it was not heard in this reign
	Takes bool          `cbor:"7,keyasint" json:"takesOrders"`
}

// WriteMessage writes one message with one Write.
func WriteMessage(w io.Writer, kind MessageKind, v any) error {
	raw, err := EncodeMessage(kind, v)
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

// EncodeMessage returns the bytes that WriteMessage writes.
func EncodeMessage(kind MessageKind, v any) ([]byte, error) {
	var b bytes.Buffer
	b.Write([]byte{0, 0, 0, 0, byte(kind)})
	if err := encoding.NewEncoder(&b).Encode(v); err != nil {
		return nil, starling.Errorf(starling.Internal, "write message", "message %d: %w", kind, err)
	}
	raw := b.Bytes()
	if len(raw)-4 > MessageMax {
		return nil, starling.Errorf(starling.TooLarge, "write message", "message %d has %d bytes: ask for less at once", kind, len(raw)-4)
	}
	binary.LittleEndian.PutUint32(raw, uint32(len(raw)-4))
	return raw, nil
}

// ReadMessage reads one message of at most limit bytes. It grows as bytes come, so that a length alone costs
// no memory. io.EOF means that the stream ended between two messages.
func ReadMessage(r io.Reader, limit int) (MessageKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := int64(binary.LittleEndian.Uint32(head[:]))
	if size < 1 || size > int64(limit) {
		return 0, nil, starling.Errorf(starling.TooLarge, "read message", "a message of %d bytes, at most %d are allowed here", size, limit)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, size-1); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return MessageKind(head[4]), b.Bytes(), nil
}

// DecodeMessage fills v from the body of a message.
func DecodeMessage(body []byte, v any) error {
	if err := reading.Unmarshal(body, v); err != nil {
		return starling.Errorf(starling.Invalid, "decode message", "the message cannot be read: %w", err)
	}
	return nil
}
