package manager

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

// serveJoin answers one stream of ChannelJoin, whose other end nobody knows yet. Any manager whose replica
// works answers, not only the leading one: a joiner knows one address.
func (m *Manager) serveJoin(s transport.Stream) {
	done, ok := m.admit(s, m.joins)
	if !ok {
		return
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeMax)
	defer cancel()
	if s.SetReadDeadline(time.Now().Add(greetTimeMax)) != nil || s.SetWriteDeadline(time.Now().Add(answerTimeMax+pushTimeMax)) != nil {
		return
	}
	kind, body, err := cluster.ReadMessage(s, cluster.MessageJoinMax)
	if err != nil || kind != cluster.MessageJoin {
		return
	}
	answer, v := cluster.MessageJoined, any(nil)
	reply, err := m.join(ctx, body)
	if err != nil {
		m.cfg.Log.Warn("a node was not let in", slog.String("addr", s.Peer().Addr), slog.Any("error", err))
		answer, v = refuse(err)
	} else {
		v = reply
	}
	_ = cluster.WriteMessage(s, answer, v) // a joiner that is gone asks again and gets the same
	_ = s.CloseWrite()
	m.drain(s)
}

// join makes the asker a member. A token that nobody made costs a read, not an entry of the log, so that a
// stranger cannot fill the log.
func (m *Manager) join(ctx context.Context, body []byte) (cluster.JoinReply, error) {
	const op = "join cluster"
	var none cluster.JoinReply
	var req cluster.JoinRequest
	if err := cluster.DecodeMessage(body, &req); err != nil {
		return none, err
	}
	r := m.replica.Load()
	if r == nil {
		return none, starling.Errorf(starling.Unavailable, op, "this manager is starting: try again")
	}
	key, err := publicKey(req.Request)
	if err != nil {
		return none, err
	}
	token := sha256.Sum256(req.Token)
	if _, err := read(ctx, *r, cluster.Query{What: cluster.QueryToken, Hash: token}); starling.KindOf(err) == starling.NotFound {
		return none, starling.Errorf(starling.Denied, op, "this token is not known here: make a new one").With("TokenUnknown")
	} else if err != nil {
		return none, err
	}
	added, err := Propose(ctx, *r, cluster.AddNode{Token: token, PublicKey: key, Node: req.Node, Now: time.Now().Unix()})
	if err != nil {
		return none, err
	}
	n := added.Node
	if n == nil {
		return none, starling.Errorf(starling.Internal, op, "the state answered without a node")
	}
	cert, err := m.cfg.Signer.Sign(req.Request, n.ID, n.Roles)
	if err != nil {
		return none, err
	}
	reply := cluster.JoinReply{Node: *n, Certificate: cert, Authority: m.cfg.Signer.Certificate(), Topology: m.cfg.Machine.Topology()}
	if n.Roles.Has(starling.RoleManager) {
		if reply.Secret, err = m.cfg.Signer.Marshal(); err != nil {
			return none, err
		}
	}
	m.cfg.Log.Info("node joined", slog.String("node", n.ID.String()), slog.String("addr", n.Addr), slog.String("roles", n.Roles.String()))
	return reply, nil
}

// publicKey returns the SHA-256 of the public key that a certificate request is for, once the request proves
// that its sender holds the private one.
func publicKey(request []byte) ([32]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return [32]byte{}, starling.Errorf(starling.Invalid, "join cluster", "the certificate request cannot be read: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return [32]byte{}, starling.Errorf(starling.Invalid, "join cluster", "the certificate request is not signed by its own key: %w", err)
	}
	return sha256.Sum256(csr.RawSubjectPublicKeyInfo), nil
}
