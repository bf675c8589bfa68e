package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"time"

	"starling"
	"starling/transport"
)

// BackupMax bounds the state that is backed up, in bytes: the leader holds one copy in memory meanwhile.
const BackupMax = restorePartMax * restorePartsMax

// pieceTimeMax bounds the wait for one piece of a backup.
const pieceTimeMax = 30 * time.Second

// A Backup announces the state that follows in pieces.
type Backup struct {
	Cluster     string          `cbor:"1,keyasint"`
	Index       uint64          `cbor:"2,keyasint"` // of the last command in it
	Size        int64           `cbor:"3,keyasint"` // bytes of the pieces together
	StateHash   [32]byte        `cbor:"4,keyasint"` // SHA-256 of the pieces: State.Hash
	CatalogHash [32]byte        `cbor:"5,keyasint"`
	Leader      starling.NodeID `cbor:"6,keyasint"`
	Authority   []byte          `cbor:"7,keyasint"` // the CA's certificate, DER
}

// A Piece is the next bytes of a backup.
type Piece struct {
	Data []byte `cbor:"1,keyasint"`
}

// Rejoin says that this node, which the stream's certificate names, has lost its copy of the replicated state.
type Rejoin struct {
	Lost uint64 `cbor:"1,keyasint"` // its replica's number
}

// Rejoined names the replica under which the node comes back, and where the others are.
type Rejoined struct {
	Node     starling.Node `cbor:"1,keyasint"`
	Topology *Topology     `cbor:"2,keyasint"`
}

// Backup returns the state as it is now, in memory, and what describes it. Commands wait while it is written.
func (m *Machine) Backup() (Backup, []byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out bytes.Buffer
	if err := m.state.Save(&limitWriter{w: &out, left: BackupMax}); err != nil {
		return Backup{}, nil, err
	}
	b := Backup{Cluster: m.state.topology.Cluster, Index: m.state.index, Size: int64(out.Len()), StateHash: sha256.Sum256(out.Bytes()), CatalogHash: m.state.CatalogHash()}
	return b, out.Bytes(), nil
}

// A limitWriter refuses what goes beyond its limit.
type limitWriter struct {
	w    io.Writer
	left int
}

func (l *limitWriter) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, starling.Errorf(starling.TooLarge, "back up state", "the state has more than %d bytes", BackupMax)
	}
	return l.w.Write(b)
}

// Backup asks the leader for the whole state, which holds everything that was acknowledged before. begin is called
// once, then piece for all bytes in order; an error of either ends it and is returned. Nothing is asked twice once
// begin was called: on Unavailable begin again.
func (v *View) Backup(ctx context.Context, begin func(Backup) error, piece func([]byte) error) error {
	const op = "back up cluster"
	s, b, err := v.openBackup(ctx)
	if err != nil {
		return err
	}
	defer s.Cancel()
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	if b.Size < 0 || b.Size > BackupMax {
		return starling.Errorf(starling.TooLarge, op, "the leader announces %d bytes, at most %d are taken", b.Size, BackupMax)
	}
	if err := begin(b); err != nil {
		return err
	}
	for got := int64(0); got < b.Size; {
		_ = s.SetReadDeadline(time.Now().Add(pieceTimeMax)) // a stream that is gone tells when it is read
		kind, body, err := ReadMessage(s, MessageMax)
		if err != nil {
			return starling.Errorf(starling.Unavailable, op, "the leader went away after %d of %d bytes: begin again: %w", got, b.Size, err)
		}
		var p Piece
		if err := DecodeMessage(body, &p); err != nil {
			return err
		}
		if got += int64(len(p.Data)); kind != MessagePiece || len(p.Data) == 0 || got > b.Size {
			return starling.Errorf(starling.Internal, op, "the leader sent message %d and %d of %d bytes", kind, got, b.Size)
		}
		if err := piece(p.Data); err != nil {
			return err
		}
	}
	return nil
}

// openBackup finds the leader and has it announce the backup.
func (v *View) openBackup(ctx context.Context) (transport.Stream, Backup, error) {
	const op = "back up cluster"
	var last error = starling.Errorf(starling.Unavailable, op, "no manager leads")
	for pause := backOffMin; ; pause = min(2*pause, backOffMax) {
		if l, _, _ := v.leading(); l != (leader{}) {
			s, b, err := v.askBackup(ctx, l)
			if err == nil || starling.KindOf(err) != starling.Unavailable {
				return s, b, err
			}
			last = err
		}
		if ctx.Err() != nil || v.group.Context().Err() != nil || !sleep(ctx, pause) {
			return nil, Backup{}, starling.Errorf(starling.Unavailable, op, "no leader answered in time: %w", last)
		}
	}
}

func (v *View) askBackup(ctx context.Context, l leader) (transport.Stream, Backup, error) {
	const op = "back up cluster"
	var b Backup
	bounded, cancel := context.WithTimeout(ctx, attemptTimeMax)
	defer cancel()
	s, err := v.dial(bounded, l)
	if err != nil {
		return nil, b, starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	_ = s.SetReadDeadline(time.Now().Add(pieceTimeMax))
	err = WriteMessage(s, MessageBackup, struct{}{})
	var kind MessageKind
	var body []byte
	if err == nil {
		kind, body, err = ReadMessage(s, MessageMax)
	}
	switch {
	case err != nil:
		err = starling.Errorf(starling.Unavailable, op, "the leader gave no answer: %w", err)
	case kind == MessageBackupIs:
		err = DecodeMessage(body, &b)
	case kind == MessageReply:
		var r ReplyBody
		if err = DecodeMessage(body, &r); err == nil {
			_, err = DecodeReply(r.Reply)
		}
	default:
		err = starling.Errorf(starling.Unavailable, op, "that manager does not lead")
	}
	if err != nil {
		s.Cancel()
		return nil, b, err
	}
	return s, b, nil
}

// AskRejoin asks one manager, on a stream of ChannelControl, for a new replica in the place of the lost one. redirect is
// who leads according to a manager that does not.
func AskRejoin(ctx context.Context, s transport.Stream, lost uint64) (r Rejoined, redirect string, err error) {
	const op = "rejoin as a new replica"
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	defer s.Cancel()
	if err := WriteMessage(s, MessageRejoin, Rejoin{Lost: lost}); err != nil {
		return r, "", starling.Errorf(starling.Unavailable, op, "the question could not be sent: %w", err)
	}
	kind, body, err := ReadMessage(s, MessageMax)
	if err != nil {
		return r, "", starling.Errorf(starling.Unavailable, op, "no answer came: %w", err)
	}
	switch kind {
	case MessageRejoined:
		err = DecodeMessage(body, &r)
	case MessageRedirect:
		var to Redirect
		err = DecodeMessage(body, &to)
		if redirect = to.Addr; err == nil {
			err = starling.Errorf(starling.Unavailable, op, "that manager does not lead")
		}
	case MessageReply:
		var reply ReplyBody
		if err = DecodeMessage(body, &reply); err == nil {
			_, err = DecodeReply(reply.Reply)
		}
	default:
		err = starling.Errorf(starling.Internal, op, "the manager answered with message %d", kind)
	}
	return r, redirect, err
}
