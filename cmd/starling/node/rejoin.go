package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
	"starling/transport/quic"
)

func (c Config) managerDir() string { return filepath.Join(c.Dir, "manager") }

// mayVote makes sure that a replica that may have voted has its log. If the folder was lost, the node comes back as
// a new replica with a number that was never used: the old one, with an empty log, could vote twice.
func (n *Node) mayVote(ctx context.Context) error {
	_, err := os.Stat(filepath.Join(n.cfg.managerDir(), "replica.json"))
	lost := errors.Is(err, fs.ErrNotExist)
	if lost && n.member.Started && n.member.Bootstrap == nil && !n.member.Restore {
		if err := n.rejoin(ctx); err != nil {
			return err
		}
	}
	if n.member.Started {
		return nil
	}
	n.member.Started = true // before the log begins: a note that came after it could be missing when the log is
	return n.cfg.saveMember(n.member)
}

// rejoin asks the leader for a new replica until it answers or ctx ends, and moves what is left of the old one aside.
func (n *Node) rejoin(ctx context.Context) error {
	n.log("replica").Warn("the replicated state on this node's disk is lost: asking the cluster for a new replica", slog.Uint64("lost", n.member.Replica))
	host, _, err := net.SplitHostPort(n.cfg.Listen)
	if err != nil {
		return starling.Errorf(starling.Invalid, "open node", "--listen %s: %w", n.cfg.Listen, err)
	}
	// The node's own port opens only when all its handlers are there; this one asks and is gone.
	end := quic.New(quic.Config{Addr: net.JoinHostPort(host, "0"), Identity: n.id, Allow: func(transport.Peer, transport.Channel) bool { return false }, Log: n.log("endpoint")})
	if err := end.Listen(); err != nil {
		return err
	}
	defer end.Close()
	for {
		r, err := n.askRejoin(ctx, end)
		if err == nil {
			return n.becomeNew(r)
		}
		if k := starling.KindOf(err); k != starling.Unavailable && k != starling.Timeout && k != starling.Overloaded {
			return err
		}
		n.log("replica").Warn("no manager leads that could give this node a new replica: trying on", slog.Any("error", err))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// askRejoin asks every manager that this node knows of, and those they name as leading.
func (n *Node) askRejoin(ctx context.Context, end *quic.Endpoint) (r cluster.Rejoined, err error) {
	err = starling.Errorf(starling.Unavailable, "rejoin as a new replica", "this node knows no other manager")
	queue, asked := slices.Clone(n.member.Managers), map[string]bool{n.cfg.advertise(): true}
	for _, addr := range n.member.Replicas {
		queue = append(queue, addr)
	}
	for len(queue) > 0 {
		addr := queue[0]
		queue = queue[1:]
		if asked[addr] {
			continue
		}
		asked[addr] = true
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		var s transport.Stream
		var redirect string
		if s, err = end.Open(bounded, addr, transport.ChannelControl); err == nil {
			r, redirect, err = cluster.AskRejoin(bounded, s, n.member.Replica)
		}
		cancel()
		if err == nil {
			return r, nil
		}
		if k := starling.KindOf(err); k == starling.Conflict || k == starling.Denied || k == starling.NotFound || k == starling.Invalid {
			return r, err
		}
		if redirect != "" {
			queue = slices.Insert(queue, 0, redirect)
		}
	}
	return r, err
}

// becomeNew remembers the new replica. What is left of the old one is kept beside it, for people to look at.
func (n *Node) becomeNew(r cluster.Rejoined) error {
	aside := fmt.Sprintf("%s.lost-%d", n.cfg.managerDir(), n.member.Replica)
	if err := os.Rename(n.cfg.managerDir(), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return starling.Errorf(starling.Internal, "rejoin as a new replica", "%w", err)
	}
	n.log("replica").Info("this node comes back as a new replica", slog.Uint64("lost", n.member.Replica), slog.Uint64("replica", r.Node.Replica))
	n.member.Replica, n.member.Managers, n.member.Replicas = r.Node.Replica, nil, map[uint64]string{}
	for _, m := range r.Topology.Nodes {
		if m.Replica != 0 {
			n.member.Replicas[m.Replica] = m.Addr
		}
		if m.Replica != 0 && m.ID != n.ID() {
			n.member.Managers = append(n.member.Managers, m.Addr)
		}
	}
	return n.cfg.saveMember(n.member)
}
