package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// v1 is one group in five hierarchies.
type v1 struct {
	dirs                                []string
	memory, cpu, cpuacct, pids, freezer string
	behind                              string // in place of cpu until Forward; "" where there is none

	have Limits // as this value set them; zero when it did not
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
	if l.MemoryBytes != g.have.MemoryBytes {
		if err := g.limitMemory(l.MemoryBytes); err != nil {
			return err
		}
		g.have.MemoryBytes = l.MemoryBytes
	}
	if err := g.LimitCPU(l.CPU, l.Weight); err != nil {
		return err
	}
	if l.Processes != g.have.Processes {
		if err := write(g.pids, "pids.max", strconv.Itoa(l.Processes)); err != nil {
			return err
		}
		g.have.Processes = l.Processes
	}
	return nil
}

// limitMemory keeps memory plus swap from being below memory, which the kernel refuses: it is set first when the limit
// rises, last when it falls, as it does from the limit of a new group. It is absent where the kernel accounts no swap,
// and then there is nothing to bound.
func (g *v1) limitMemory(most int64) error {
	files := []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	if g.have.MemoryBytes != 0 && most > g.have.MemoryBytes {
		slices.Reverse(files)
	}
	for _, f := range files {
		err := write(g.memory, f, strconv.FormatInt(most, 10))
		if err != nil && (f == "memory.limit_in_bytes" || !errors.Is(err, os.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// LimitCPU leaves the period alone, which is the kernel's default.
func (g *v1) LimitCPU(cpu, weight float64) error {
	weight = weigh(cpu, weight)
	if cpu != g.have.CPU {
		if err := write(g.cpu, "cpu.cfs_quota_us", strconv.FormatInt(quota(cpu), 10)); err != nil {
			return err
		}
		g.have.CPU = cpu
	}
	if weight != g.have.Weight {
		if err := write(g.cpu, "cpu.shares", strconv.Itoa(max(2, int(weight*weightUnit)))); err != nil {
			return err
		}
		g.have.Weight = weight
	}
	return nil
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

func (g *v1) PlaceBehind(pid int) error {
	for _, d := range g.dirs {
		if d == g.cpu && g.behind != "" {
			d = g.behind
		}
		if err := write(d, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// forwardRounds bounds how often Forward looks: a process that ended and is not collected yet is listed and cannot be moved.
const forwardRounds = 5

// Forward looks again after it has moved what it saw: a child may have been born behind meanwhile.
func (g *v1) Forward() error {
	for range forwardRounds {
		there, moved := processes(g.cpu), false
		for _, pid := range processes(g.pids) {
			if slices.Contains(there, pid) {
				continue
			}
			moved = true
			if err := write(g.cpu, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !moved {
			break
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

func (g *v1) Processes() []int { return processes(g.pids) }

func (g *v1) Remove() error { return removeAll(g.dirs) }
