package cluster

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/fxamacker/cbor/v2"

	"starling"
)

// The numbers of the commands on the wire and in the log. They are fixed for ever; new ones are added below.
const (
	kindInitCluster    uint16 = 1
	kindCreateAccount  uint16 = 2
	kindDeleteAccount  uint16 = 3
	kindCreateKey      uint16 = 4
	kindDeleteKey      uint16 = 5
	kindPutFunction    uint16 = 6
	kindDeleteFunction uint16 = 7
	kindPublishVersion uint16 = 8
	kindAddToken       uint16 = 9
	kindAddNode        uint16 = 10
	kindUpdateNode     uint16 = 11
	kindRemoveNode     uint16 = 12
	kindChangeMap      uint16 = 13
	kindClaimLead      uint16 = 14
	kindSetDraining    uint16 = 15 // since level 2
	kindSetIsolation   uint16 = 16 // since level 3
	kindPublishLayer   uint16 = 17 // since level 4
	kindDeleteLayer    uint16 = 18 // since level 4
	kindPutNetwork     uint16 = 19 // since level 4
	kindDeleteNetwork  uint16 = 20 // since level 4
	kindOnce           uint16 = 21 // since level 4
	kindRestoreState   uint16 = 40 // in a cluster that is being made, whose only replica this is
	kindRenewReplica   uint16 = 41 // since level 2
)

// CommandKind returns the command's number.
func (InitCluster) CommandKind() uint16    { return kindInitCluster }
func (CreateAccount) CommandKind() uint16  { return kindCreateAccount }
func (DeleteAccount) CommandKind() uint16  { return kindDeleteAccount }
func (CreateKey) CommandKind() uint16      { return kindCreateKey }
func (DeleteKey) CommandKind() uint16      { return kindDeleteKey }
func (PutFunction) CommandKind() uint16    { return kindPutFunction }
func (DeleteFunction) CommandKind() uint16 { return kindDeleteFunction }
func (PublishVersion) CommandKind() uint16 { return kindPublishVersion }
func (AddToken) CommandKind() uint16       { return kindAddToken }
func (AddNode) CommandKind() uint16        { return kindAddNode }
func (UpdateNode) CommandKind() uint16     { return kindUpdateNode }
func (RemoveNode) CommandKind() uint16     { return kindRemoveNode }
func (ChangeMap) CommandKind() uint16      { return kindChangeMap }
func (ClaimLead) CommandKind() uint16      { return kindClaimLead }
func (SetDraining) CommandKind() uint16    { return kindSetDraining }
func (SetIsolation) CommandKind() uint16   { return kindSetIsolation }
func (PublishLayer) CommandKind() uint16   { return kindPublishLayer }
func (DeleteLayer) CommandKind() uint16    { return kindDeleteLayer }
func (PutNetwork) CommandKind() uint16     { return kindPutNetwork }
func (DeleteNetwork) CommandKind() uint16  { return kindDeleteNetwork }
func (Once) CommandKind() uint16           { return kindOnce }
func (RestoreState) CommandKind() uint16   { return kindRestoreState }
func (RenewReplica) CommandKind() uint16   { return kindRenewReplica }

// blank returns an empty command of this number for the decoder to fill; nil when there is none.
func blank(kind uint16) Command {
	switch kind {
	case kindInitCluster:
		return &InitCluster{}
	case kindCreateAccount:
		return &CreateAccount{}
	case kindDeleteAccount:
		return &DeleteAccount{}
	case kindCreateKey:
		return &CreateKey{}
	case kindDeleteKey:
		return &DeleteKey{}
	case kindPutFunction:
		return &PutFunction{}
	case kindDeleteFunction:
		return &DeleteFunction{}
	case kindPublishVersion:
		return &PublishVersion{}
	case kindAddToken:
		return &AddToken{}
	case kindAddNode:
		return &AddNode{}
	case kindUpdateNode:
		return &UpdateNode{}
	case kindRemoveNode:
		return &RemoveNode{}
	case kindChangeMap:
		return &ChangeMap{}
	case kindClaimLead:
		return &ClaimLead{}
	case kindSetDraining:
		return &SetDraining{}
	case kindSetIsolation:
		return &SetIsolation{}
	case kindPublishLayer:
		return &PublishLayer{}
	case kindDeleteLayer:
		return &DeleteLayer{}
	case kindPutNetwork:
		return &PutNetwork{}
	case kindDeleteNetwork:
		return &DeleteNetwork{}
	case kindOnce:
		return &Once{}
	case kindRestoreState:
		return &RestoreState{}
	case kindRenewReplica:
		return &RenewReplica{}
	}
	return nil
}

const (
	commandVersion = 1         // of the layout of all commands; raised when a field's meaning changes
	commandMax     = 256 << 10 // bytes of one encoded command
	commandHead    = 4         // u16 number, u16 version, little-endian
)

