package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// v2 is one group in the unified hierarchy.
type v2 struct {
	dir  string
	have Limits // as this value set them; zero when it did not
}

func (g *v2) Create(l Limits) error {
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	// One process over the limit takes the whole instance with it, so that no half of a function answers calls.
	if err := write(g.dir, "memory.oom.group", "1"); err != nil {
		return err
	}
	return g.Limit(l)
}

func (g *v2) Limit(l Limits) error {
	if l.MemoryBytes != g.have.MemoryBytes {
		if err := write(g.dir, "memory.max", strconv.FormatInt(l.MemoryBytes, 10)); err != nil {
			return err
		}
	}
	if g.have.MemoryBytes == 0 {
		if err := write(g.dir, "memory.swap.max", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	g.have.MemoryBytes = l.MemoryBytes
	if err := g.LimitCPU(l.CPU, l.Weight); err != nil {
		return err
	}
	if l.Processes != g.have.Processes {
		if err := write(g.dir, "pids.max", strconv.Itoa(l.Processes)); err != nil {
			return err
		}
		g.have.Processes = l.Processes
	}
	return nil
}

func (g *v2) LimitCPU(cpu, weight float64) error {
	weight = weigh(cpu, weight)
	if cpu != g.have.CPU {
		if err := write(g.dir, "cpu.max", fmt.Sprintf("%d %d", quota(cpu), period.Microseconds())); err != nil {
			return err
		}
		g.have.CPU = cpu
	}
	if weight != g.have.Weight {
		if err := write(g.dir, "cpu.weight", strconv.Itoa(weight2(weight))); err != nil {
			return err
		}
		g.have.Weight = weight
	}
	return nil
}

// weight2 returns the weight of so many CPUs; the kernel's default of 100 is one.
func weight2(cpus float64) int { return min(10_000, max(1, int(cpus*100))) }

func (g *v2) Place(pid int) error { return write(g.dir, "cgroup.procs", strconv.Itoa(pid)) }

func (g *v2) PlaceBehind(pid int) error { return g.Place(pid) }

func (g *v2) Forward() error { return nil }

func (g *v2) Freeze() error {
	if err := write(g.dir, "cgroup.freeze", "1"); err != nil {
		return err
	}
	deadline := time.Now().Add(2 * time.Second)
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if field(g.dir, "cgroup.events", "frozen") == 1 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(errors.New("freeze: not frozen after 2 s"), g.Thaw())
		}
		time.Sleep(wait)
	}
}

func (g *v2) Thaw() error { return write(g.dir, "cgroup.freeze", "0") }

// Kill uses cgroup.kill, which no fork can outrun, where the kernel has it (5.14).
func (g *v2) Kill() error {
	_ = write(g.dir, "cgroup.kill", "1")
	return killAll(g.dir, func() {})
}

func (g *v2) OutOfMemory() bool { return field(g.dir, "memory.events", "oom_kill") > 0 }

func (g *v2) Processes() []int { return processes(g.dir) }

func (g *v2) Stats() (Stats, error) {
	var s Stats
	var err [3]error
	var procs int64
	s.MemoryBytes, err[0] = readInt(g.dir, "memory.current")
	s.MemoryMax, err[1] = readInt(g.dir, "memory.peak")
	if errors.Is(err[1], os.ErrNotExist) { // before Linux 5.19 nobody counts the peak
		s.MemoryMax, err[1] = s.MemoryBytes, nil
	}
	procs, err[2] = readInt(g.dir, "pids.current")
	s.CPU, s.Processes = time.Duration(field(g.dir, "cpu.stat", "usage_usec"))*time.Microsecond, int(procs)
	return s, errors.Join(err[:]...)
}

func (g *v2) Remove() error { return removeAll([]string{g.dir}) }
