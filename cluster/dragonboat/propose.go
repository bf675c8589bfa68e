package dragonboat

import (
	"context"
	"errors"
	"slices"
	"time"

	db "github.com/lni/dragonboat/v4"
	"golang.org/x/sys/unix"

	"starling"
)

// Propose has cmd applied on every replica and returns the machine's answer and the command's index, once a
// majority has it on disk and this replica has applied it. The error is Unavailable when that was not known
// before ctx (5 s when it has no deadline) ended; the command may then still be applied, now or later.
func (h *Host) Propose(ctx context.Context, cmd []byte) (reply []byte, index uint64, err error) {
	if len(cmd) > CommandMax {
		return nil, 0, starling.Errorf(starling.TooLarge, "propose command", "%d bytes are over the limit of %d", len(cmd), CommandMax)
	}
	if err := room(h.cfg.Dir); err != nil {
		return nil, 0, err
	}
	err = h.retry(ctx, "propose command", func(ctx context.Context) error {
		r, err := h.nh.SyncPropose(ctx, h.session, cmd)
		reply, index = r.Data, r.Value
		return err
	})
	return reply, index, err
}

// roomMin is what a replica leaves free on its disk: a log that cannot be written ends the process, so commands are
// refused while the votes and the snapshot that may come still fit.
const roomMin = 32 << 20

// room refuses commands while the disk is about to be full; when it cannot be asked the log will tell.
func room(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < roomMin {
		return starling.Errorf(starling.Unavailable, "propose command", "the disk of the replicated state has %d MiB left, less than %d: free space on %s", free>>20, roomMin>>20, dir).With("DiskFull")
	}
	return nil
}

// Read answers a query from a state that holds everything acknowledged before the call.
func (h *Host) Read(ctx context.Context, q any) (answer any, err error) {
	err = h.retryRead(ctx, "read state", func(ctx context.Context) error {
		answer, err = h.nh.SyncRead(ctx, h.cfg.Shard, q)
		return err
	})
	return answer, err
}

// StaleRead answers a query from this replica's own state, which may be behind.
func (h *Host) StaleRead(q any) (any, error) {
	done, ok := h.enter()
	if !ok {
		return nil, kindOf("read state", db.ErrClosed)
	}
	defer done()
	v, err := h.nh.StaleRead(h.cfg.Shard, q)
	if err != nil {
		return nil, kindOf("read state", err)
	}
	return v, nil
}

// retry repeats what Dragonboat refused before it began, until ctx ends.
func (h *Host) retry(ctx context.Context, op string, f func(ctx context.Context) error) error {
	done, ok := h.enter()
	if !ok {
		return kindOf(op, db.ErrClosed)
	}
	defer done()
	var cancel context.CancelFunc
	if _, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, defaultWait)
	}
	defer cancel()
	stop := context.AfterFunc(h.group.Context(), cancel) // Close waits for this call
	defer stop()
	for {
		select {
		case <-h.closed:
			return kindOf(op, db.ErrClosed)
		default:
		}
		err := f(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, db.ErrShardNotReady), errors.Is(err, db.ErrSystemBusy), errors.Is(err, db.ErrShardNotInitialized):
			// No leader yet, or too much in flight: nothing was proposed.
		default:
			return kindOf(op, err)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return kindOf(op, err)
		case <-h.closed:
		}
	}
}

// retryRead is retry for what changes nothing: a question that a lost message or a lost leader left without an
// answer is asked again.
func (h *Host) retryRead(ctx context.Context, op string, f func(ctx context.Context) error) error {
	return h.retry(ctx, op, func(ctx context.Context) error {
		try, cancel := context.WithTimeout(ctx, readTry)
		defer cancel()
		err := f(try)
		if errors.Is(err, db.ErrTimeout) || errors.Is(err, db.ErrTimeoutTooSmall) || errors.Is(err, context.DeadlineExceeded) {
			return db.ErrShardNotReady
		}
		return err
	})
}

// kindOf gives an error of Dragonboat the kind that callers act on. What the machine's Query refuses passes as
// it is.
func kindOf(op string, err error) error {
	var own *starling.Error
	switch {
	case errors.As(err, &own):
		return err
	case errors.Is(err, db.ErrSystemBusy):
		return starling.Errorf(starling.Overloaded, op, "too many commands are under way: retry after a pause")
	case errors.Is(err, db.ErrPayloadTooBig):
		return starling.Errorf(starling.TooLarge, op, "the command is over the limit of the log")
	case errors.Is(err, db.ErrRejected):
		return starling.Errorf(starling.Conflict, op, "the members changed meanwhile")
	case errors.Is(err, db.ErrClosed), errors.Is(err, db.ErrShardClosed), errors.Is(err, db.ErrAborted):
		return starling.Errorf(starling.Unavailable, op, "this replica is closed")
	}
	return starling.Errorf(starling.Unavailable, op, "no leader confirmed it in time; it may still happen: %w", err)
}

