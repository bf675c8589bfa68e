package manager

import (
	"context"
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
	"starling/internal/crash"
	"starling/transport"
)

// serve answers one stream of ChannelControl: a session or one question.
func (m *Manager) serve(s transport.Stream, peer transport.Peer, local bool) {
	done, ok := m.admit(s, m.streams)
	if !ok {
		return
	}
	defer done()
	if s.SetReadDeadline(time.Now().Add(greetTimeMax)) != nil || s.SetWriteDeadline(time.Now().Add(answerTimeMax+pushTimeMax)) != nil {
		return
	}
	kind, body, err := cluster.ReadMessage(s, cluster.MessageAskMax)
	if err != nil {
		return
	}
	g := m.reign.Load()
	if g == nil {
		_ = cluster.WriteMessage(s, cluster.MessageRedirect, m.redirect()) // a peer that is gone asks elsewhere anyway
		return
	}
	if kind == cluster.MessageHello {
		var h cluster.Hello
		if cluster.DecodeMessage(body, &h) == nil {
			g.attend(s, peer, h, local)
		}
		return
	}
	if kind == cluster.MessageBackup {
		m.serveBackup(g, s, peer)
		return
	}
	answer, v := m.answer(g, s, peer, kind, body)
	if kind == cluster.MessagePropose {
		crash.Here(crash.BeforeAck)
	}
	_ = cluster.WriteMessage(s, answer, v) // a peer that is gone asks again
	if kind == cluster.MessagePropose {
		crash.Here(crash.AfterAck)
	}
	_ = s.CloseWrite()
	m.drain(s)
}

// drain waits until the peer has let go of the stream, so that the answer is not lost with it.
func (m *Manager) drain(s transport.Stream) {
	if s.SetReadDeadline(time.Now().Add(greetTimeMax)) == nil {
		_, _ = s.Read(make([]byte, 1))
	}
}

// redirect says who leads, as far as this replica knows.
func (m *Manager) redirect() cluster.Redirect {
	r := m.replica.Load()
	if r == nil {
		return cluster.Redirect{}
	}
	leader, _, ok := (*r).Leader()
	if !ok {
		return cluster.Redirect{}
	}
	for _, n := range m.cfg.Machine.Topology().Nodes {
		if n.Replica == leader && n.ID != m.node() {
			return cluster.Redirect{Leader: n.ID, Addr: n.Addr}
		}
	}
	return cluster.Redirect{}
}

func (m *Manager) node() starling.NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg.Node
}

// refuse returns err as an answer.
func refuse(err error) (cluster.MessageKind, any) {
	return cluster.MessageReply, cluster.ReplyBody{Reply: cluster.EncodeReply(cluster.Reply{}, err)}
}

// answer answers one question.
func (m *Manager) answer(g *reign, s transport.Stream, peer transport.Peer, kind cluster.MessageKind, body []byte) (cluster.MessageKind, any) {
	select {
	case m.calls <- struct{}{}:
		defer func() { <-m.calls }()
	default:
		return refuse(starling.Errorf(starling.Overloaded, "ask manager", "%d questions are being answered, the limit: try again", callMax))
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeMax)
	defer cancel()
	switch kind {
	case cluster.MessagePropose:
		return m.answerPropose(ctx, g, peer, body)
	case cluster.MessageRead:
		return m.answerRead(ctx, g, peer, body)
	case cluster.MessageStatus:
		return cluster.MessageStatusIs, g.status()
	case cluster.MessageRejoin:
		return m.answerRejoin(ctx, g, peer, body)
	case cluster.MessageCertify:
		return m.answerCertify(peer, body)
	case cluster.MessageChange:
		if s.SetWriteDeadline(time.Now().Add(2*cluster.OrderTime+answerTimeMax)) != nil {
			return refuse(starling.Errorf(starling.Unavailable, "ask manager", "the stream ended"))
		}
		return m.answerChange(g, peer, body)
	case cluster.MessagePlan:
		return m.answerPlan(g, peer)
	case cluster.MessageHistory:
		return m.answerHistory(g, peer, body)
	}
	return refuse(starling.Errorf(starling.Invalid, "ask manager", "message %d is not known here: upgrade this node", kind))
}

