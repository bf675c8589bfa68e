package advise

import (
	"math"
	"time"

	"starling"
)

// period is how often the kernel refills the CPU time of a sandbox (CFS bandwidth control: Documentation/scheduler/sched-bwc
// of Linux; the process driver sets it).
const period = 0.1 // seconds

// busy is the share of an instance's CPU above which calls are taken to find the quota used up by those before them.
const busy = 0.5

// A model predicts the mean run time at other sizes. A call waits (for others, not for CPU) and computes; waiting stays
// as it is, computing follows the CPU, which follows the memory. Times are in seconds.
type model struct {
	o        Observation
	run, cpu float64
	wait     float64
	parallel float64 // CPUs that a call can use at once
	pressed  bool    // the quota bounds the demand that was seen: with more CPU it would be more
}

func modelOf(o Observation) model {
	m := model{o: o, run: o.Run.Seconds(), cpu: o.CPU.Seconds()}
	m.parallel = max(1, m.cpu/m.run)
	m.pressed = o.Demand > starling.CPUOf(o.MemoryMiB)*busy
	m.wait = max(0, m.run-m.compute(starling.CPUOf(o.MemoryMiB)))
	return m
}

// compute returns how long a call computes with so many CPUs. Below one CPU the kernel lets it run at full speed until the
// quota of the period is used up. An instance that is little used has a whole quota for each call; in one that is much
// used, calls get the average.
func (m model) compute(cpus float64) float64 {
	if cpus >= 1 || m.pressed || m.o.Demand > cpus*busy {
		return m.cpu / min(cpus, m.parallel)
	}
	quota := cpus * period
	stops := max(math.Ceil(m.cpu/quota)-1, 0)
	return stops*period + m.cpu - stops*quota
}

// at returns the mean run time with the CPU of so much memory. More memory never predicts a slower call, nor less a
// quicker one, however the model misses what was observed.
func (m model) at(memoryMiB int) float64 {
	run := m.wait + m.compute(starling.CPUOf(memoryMiB))
	switch {
	case memoryMiB < m.o.MemoryMiB:
		return max(run, m.run)
	case memoryMiB > m.o.MemoryMiB:
		return min(run, m.run)
	}
	return m.run
}

// size predicts everything at one size. The p99 is stretched like the mean.
func (m model) size(memoryMiB, need int) Size {
	run := m.at(memoryMiB)
	return Size{MemoryMiB: memoryMiB, CPU: starling.CPUOf(memoryMiB), Fits: memoryMiB >= need, Run: seconds(run),
		RunP99: seconds(m.o.RunP99.Seconds() * run / m.run), GiBSeconds: float64(memoryMiB) / 1024 * run * float64(m.o.Calls)}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
