package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// v1 is one group in five hierarchies.
type v1 struct {
	dirs                                []string
	memory, cpu, cpuacct, pids, freezer string
}

func (g *v1) Create(l Limits) error {
	for _, d := range g.dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return g.Limit(l)
}

func (g *v1) Limit(l Limits) error {
	bytes := strconv.FormatInt(l.MemoryBytes, 10)
	// Memory plus swap may never be below memory: set it first when the limit rises, last when it falls. It is absent
	// where the kernel accounts no swap, and then there is nothing to bound.
	_ = write(g.memory, "memory.memsw.limit_in_bytes", bytes)
	if err := write(g.memory, "memory.limit_in_bytes", bytes); err != nil {
		return err
	}
	if err := write(g.memory, "memory.memsw.limit_in_bytes", bytes); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := g.LimitCPU(l.CPU, l.Weight); err != nil {
		return err
	}
	return write(g.pids, "pids.max", strconv.Itoa(l.Processes))
}

// LimitCPU leaves the period alone, which is the kernel's default.
func (g *v1) LimitCPU(cpu, weight float64) error {
	if err := write(g.cpu, "cpu.cfs_quota_us", strconv.FormatInt(quota(cpu), 10)); err != nil {
		return err
	}
	return write(g.cpu, "cpu.shares", strconv.Itoa(max(2, int(weigh(cpu, weight)*weightUnit))))
}

// quota returns the microseconds of CPU in one period; the kernel takes no less than 1000.
func quota(cpus float64) int64 {
	return max(1000, int64(cpus*float64(period.Microseconds())))
}

func (g *v1) Place(pid int) error {
	for _, d := range g.dirs {
		if err := write(d, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

func (g *v1) Freeze() error {
	deadline := time.Now().Add(2 * time.Second)
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		// A task in the middle of a fork or of an uninterruptible wait is caught by asking again.
		if err := write(g.freezer, "freezer.state", "FROZEN"); err != nil {
			return err
		}
		b, err := os.ReadFile(g.freezer + "/freezer.state")
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) == "FROZEN" {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("freeze: still %s after 2 s", strings.TrimSpace(string(b))), g.Thaw())
		}
		time.Sleep(wait)
	}
}

func (g *v1) Thaw() error { return write(g.freezer, "freezer.state", "THAWED") }

// Kill thaws between its signals: a frozen task of version 1 does not even die.
func (g *v1) Kill() error {
	return killAll(g.pids, func() { _ = g.Thaw() })
}

func (g *v1) OutOfMemory() bool { return field(g.memory, "memory.oom_control", "oom_kill") > 0 }

func (g *v1) Stats() (Stats, error) {
	var s Stats
	var err [4]error
	var cpu, procs int64
	s.MemoryBytes, err[0] = readInt(g.memory, "memory.usage_in_bytes")
	s.MemoryMax, err[1] = readInt(g.memory, "memory.max_usage_in_bytes")
	cpu, err[2] = readInt(g.cpuacct, "cpuacct.usage")
	procs, err[3] = readInt(g.pids, "pids.current")
	s.CPU, s.Processes = time.Duration(cpu), int(procs)
	return s, errors.Join(err[:]...)
}

func (g *v1) Remove() error { return removeAll(g.dirs) }
