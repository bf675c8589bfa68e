// Package dragonboat replicates one deterministic machine over a few nodes by Raft. It is the only importer of
// Dragonboat, whose surprises are all dealt with here: its messages travel over our own transport, its panics
// become errors, and a replica whose disk was lost cannot come back under its old number.
package dragonboat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	db "github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/lni/dragonboat/v4/raftio"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"starling"
	"starling/internal/crash"
	"starling/internal/run"
	"starling/transport"
)

const (
	// CommandMax is the largest command in bytes. What is larger belongs into a store, its name into a command.
	CommandMax = 1 << 20

	tick           = 10 * time.Millisecond // Raft's unit of time
	electionTicks  = 15                    // a follower that hears nothing for 150–300 ms stands for election
	heartbeatTicks = 2
	snapshotEvery  = 16_384   // commands from one snapshot to the next
	snapshotKeep   = 4_096    // newest commands kept beside it, so that a replica a little behind needs no snapshot
	inMemoryMax    = 64 << 20 // bytes of commands not yet applied before proposals are refused
	writeBuffer    = 256 << 10
	defaultWait    = 5 * time.Second // when the caller's context has no deadline
	transferWait   = time.Second     // for passing on the leadership before closing
	busyPause      = 5 * time.Millisecond
	noteEvery      = 10 * time.Second
	readTry        = 500 * time.Millisecond // for one answer to a read before it is asked again
)

// A Machine is what the replicas keep equal. Apply must depend on nothing but its arguments and what was applied
// or restored before. Apply is called by one goroutine at a time and never while Query or Save runs; Query may
// run on several goroutines at once.
type Machine interface {
	// Apply executes one command, whose bytes it must not keep, and returns the answer for its proposer.
	Apply(index uint64, cmd []byte) (reply []byte)
	// Query reads. Its argument and result never leave the process.
	Query(q any) (any, error)
	// Save writes the whole state.
	Save(w io.Writer) error
	// Restore replaces the state by a saved one.
	Restore(r io.Reader) error
}

// Config is what one replica needs. All fields but those that say so are required.
type Config struct {
	Dir      string // of this replica alone; made when missing
	Cluster  string // name; a directory of another cluster is refused
	Shard    uint64 // number of the replicated machine in the cluster
	Replica  uint64 // number of this replica, from 1, never reused
	Members  []uint64
	Join     bool // the replica was added to a running shard by AddReplica; Members is empty
	Endpoint transport.Endpoint
	// Resolve tells where the node of a replica listens now; false when unknown. It is asked at each
	// connection, so nodes may move.
	Resolve func(replica uint64) (addr string, ok bool)
	Machine Machine
	// OnLeader hears of every change of leader; 0 is none. May be nil; must not block.
	OnLeader func(leader, term uint64)
	// Fatal is told when the store breaks under a running replica: the process must end, for nothing may be
	// acknowledged any more. When nil, the process panics.
	Fatal         func(error)
	SnapshotEvery uint64 // commands; 16,384 when 0
	Log           *slog.Logger

	disk config.IFS // what the store writes to; the machine's own when nil
}

func (c Config) validate() error {
	switch {
	case c.Dir == "" || c.Cluster == "" || c.Endpoint == nil || c.Resolve == nil || c.Machine == nil:
		return starling.Errorf(starling.Invalid, "open replica", "Dir, Cluster, Endpoint, Resolve and Machine are required")
	case c.Shard == 0 || c.Replica == 0:
		return starling.Errorf(starling.Invalid, "open replica", "shard and replica count from 1")
	case c.Join && len(c.Members) > 0:
		return starling.Errorf(starling.Invalid, "open replica", "a replica that joins does not name members")
	}
	return nil
}

// A Host runs one replica. Open starts it; Close stops it and waits for every goroutine: Dragonboat's and one of
// ours, which notes how far the log has come. It is safe for concurrent use.
type Host struct {
	cfg     Config
	nh      *db.NodeHost
	session *client.Session
	wires   *wireFactory
	lock    *os.File
	group   *run.Group

	id      *replicaFile // used by Open, then keepNote, then Close
	applied atomic.Uint64
	mark    *mark // used by the machine, and by start before there is one

	closing sync.Once
	closed  chan struct{}
	mu      sync.Mutex     // a leaf: no call begins once closed is closed
	calls   sync.WaitGroup // calls into the store that are under way: Dragonboat takes none while it closes
	err     error          // of closing
}

