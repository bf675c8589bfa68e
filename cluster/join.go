package cluster

import (
	"context"
	"time"

	"starling"
	"starling/transport"
)

// JoinRequest asks a manager for membership, on a stream of ChannelJoin. The joiner has pinned the cluster's
// CA before it sends anything: the token is a secret.
type JoinRequest struct {
	Token   []byte        `cbor:"1,keyasint"` // the secret whose SHA-256 AddToken told
	Request []byte        `cbor:"2,keyasint"` // PKCS #10 with the node's public key, DER
	Node    starling.Node `cbor:"3,keyasint"` // what it wants to be; ID, Replica and Joined are ignored
}

// JoinReply makes the asker a member.
type JoinReply struct {
	Node        starling.Node `cbor:"1,keyasint"` // as the cluster knows it: its id, and its Raft replica if it holds one
	Certificate []byte        `cbor:"2,keyasint"` // DER
	Authority   []byte        `cbor:"3,keyasint"` // the cluster's CA certificate, DER
	Secret      []byte        `cbor:"4,keyasint"` // the CA's private key; only for a manager, which signs joiners itself
	Topology    *Topology     `cbor:"5,keyasint"`
}

// Join asks for membership on a stream of ChannelJoin and waits until ctx ends. It may be repeated with the
// same key pair after a failure: the same node is the answer. The errors Denied and Invalid are final.
func Join(ctx context.Context, s transport.Stream, req JoinRequest) (JoinReply, error) {
	var reply JoinReply
	a, err := exchange(ctx, s, MessageJoin, req)
	if err != nil {
		return reply, err
	}
	if a.kind != MessageJoined {
		return reply, starling.Errorf(starling.Internal, "join cluster", "the manager answered with message %d: use the same version on all nodes", a.kind)
	}
	err = DecodeMessage(a.body, &reply)
	return reply, err
}

// An answered question: reply is set when kind is MessageReply, body otherwise.
type answered struct {
	kind  MessageKind
	body  []byte
	reply Reply
}

// exchange asks one question on a fresh stream, waits for its answer and lets the stream go. A refusal that
// came as a reply is returned as the error it was; a failure of the stream is Unavailable.
func exchange(ctx context.Context, s transport.Stream, kind MessageKind, v any) (answered, error) {
	const op = "ask manager"
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	defer s.Cancel()
	if d, ok := ctx.Deadline(); ok {
		_ = s.SetWriteDeadline(d) // Cancel at the end of ctx does the same, later
	}
	if err := WriteMessage(s, kind, v); err != nil {
		if starling.KindOf(err) == starling.TooLarge {
			return answered{}, err
		}
		return answered{}, starling.Errorf(starling.Unavailable, op, "the question could not be sent: %w", err)
	}
	answer, body, err := ReadMessage(s, MessageMax)
	if err != nil {
		return answered{}, starling.Errorf(starling.Unavailable, op, "no answer came: %w", err)
	}
	switch answer {
	case MessageRedirect:
		return answered{}, starling.Errorf(starling.Unavailable, op, "this manager does not lead").With(reasonNotLeader).RetryAfter(10 * time.Millisecond)
	case MessageReply:
		var r ReplyBody
		if err := DecodeMessage(body, &r); err != nil {
			return answered{}, err
		}
		reply, err := DecodeReply(r.Reply)
		return answered{kind: answer, reply: reply}, err
	}
	return answered{kind: answer, body: body}, nil
}

// reasonNotLeader marks a question that certainly was not acted upon.
const reasonNotLeader = "NotLeader"
