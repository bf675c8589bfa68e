package manager

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

const (
	backupPiece   = 256 << 10
	backupTimeMax = 30 * time.Second // for a piece to be taken
)

// serveBackup sends the whole state to a frontend or manager, one backup at a time: each costs a copy in memory.
func (m *Manager) serveBackup(g *reign, s transport.Stream, peer transport.Peer) {
	b, state, err := m.backup(g, peer)
	if err != nil {
		kind, v := refuse(err)
		_ = cluster.WriteMessage(s, kind, v) // a peer that is gone asks again
		_ = s.CloseWrite()
		m.drain(s)
		return
	}
	defer func() { <-m.backups }()
	began := time.Now()
	_ = s.SetWriteDeadline(time.Now().Add(backupTimeMax)) // a stream that is gone tells when it is written to
	err = cluster.WriteMessage(s, cluster.MessageBackupIs, b)
	for len(state) > 0 && err == nil {
		n := min(len(state), backupPiece)
		_ = s.SetWriteDeadline(time.Now().Add(backupTimeMax))
		err = cluster.WriteMessage(s, cluster.MessagePiece, cluster.Piece{Data: state[:n]})
		state = state[n:]
	}
	if err != nil {
		m.cfg.Log.Warn("a backup was not taken to its end", slog.String("by", peer.Node.String()), slog.Any("error", err))
		return
	}
	_ = s.CloseWrite()
	m.drain(s)
	m.cfg.Log.Info("the state was backed up", slog.String("by", peer.Node.String()), slog.Uint64("index", b.Index), slog.Int64("bytes", b.Size), slog.Duration("in", time.Since(began)))
}

// backup returns the state with everything that was acknowledged before. When err is nil the caller must free a slot of
// m.backups.
func (m *Manager) backup(g *reign, peer transport.Peer) (b cluster.Backup, state []byte, err error) {
	const op = "back up cluster"
	if peer.Roles&(starling.RoleManager|starling.RoleFrontend) == 0 {
		return b, nil, starling.Errorf(starling.Denied, op, "only frontends and managers read the whole state")
	}
	select {
	case m.backups <- struct{}{}:
	default:
		return b, nil, starling.Errorf(starling.Overloaded, op, "a backup is being taken already: try again after it").RetryAfter(time.Second)
	}
	defer func() {
		if err != nil {
			<-m.backups
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeMax)
	defer cancel()
	if _, err := read(ctx, g.replica, cluster.Query{What: cluster.QueryClaim}); err != nil {
		return b, nil, err // this replica may be behind what was acknowledged
	}
	if b, state, err = m.cfg.Machine.Backup(); err != nil {
		return b, nil, err
	}
	b.Leader, b.Authority = m.node(), m.cfg.Signer.Certificate()
	return b, state, nil
}

// answerRejoin gives a manager whose disk was lost a replica with a number that was never used. Its old one is taken
// out by the reign, which also admits the new one.
func (m *Manager) answerRejoin(ctx context.Context, g *reign, peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var q cluster.Rejoin
	if err := cluster.DecodeMessage(body, &q); err != nil {
		return refuse(err)
	}
	if !peer.Roles.Has(starling.RoleManager) {
		return refuse(starling.Errorf(starling.Denied, "renew replica", "node %s is no manager", peer.Node))
	}
	if err := g.othersUnderstand(peer.Node); err != nil {
		return refuse(err)
	}
	reply, err := Propose(ctx, g.replica, cluster.RenewReplica{Node: peer.Node, Lost: q.Lost})
	if err == nil && reply.Node == nil {
		err = starling.Errorf(starling.Internal, "renew replica", "the state answered without a node")
	}
	if err != nil {
		return refuse(err)
	}
	m.cfg.Log.Warn("a manager lost its disk and comes back as a new replica", slog.String("node", peer.Node.String()), slog.Uint64("lost", q.Lost), slog.Uint64("replica", reply.Node.Replica))
	return cluster.MessageRejoined, cluster.Rejoined{Node: *reply.Node, Topology: m.cfg.Machine.Topology()}
}

// othersUnderstand refuses while a replica but the asker's, which has none now, may not know RenewReplica. It is
// Unavailable, so that the asker tries on: a leader that has just begun has not heard everybody yet.
func (g *reign) othersUnderstand(asker starling.NodeID) error {
	t := *g.manager.cfg.Machine.Topology()
	t.Nodes = slices.DeleteFunc(slices.Clone(t.Nodes), func(n starling.Node) bool { return n.ID == asker })
	g.mu.Lock()
	defer g.mu.Unlock()
	if behind := g.ledger.behind(&t, cluster.LevelOrders, g.manager.cfg.Now()); behind != 0 {
		return starling.Errorf(starling.Unavailable, "renew replica", "the manager %s is of an older release, or was not heard yet", behind).With("OlderRelease")
	}
	return nil
}
