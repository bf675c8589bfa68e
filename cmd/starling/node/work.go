package node

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/host"
	"starling/actors/partition"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/internal/audit"
	"starling/internal/awake"
	"starling/sched"
	"starling/store/blob"
	"starling/store/code"
	"starling/store/logs"
	"starling/vmpool"
)

// openAudit opens the file for checkers, when there is to be one.
func (n *Node) openAudit(context.Context) error {
	if n.cfg.Audit == "" {
		return nil
	}
	var err error
	if n.audit, err = audit.Open(n.cfg.Audit, n.ID()); err != nil {
		return err
	}
	n.closers = append(n.closers, closer{"audit", n.audit.Close})
	return nil
}

// openStores opens code and logs, and the post that every actor part needs.
func (n *Node) openStores(ctx context.Context) error {
	n.hub = actors.NewHub(actors.HubConfig{Self: n.ID(), Endpoint: n.endpoint, Addr: n.addr, Log: n.log("post")})
	n.opened("post", n.hub.Metrics(), n.hub.Close)
	address := n.cfg.Bucket
	if address == "" {
		dir, err := filepath.Abs(filepath.Join(n.cfg.Dir, "bucket"))
		if err != nil {
			return err
		}
		address = "file://" + dir
	}
	bucket, err := blob.Open(ctx, address)
	if err != nil {
		return err
	}
	n.opened("bucket", nil, bucket.Close)
	cfg := code.DefaultConfig()
	cfg.Dir, cfg.Bucket, cfg.Peers, cfg.Log = filepath.Join(n.cfg.Dir, "code"), bucket, n.peers, n.log("code")
	gives := n.cfg.isolations() // a microVM reads its package from a disk, which needs no preparation
	cfg.Prepare = n.cfg.Roles.Has(starling.RoleHost) && (gives.Has(starling.IsolationProcess) || gives.Has(starling.IsolationGVisor))
	if n.cfg.CodeCacheMiB > 0 {
		cfg.UnpackedMax = int64(n.cfg.CodeCacheMiB) << 20
	}
	if cfg.Images, err = n.images(); err != nil {
		return err
	}
	n.code = code.New(cfg)
	n.code.Serve(n.endpoint)
	if err := n.code.Open(ctx); err != nil {
		return err
	}
	n.opened("code", n.code.Metrics(), n.code.Close)
	return nil
}

// peers returns the endpoints of the other living nodes.
func (n *Node) peers() []string {
	var addrs []string
	for _, p := range n.view.Alive() {
		if p.ID != n.ID() {
			addrs = append(addrs, p.Addr)
		}
	}
	return addrs
}

// openHost opens the sandboxes, their pools and the host actor, on a node with that role.
func (n *Node) openHost(ctx context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleHost) {
		return nil
	}
	cfg := logs.DefaultConfig()
	cfg.Dir, cfg.Log = filepath.Join(n.cfg.Dir, "logs"), n.log("logs")
	n.logs = logs.New(cfg)
	n.logs.Serve(n.endpoint)
	if err := n.logs.Open(ctx); err != nil {
		return err
	}
	n.opened("logs", n.logs.Metrics(), n.logs.Close)
	pools, err := n.openPools(ctx)
	if err != nil {
		return err
	}
	cores := n.keepAwake()
	n.host = host.New(host.Config{Node: n.ID(), Zone: n.cfg.Zone, Region: "local", Pools: pools, Catalog: n.view, Code: n.code, Post: n.hub, Logs: sink{n.logs},
		Schedulers: n.schedulers, Stopping: n.view.Stopping, MemoryMiB: n.cfg.memoryMiB(), InstanceMax: n.cfg.InstanceMax, Rouse: cores.Rouse, Log: n.log("host"), Audit: n.audit})
	n.host.Serve(n.endpoint)
	if err := n.host.Open(ctx); err != nil {
		return err
	}
	n.opened("host", n.host.Metrics(), n.host.Close)
	n.parts.Host = n.host
	n.working.Store(n.host)
	return nil
}

// keepAwake takes charge of the sleep of this machine's cores; nil when nobody wants that or the kernel does not allow it.
func (n *Node) keepAwake() *awake.Cores {
	if n.cfg.Awake == 0 {
		return nil
	}
	cores, err := awake.Open(awake.Device, n.cfg.Awake)
	if err != nil {
		n.log("host").Debug("idle cores sleep during starts", "error", err)
		return nil
	}
	n.opened("cores", nil, cores.Close)
	return cores
}