// encoding writes equal values as equal bytes, so that replicas can be compared. decoding, for the log and its
// snapshots, refuses what this version does not know: to skip a field on one replica and obey it on another
// would split the state. reading, for messages between nodes, skips what a newer node added.
var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(decodeOptions(cbor.ExtraDecErrorUnknownField).DecMode())
	reading  = must(decodeOptions(cbor.ExtraDecErrorNone).DecMode())
)

func decodeOptions(extra cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: extra,
		MaxNestedLevels:   16,
	}
}

// must is for options that are constants of this file: an error is a bug that the first test meets.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// EncodeCommand returns the command as the log carries it: number, version, deterministic CBOR.
func EncodeCommand(cmd Command) ([]byte, error) {
	const op = "encode command"
	body, err := encoding.Marshal(cmd)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, op, "command %d: %w", cmd.CommandKind(), err)
	}
	if len(body)+commandHead > commandMax {
		return nil, starling.Errorf(starling.TooLarge, op, "the command has %d bytes: at most %d are allowed", len(body), commandMax)
	}
	raw := make([]byte, commandHead, commandHead+len(body))
	binary.LittleEndian.PutUint16(raw, cmd.CommandKind())
	binary.LittleEndian.PutUint16(raw[2:], commandVersion)
	return append(raw, body...), nil
}

// DecodeCommand is the reverse of EncodeCommand; the command is a pointer. Bytes that this version does not
// understand wholly are refused as Invalid.
func DecodeCommand(raw []byte) (Command, error) {
	const op = "decode command"
	if len(raw) < commandHead || len(raw) > commandMax {
		return nil, starling.Errorf(starling.Invalid, op, "a command has %d-%d bytes, this one %d", commandHead, commandMax, len(raw))
	}
	kind, version := binary.LittleEndian.Uint16(raw), binary.LittleEndian.Uint16(raw[2:])
	cmd := blank(kind)
	if cmd == nil || version != commandVersion {
		return nil, starling.Errorf(starling.Invalid, op, "command %d in version %d is not known here: upgrade this node", kind, version).With("UnknownCommand")
	}
	if err := decoding.Unmarshal(raw[commandHead:], cmd); err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "command %d: %w", kind, err)
	}
	return cmd, nil
}

// An outcome is what a command or query came to, as it crosses the log and the wire.
type outcome struct {
	Refusal *refusal `cbor:"1,keyasint,omitempty"`
	Reply   *Reply   `cbor:"2,keyasint,omitempty"`
}

// A refusal is an *starling.Error without its cause, which means nothing on another node.
type refusal struct {
	Kind    starling.Kind `cbor:"1,keyasint"`
	Op      string        `cbor:"2,keyasint,omitempty"`
	Reason  string        `cbor:"3,keyasint,omitempty"`
	Message string        `cbor:"4,keyasint,omitempty"`
	After   int64         `cbor:"5,keyasint,omitempty"` // microseconds
}

// refusalOf returns err as it crosses a border; nil for nil.
func refusalOf(err error) *refusal {
	if err == nil {
		return nil
	}
	e := &starling.Error{Kind: starling.Internal, Message: err.Error()}
	errors.As(err, &e)
	return &refusal{Kind: e.Kind, Op: e.Op, Reason: e.Reason, Message: e.Message, After: e.After.Microseconds()}
}

// err returns the refusal as the error it was; nil for nil.
func (r *refusal) err() error {
	if r == nil {
		return nil
	}
	return &starling.Error{Kind: r.Kind, Op: r.Op, Reason: r.Reason, Message: r.Message, After: time.Duration(r.After) * time.Microsecond}
}

// EncodeReply returns a reply, or the error in its place, as the log and the wire carry it.
func EncodeReply(r Reply, err error) []byte {
	o := outcome{Refusal: refusalOf(err)}
	if err == nil {
		o.Reply = &r
	}
	raw, encodeErr := encoding.Marshal(o)
	if encodeErr != nil { // no value of these types fails to encode; were one to, the caller must still get an answer
		raw, _ = encoding.Marshal(outcome{Refusal: refusalOf(encodeErr)})
	}
	return raw
}

// DecodeReply is the reverse of EncodeReply. A reply that cannot be read is an Internal error.
func DecodeReply(raw []byte) (Reply, error) {
	var o outcome
	if err := reading.Unmarshal(raw, &o); err != nil {
		return Reply{}, starling.Errorf(starling.Internal, "decode reply", "the answer of the state cannot be read: %w", err)
	}
	if o.Refusal != nil {
		return Reply{}, o.Refusal.err()
	}
	if o.Reply == nil {
		return Reply{}, starling.Errorf(starling.Internal, "decode reply", "the answer of the state is empty")
	}
	return *o.Reply, nil
}
