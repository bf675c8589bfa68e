package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	vm "github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vmpool"
	"starling/vmpool/gvisor"
	"starling/vmpool/process"
	"starling/vmpool/runtimes"
)

// openPools opens a driver and a pool for each isolation that this host is to give.
func (n *Node) openPools(ctx context.Context) (map[starling.Isolation]*vmpool.Pool, error) {
	base, err := n.sandboxes(ctx)
	if err != nil {
		return nil, err
	}
	pools, outlets := map[starling.Isolation]*vmpool.Pool{}, n.openTunnel()
	for _, i := range n.cfg.isolations().List() {
		d, err := n.driver(i, base)
		if err != nil {
			return nil, err
		}
		n.opened("driver "+string(i), d.Metrics(), d.Close)
		sizes := map[starling.Runtime]int{}
		for _, rt := range starling.Runtimes {
			sizes[rt] = n.cfg.Pool
			if i != starling.IsolationProcess {
				sizes[rt] = min(n.cfg.Pool, n.cfg.PoolStrong)
			}
		}
		cfg := vmpool.PoolConfig{Driver: d, Sizes: sizes, Log: n.log("pool")}
		if err := n.plugIn(&cfg, i, outlets); err != nil {
			return nil, err
		}
		if i == starling.IsolationKata {
			cfg.ReadyTime = vmCloneTime
		}
		pool := vmpool.NewPool(cfg)
		if err := pool.Open(ctx); err != nil {
			return nil, err
		}
		n.opened("pool "+string(i), pool.Metrics(), pool.Close)
		pools[i] = pool
	}
	return pools, nil
}

var tagUnfit = regexp.MustCompile(`[^a-z0-9-]+`)

// sandboxes returns what all drivers of this node have in common, the process driver's configuration.
func (n *Node) sandboxes(ctx context.Context) (process.Config, error) {
	cfg := process.DefaultConfig()
	guest, err := n.cfg.guest()
	if err != nil {
		return cfg, err
	}
	dir, err := filepath.Abs(filepath.Join(n.cfg.Dir, "sandboxes"))
	if err != nil {
		return cfg, err
	}
	programs := filepath.Join(dir, "runtimes")
	if err := runtimes.Write(programs); err != nil {
		return cfg, err
	}
	if n.cfg.Python != "" {
		if err := runtimes.Compile(ctx, programs, n.cfg.Python); err != nil {
			n.log("driver").Warn("Python starts slower", slog.Any("error", err))
		}
	}
	cfg.Dir, cfg.GuestPath, cfg.RuntimeDir, cfg.Log = filepath.Join(dir, "work"), guest, programs, n.log("driver")
	cfg.Tag = n.tag()
	cfg.Command = func(rt starling.Runtime) []string {
		return runtimes.Command(rt, runtimes.Dir, n.cfg.Python, n.cfg.Node)
	}
	return cfg, nil
}

// A driver is one kind of isolation with its numbers.
type driver interface {
	vmpool.Driver
	Metrics() *vm.Set
}

// driver makes the driver of one isolation.
func (n *Node) driver(i starling.Isolation, cfg process.Config) (driver, error) {
	switch i {
	case starling.IsolationProcess:
		return process.New(cfg), cfg.Validate()
	case starling.IsolationGVisor:
		runsc, err := FindRunsc(n.cfg.Runsc)
		if err != nil {
			return nil, err
		}
		cfg = gvisor.Config(cfg, runsc)
		return process.New(cfg), cfg.Validate()
	case starling.IsolationKata:
		return n.microVMs(cfg)
	}
	return nil, starling.Errorf(starling.Invalid, "open host", "--isolation %s: this release has no driver for it", i)
}

// FindRunsc returns the path of gVisor's runsc: the one that is named, else that beside this binary, else that of PATH.
func FindRunsc(named string) (string, error) {
	const fix = "\"make runsc\" builds it beside the starling binary; --runsc names another place"
	if named != "" {
		if _, err := os.Stat(named); err != nil {
			return "", starling.Errorf(starling.Invalid, "find runsc", "--runsc %s: %w: %s", named, err, fix)
		}
		return filepath.Abs(named)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "runsc")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	if path, err := exec.LookPath("runsc"); err == nil {
		return filepath.Abs(path)
	}
	return "", starling.Errorf(starling.Invalid, "find runsc", "isolation gvisor needs runsc, which is neither beside the starling binary nor in PATH: %s", fix)
}

// tag names this node's cgroups: the cluster, the node and the port, so that two nodes of one machine differ.
func (n *Node) tag() string {
	tag := tagUnfit.ReplaceAllString(strings.ToLower(fmt.Sprintf("%s-%s-%s", n.id.Cluster(), n.ID(), port(n.cfg.advertise()))), "-")
	return strings.Trim(tag[max(0, len(tag)-32):], "-")
}