// Open starts a replica: for the first time with Members or Join, later with what its directory holds. It
// returns when the newest snapshot and the log are loaded; whether there is a leader yet is another matter.
//
// The error is Conflict when the directory belongs to another replica, NotFound when this replica has lost its
// log (reason LostLog), Internal when the log is damaged. The message says what to do.
func Open(cfg Config) (*Host, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = snapshotEvery
	}
	routeLog(cfg.Log, cfg.Fatal)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, starling.Errorf(starling.Internal, "open replica", "%s cannot be made: %w", cfg.Dir, err)
	}
	held, err := lock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	h := &Host{cfg: cfg, lock: held, wires: &wireFactory{cfg: cfg}, closed: make(chan struct{})}
	if h.id, err = loadReplica(cfg); err == nil {
		h.mark, err = openMark(cfg.Dir)
	}
	if err == nil {
		err = h.start()
	}
	if err != nil {
		if h.mark != nil {
			h.mark.file.Close()
		}
		held.Close()
		return nil, err
	}
	h.session = h.nh.GetNoOPSession(cfg.Shard)
	h.group = run.New(context.Background())
	h.group.Go(h.keepNote)
	return h, nil
}

// start opens the store and starts the replica. Dragonboat panics on a damaged store; here that is an error.
func (h *Host) start() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damaged(h.cfg.Dir, fmt.Errorf("%v", r))
		}
		if err != nil {
			h.abandon()
		}
	}()
	if err := verifySnapshots(filepath.Join(h.cfg.Dir, raftDir, storeDir)); err != nil {
		return damaged(h.cfg.Dir, err)
	}
	if h.nh, err = db.NewNodeHost(h.hostConfig()); err != nil {
		return openError(h.cfg.Dir, err)
	}
	if h.nh == nil {
		return damaged(h.cfg.Dir, errors.New("the store cannot be opened"))
	}
	has := h.nh.HasNodeInfo(h.cfg.Shard, h.cfg.Replica)
	if h.id.Started && !has {
		return lostLog(h.cfg, "has no log")
	}
	members := map[uint64]db.Target{}
	join := false
	if !has {
		if !h.cfg.Join && len(h.cfg.Members) == 0 {
			return starling.Errorf(starling.Invalid, "open replica", "%s is empty and neither members nor join are given", h.cfg.Dir)
		}
		join = h.cfg.Join
		for _, m := range h.cfg.Members {
			members[m] = target(m)
		}
	}
	before := max(h.id.Applied, h.mark.high) // the machine raises the mark from here on
	if err := h.nh.StartReplica(members, join, newMachine(h.cfg.Machine, &h.applied, h.mark), h.raftConfig()); err != nil {
		return openError(h.cfg.Dir, err)
	}
	if err := h.checkNote(before); err != nil {
		return err
	}
	h.wires.admit()
	return nil
}

// checkNote compares the log with what was noted of it, of which applied is the newest entry, and notes that there is one.
func (h *Host) checkNote(applied uint64) error {
	r, err := h.nh.GetLogReader(h.cfg.Shard)
	if err != nil {
		return openError(h.cfg.Dir, err)
	}
	state, _ := r.NodeState() // as it was read from the disk
	if _, last := r.GetRange(); last < applied || state.Term < h.id.Term {
		return lostLog(h.cfg, fmt.Sprintf("ends at entry %d of term %d and had come to entry %d of term %d", last, state.Term, applied, h.id.Term))
	}
	if !h.id.Started {
		h.id.Started = true
		return h.id.save(h.cfg.Dir)
	}
	return nil
}

// keepNote notes now and then how far the log has come. A term is noted one round after it was seen, when it is
// certainly on the disk: a note that is ahead of the log would keep a sound replica out.
func (h *Host) keepNote(ctx context.Context) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	seen := uint64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := h.note(seen); err != nil {
			h.cfg.Log.Warn("the replica's progress cannot be noted", "error", err)
		}
		_, seen, _ = h.Leader()
	}
}

// note writes the term and the last applied entry down, if they have grown.
func (h *Host) note(term uint64) error {
	applied := h.applied.Load()
	if applied <= h.id.Applied && term <= h.id.Term {
		return nil
	}
	h.id.Applied, h.id.Term = max(applied, h.id.Applied), max(term, h.id.Term)
	return h.id.save(h.cfg.Dir)
}

// abandon closes what a failed start has opened.
func (h *Host) abandon() {
	if h.nh == nil {
		return
	}
	defer func() { recover() }() // the store is broken already; its complaint about closing adds nothing
	h.nh.Close()
}