func (m *Manager) answerPropose(ctx context.Context, g *reign, peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var p cluster.Proposal
	if err := cluster.DecodeMessage(body, &p); err != nil {
		return refuse(err)
	}
	cmd, err := cluster.DecodeCommand(p.Command)
	if err != nil {
		return refuse(err)
	}
	if err := permit(peer, cmd); err != nil {
		return refuse(err)
	}
	if err := g.permitOwner(peer, cmd); err != nil {
		return refuse(err)
	}
	if err := g.permitIsolation(ctx, cmd); err != nil {
		return refuse(err)
	}
	if c, ok := cmd.(*cluster.RemoveNode); ok {
		if err := g.mayRemove(ctx, c.ID); err != nil {
			return refuse(err)
		}
	}
	raw, err := g.nameRequest(p)
	if err != nil {
		return refuse(err)
	}
	began := time.Now()
	reply, _, err := g.replica.Propose(ctx, raw)
	m.metrics.proposals.UpdateDuration(began)
	if starling.ReasonOf(err) == cluster.ReasonDiskFull {
		return refuse(err) // nothing was proposed
	}
	if err != nil {
		return refuse(starling.Errorf(starling.Unavailable, "propose command", "the outcome is not known: %w", err))
	}
	return cluster.MessageReply, cluster.ReplyBody{Reply: reply}
}

// permit refuses what a node of these roles has no business to ask for. A node whose machine was broken into
// can then change only what its roles could.
func permit(peer transport.Peer, cmd cluster.Command) error {
	const op = "propose command"
	switch c := cmd.(type) {
	case *cluster.ChangeMap:
		if c.Claim == 0 && len(c.Changes) == 1 && peer.Roles.Has(starling.RoleScheduler) {
			return nil // permitOwner looks at the partition
		}
		return starling.Errorf(starling.Denied, op, "an owner proposes one change of its own partition at a time; plans are the manager's")
	case *cluster.ClaimLead, *cluster.AddNode, *cluster.InitCluster, *cluster.RestoreState, *cluster.RenewReplica, *cluster.Once:
		return starling.Errorf(starling.Denied, op, "a manager proposes this itself")
	case *cluster.UpdateNode:
		if c.Node.ID == peer.Node {
			return nil
		}
		return starling.Errorf(starling.Denied, op, "node %s may not change node %s", peer.Node, c.Node.ID)
	}
	if peer.Roles&(starling.RoleManager|starling.RoleFrontend) == 0 {
		return starling.Errorf(starling.Denied, op, "only frontends and managers change the catalog and the members")
	}
	return nil
}

func (m *Manager) answerRead(ctx context.Context, g *reign, peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var q cluster.Query
	if err := cluster.DecodeMessage(body, &q); err != nil {
		return refuse(err)
	}
	if secret := q.What == cluster.QueryKey || q.What == cluster.QueryKeys; secret && peer.Roles&(starling.RoleManager|starling.RoleFrontend) == 0 {
		return refuse(starling.Errorf(starling.Denied, "read keys", "only frontends and managers read keys"))
	}
	reply, err := read(ctx, g.replica, q)
	if err != nil {
		return refuse(err)
	}
	return cluster.MessageReply, cluster.ReplyBody{Reply: cluster.EncodeReply(reply, nil)}
}

// read asks the replicated state linearizably.
func read(ctx context.Context, r Replica, q cluster.Query) (cluster.Reply, error) {
	v, err := r.Read(ctx, q)
	if err != nil {
		return cluster.Reply{}, starling.Errorf(starling.Unavailable, "read state", "the leader did not answer: %w", err)
	}
	a, ok := v.(cluster.Answer)
	if !ok {
		return cluster.Reply{}, starling.Errorf(starling.Internal, "read state", "the replica answered with a %T", v)
	}
	return a.Reply, a.Err
}

// answerCertify gives a member a new certificate for what it is now.
func (m *Manager) answerCertify(peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var c cluster.Certify
	if err := cluster.DecodeMessage(body, &c); err != nil {
		return refuse(err)
	}
	n, ok := m.cfg.Machine.Topology().Node(peer.Node)
	if !ok {
		return refuse(starling.Errorf(starling.Denied, "renew certificate", "node %s is no member", peer.Node).With("NodeRemoved"))
	}
	cert, err := m.cfg.Signer.Sign(c.Request, n.ID, n.Roles)
	if err != nil {
		return refuse(err)
	}
	m.cfg.Log.Info("certificate renewed", slog.String("node", n.ID.String()))
	return cluster.MessageCertified, cluster.Certified{Certificate: cert}
}
