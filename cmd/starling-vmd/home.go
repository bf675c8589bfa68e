package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"

	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
	"starling/vmpool/process/cgroup"
)

// groups are the cgroups of this program's VMs, below a parent that is this node's alone.
type groups struct {
	tree *cgroup.Tree
	lock *os.File
}

// takeOver bounds the wait for the starling-vmd of the node's earlier life.
const takeOver = 10 * time.Second

// openGroups takes the parent group and removes what an earlier life left in it, which has no processes any more.
func openGroups(parent string) (*groups, error) {
	tree, err := cgroup.Find(shim.CgroupRoot, parent)
	if err != nil {
		return nil, err
	}
	lock, err := tree.Lock(takeOver)
	if err != nil {
		return nil, err
	}
	return &groups{tree, lock}, tree.Sweep()
}

func (g *groups) close() error { return errors.Join(g.tree.Remove(), g.lock.Close()) }

// emulatorMiB is what QEMU may take beside the guest's memory.
const emulatorMiB = 256

// tasksMax bounds QEMU's threads and the processes that load and save a state for it.
const tasksMax = 128

// A home is the folder and the cgroup of one VM, both of one name. The folder holds the one that Kata makes for the VM and
// whose name it tells late; the shim reads the name of the group from the path.
type home struct {
	dir   string
	group cgroup.Group
}

// newHome makes a home whose VM may use a whole CPU, as everything does that has no code yet.
func newHome(g *groups, s *link.Setup) (h home, err error) {
	if h.dir, err = os.MkdirTemp(vmDir, ""); err != nil {
		return h, err
	}
	h.group = g.tree.Group(filepath.Base(h.dir))
	err = h.group.Create(cgroup.Limits{MemoryBytes: int64(s.MemoryMiB+emulatorMiB) << 20, CPU: 1, Processes: tasksMax})
	if err != nil {
		return h, errors.Join(fmt.Errorf("make group of a VM: %w", err), h.remove())
	}
	return h, nil
}

// of returns config for the VM of this home.
func (h home) of(config vc.VMConfig) vc.VMConfig {
	config.HypervisorConfig.VMStorePath, config.HypervisorConfig.RunStorePath = h.dir, h.dir
	return config
}

// remove removes both; the VM must be gone.
func (h home) remove() error { return errors.Join(os.RemoveAll(h.dir), h.group.Remove()) }