// Leader is the leader this replica knows of, and its term; ok is false while it knows none.
func (h *Host) Leader() (replica, term uint64, ok bool) {
	replica, term, ok, err := h.nh.GetLeaderID(h.cfg.Shard)
	return replica, term, ok && err == nil
}

// IsLeader reports whether this replica believes to lead. It may be behind: what must not happen twice is
// decided by the machine.
func (h *Host) IsLeader() bool {
	leader, _, ok := h.Leader()
	return ok && leader == h.cfg.Replica
}

// Transfer makes another replica the leader and waits until it is. Dragonboat's request is a wish, so it is
// repeated.
func (h *Host) Transfer(ctx context.Context, to uint64) error {
	const again = 20 // polls
	for i := 0; ; i++ {
		if leader, _, ok := h.Leader(); ok && leader == to {
			return nil
		}
		if i%again == 0 {
			if err := h.nh.RequestLeaderTransfer(h.cfg.Shard, to); err != nil && !errors.Is(err, db.ErrShardNotReady) {
				return kindOf("transfer leadership", err)
			}
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return starling.Errorf(starling.Unavailable, "transfer leadership", "replica %d did not take it in time: %w", to, ctx.Err())
		case <-h.closed:
			return kindOf("transfer leadership", db.ErrClosed)
		}
	}
}

// Members lists the replicas of the shard in order, linearizably.
func (h *Host) Members(ctx context.Context) ([]uint64, error) {
	m, err := h.membership(ctx)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for id := range m.Nodes {
		out = append(out, id)
	}
	slices.Sort(out)
	return out, nil
}

func (h *Host) membership(ctx context.Context) (m *db.Membership, err error) {
	err = h.retryRead(ctx, "read members", func(ctx context.Context) error {
		m, err = h.nh.SyncGetShardMembership(ctx, h.cfg.Shard)
		return err
	})
	return m, err
}

// AddReplica admits a replica, which may then Open with Join. Adding a member again does nothing; a number that
// was removed can never be added: the error is Invalid.
func (h *Host) AddReplica(ctx context.Context, replica uint64) error {
	return h.change(ctx, "add replica", func(ctx context.Context, m *db.Membership) error {
		if _, ok := m.Nodes[replica]; ok {
			return nil
		}
		if _, ok := m.Removed[replica]; ok {
			return starling.Errorf(starling.Invalid, "add replica", "replica %d was removed and its number is never used again: take a new one", replica)
		}
		return h.nh.SyncRequestAddReplica(ctx, h.cfg.Shard, replica, target(replica), m.ConfigChangeID)
	})
}

// RemoveReplica takes a replica out for ever. Removing one that is no member does nothing.
func (h *Host) RemoveReplica(ctx context.Context, replica uint64) error {
	return h.change(ctx, "remove replica", func(ctx context.Context, m *db.Membership) error {
		if _, ok := m.Nodes[replica]; !ok {
			return nil
		}
		if len(m.Nodes) == 1 {
			return starling.Errorf(starling.Invalid, "remove replica", "replica %d is the last one", replica)
		}
		return h.nh.SyncRequestDeleteReplica(ctx, h.cfg.Shard, replica, m.ConfigChangeID)
	})
}

// change makes one change of the members, again when somebody else changed them at the same time.
func (h *Host) change(ctx context.Context, op string, f func(context.Context, *db.Membership) error) error {
	for {
		m, err := h.membership(ctx)
		if err != nil {
			return err
		}
		err = h.retry(ctx, op, func(ctx context.Context) error { return f(ctx, m) })
		if starling.KindOf(err) != starling.Conflict || ctx.Err() != nil {
			return err
		}
	}
}

// Snapshot saves the machine's state now and lets go of the log before it.
func (h *Host) Snapshot(ctx context.Context) error {
	err := h.retry(ctx, "save snapshot", func(ctx context.Context) error {
		_, err := h.nh.SyncRequestSnapshot(ctx, h.cfg.Shard, db.DefaultSnapshotOption)
		return err
	})
	if starling.KindOf(err) == starling.Conflict {
		return nil // nothing was applied since the last one
	}
	return err
}
