// Package cgroup bounds, counts, freezes and kills the processes of one sandbox. It speaks both cgroup versions by
// plain file writes: the handful of files a sandbox needs is less than any library's interface.
package cgroup

import "time"

// Limits bound one sandbox.
type Limits struct {
	MemoryBytes int64   // hard limit, swap included
	CPU         float64 // most CPUs' worth of time, > 0
	Weight      float64 // CPUs' worth of weight against neighbours; 0 means CPU
	Processes   int     // processes and threads together
}

// Stats is what a group used so far.
type Stats struct {
	MemoryBytes int64 // now, page cache and kernel memory included
	MemoryMax   int64 // peak
	CPU         time.Duration
	Processes   int
}

// period is how often the CPU quota is refilled. A long period lets a short call run to its end unthrottled.
const period = 100 * time.Millisecond

// weightUnit is the cpu weight (v1 shares) of one whole CPU.
const weightUnit = 1024

// A Group is the cgroup of one sandbox. Each value writes only the limits that differ from those it set before, because a
// write costs a start about 25 µs; so one value sets them all, or another only what comes after. Not for concurrent use of
// Create, Limit and LimitCPU.
type Group interface {
	// Create makes the group with its limits.
	Create(Limits) error
	// Limit replaces the limits.
	Limit(Limits) error
	// LimitCPU replaces the limit and the weight of CPU time only.
	LimitCPU(cpu, weight float64) error
	// Place moves the process pid into the group. Its future children are born there.
	Place(pid int) error
	// PlaceBehind is Place, but until Forward the process gets only those CPUs that nothing else on the machine wants. In
	// version 2, and where the controllers cpu and cpuacct of version 1 are one mount, nothing differs: a process has one group for both,
	// which counts what it uses. There weight has to do.
	PlaceBehind(pid int) error
	// Forward ends what PlaceBehind began, for every process of the group. In version 1 it may sleep for some 10 ms.
	Forward() error
	// Freeze stops every process until Thaw; it returns when all are stopped.
	Freeze() error
	Thaw() error
	// Kill ends every process in the group, also frozen ones, and waits until the group is empty.
	Kill() error
	// OutOfMemory reports whether the kernel killed a process of the group for its memory limit.
	OutOfMemory() bool
	Stats() (Stats, error)
	// Processes lists them as the host numbers them; none when the group is gone.
	Processes() []int
	// Remove deletes the group, which must be empty or about to be.
	Remove() error
}

// weigh returns the weight in CPUs: that of the limit when none is given.
func weigh(cpu, weight float64) float64 {
	if weight == 0 {
		return cpu
	}
	return weight
}