func (h *Host) hostConfig() config.NodeHostConfig {
	store := config.GetTinyMemLogDBConfig()
	store.Shards = 1
	store.KVWriteBufferSize = writeBuffer // the store takes sixteen of them
	return config.NodeHostConfig{
		DeploymentID: deployment(h.cfg.Cluster), NodeHostDir: filepath.Join(h.cfg.Dir, raftDir),
		RTTMillisecond: uint64(tick / time.Millisecond), RaftAddress: target(h.cfg.Replica),
		RaftEventListener: leaderListener{h.cfg.OnLeader},
		Expert: config.ExpertConfig{
			LogDB: store, LogDBFactory: tan.Factory,
			Engine:           config.EngineConfig{ExecShards: 1, CommitShards: 1, ApplyShards: 1, SnapshotShards: 2, CloseShards: 1},
			TransportFactory: h.wires, FS: crashing(h.cfg.disk),
		},
	}
}

func (h *Host) raftConfig() config.Config {
	return config.Config{
		ReplicaID: h.cfg.Replica, ShardID: h.cfg.Shard,
		CheckQuorum: true, PreVote: true, OrderedConfigChange: true, WaitReady: true,
		ElectionRTT: electionTicks, HeartbeatRTT: heartbeatTicks,
		SnapshotEntries: h.cfg.SnapshotEvery, CompactionOverhead: min(snapshotKeep, h.cfg.SnapshotEvery/4), MaxInMemLogSize: inMemoryMax,
	}
}

// leaderListener hears of leaders from Dragonboat.
type leaderListener struct{ f func(leader, term uint64) }

// LeaderUpdated is called on a goroutine of Dragonboat's.
func (l leaderListener) LeaderUpdated(info raftio.LeaderInfo) {
	if l.f != nil {
		l.f(info.LeaderID, info.Term)
	}
}

// machine is a Machine in Dragonboat's terms.
type machine struct {
	m       Machine
	applied *atomic.Uint64
	mark    *mark
}

func newMachine(m Machine, applied *atomic.Uint64, high *mark) sm.CreateStateMachineFunc {
	return func(uint64, uint64) sm.IStateMachine { return machine{m, applied, high} }
}

// Update applies one command. An error from here would end the process, so there is none: a refusal is an answer.
func (m machine) Update(e sm.Entry) (sm.Result, error) {
	crash.Here(crash.BeforeApply)
	reply := m.m.Apply(e.Index, e.Cmd)
	crash.Here(crash.AfterApply)
	m.applied.Store(e.Index)
	m.mark.raise(e.Index)
	return sm.Result{Value: e.Index, Data: reply}, nil
}

func (m machine) Lookup(q any) (any, error) { return m.m.Query(q) }

func (m machine) SaveSnapshot(w io.Writer, _ sm.ISnapshotFileCollection, _ <-chan struct{}) error {
	crash.Here(crash.BeforeSnapshot)
	err := m.m.Save(w)
	crash.Here(crash.AfterSnapshot)
	return err
}

func (m machine) RecoverFromSnapshot(r io.Reader, _ []sm.SnapshotFile, _ <-chan struct{}) error {
	return m.m.Restore(r)
}

func (m machine) Close() error { return nil }

// Close passes the leadership on where it can, stops the replica and waits for its goroutines. It may be called
// twice; the endpoint stays open.
func (h *Host) Close() error {
	h.closing.Do(func() {
		h.resign()
		h.shut()
		_, term, _ := h.Leader()
		err := h.stop()
		h.err = errors.Join(err, h.note(term), h.mark.file.Close(), h.lock.Close())
	})
	return h.err
}

// enter begins a call into the store; false when the host is closing. done must be called after it.
func (h *Host) enter() (done func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closed:
		return nil, false
	default:
	}
	h.calls.Add(1)
	return h.calls.Done, true
}

// shut ends the calls that are under way and lets no other begin.
func (h *Host) shut() {
	h.mu.Lock()
	close(h.closed)
	h.mu.Unlock()
	h.group.Stop() // its context ends the calls
	h.calls.Wait()
}

func (h *Host) stop() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = starling.Errorf(starling.Internal, "close replica", "the store did not close in good order: %v", r)
		}
	}()
	h.nh.Close()
	return nil
}

// resign hands the leadership to another replica, so that a planned stop costs milliseconds, not an election.
func (h *Host) resign() {
	if leader, _, ok := h.Leader(); !ok || leader != h.cfg.Replica {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferWait)
	defer cancel()
	members, err := h.Members(ctx)
	if err != nil {
		return
	}
	for _, m := range members {
		if m == h.cfg.Replica {
			continue
		}
		try, stop := context.WithTimeout(ctx, transferWait/3)
		err := h.Transfer(try, m)
		stop()
		if err == nil {
			return
		}
	}
}