// drainHost lets calls at work finish within the drain time. The host then refuses calls as not started until the
// node has said farewell.
func (n *Node) drainHost() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Drain)
	defer cancel()
	if err := n.host.Drain(ctx); err != nil {
		n.log("host").Warn("calls were cut off", slog.Any("error", err))
	}
	return nil
}

func (n *Node) schedulers() []starling.NodeID {
	var ids []starling.NodeID
	for _, p := range n.view.Alive() {
		if p.Roles.Has(starling.RoleScheduler) {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// openPartitions runs the partitions that the map gives this node, on a node with that role.
func (n *Node) openPartitions(ctx context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleScheduler) {
		n.drained()
		return nil
	}
	policy, err := ReadScaling(n.cfg.Scaling)
	if err != nil {
		return err
	}
	cfg := sched.DefaultConfig()
	cfg.Policy = policy
	keeper := partition.New(partition.Config{Node: n.ID(), Post: n.hub, Topology: n.view, Catalog: n.view, Floors: n.view, Control: n.view,
		Endpoint: n.endpoint, Sched: cfg, Registry: &n.registry, Log: n.log("partition"), Audit: n.audit})
	n.parts.Partitions = keeper
	n.keeper.Store(keeper)
	if err := keeper.Open(ctx); err != nil {
		return err
	}
	n.opened("partitions", keeper.Metrics(), keeper.Close)
	n.drained()
	n.opened("ownership", nil, n.moveAway)
	return nil
}

// drained has the host, if there is one, finish its calls before the partitions close.
func (n *Node) drained() {
	if n.host != nil {
		n.opened("calls", nil, n.drainHost)
	}
}

// load is what the heartbeats say.
func (n *Node) load() cluster.Load {
	l := cluster.Load{Partitions: uint32(n.view.Map().Count(n.ID()))}
	if k := n.keeper.Load(); k != nil {
		l.Acquires = k.Rate()
	}
	if h := n.working.Load(); h != nil {
		instances, free, total := h.Room()
		l.Instances, l.FreeMiB, l.TotalMiB = uint32(instances), uint32(free), uint32(total)
		l.Isolations = h.Isolations()
	}
	if g := n.gateway.Load(); g != nil {
		l.Flows = uint32(g.Flows())
	}
	return l
}

// report is what the heartbeats say of the busiest partitions.
func (n *Node) report() []partmap.Load {
	if k := n.keeper.Load(); k != nil {
		return k.Loads(partmap.LoadMax)
	}
	return nil
}

// emptyTime bounds the wait for partitions to move away from a node that stops.
const emptyTime = 3 * time.Second

// moveAway has the partitions move to other nodes before the calls of this one are drained and it says farewell. Those
// that are left after the wait are recovered by others, as if the node had died.
func (n *Node) moveAway() error {
	ctx, cancel := context.WithTimeout(context.Background(), emptyTime)
	defer cancel()
	n.view.Empty(ctx)
	return nil
}

// A sink writes what functions print to the log store.
type sink struct{ store *logs.Store }

// Append turns one record of the host into one entry for each stream.
func (s sink) Append(rec *vmpool.LogRecord) {
	for i := 0; i < len(rec.Lines); {
		stream := rec.Lines[i].Stream
		text := append([]byte(nil), rec.Lines[i].Text...)
		for i++; i < len(rec.Lines) && rec.Lines[i].Stream == stream; i++ {
			text = append(append(text, '\n'), rec.Lines[i].Text...)
		}
		s.store.Append(logs.Record{Time: rec.Time, Function: rec.Function, Version: rec.Number, Request: rec.Request, Stream: logStream(stream), Text: text})
	}
}

func logStream(s vmpool.Stream) logs.Stream {
	switch s {
	case vmpool.Stdout:
		return logs.Stdout
	case vmpool.Stderr:
		return logs.Stderr
	}
	return logs.Platform
}

// hosts lists the living hosts for log questions.
func (n *Node) hosts() []logs.Host {
	var out []logs.Host
	for _, p := range n.view.Alive() {
		if p.Roles.Has(starling.RoleHost) {
			out = append(out, logs.Host{ID: p.ID, Addr: p.Addr})
		}
	}
	return out
}
