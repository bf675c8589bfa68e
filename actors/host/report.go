package host

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"time"

	"starling"
	"starling/actors/wire"
)

const (
	reportEvery = 500 * time.Millisecond
	reportSoon  = 20 * time.Millisecond // changes of so long travel in one report
	// A change is reported so much later at the earliest. Every partition reads every report, and a change is the end of a
	// start whose first call is just going out: the call needs the cores more than the partitions need the news.
	reportPause = 5 * time.Millisecond
)

// reportLoop tells every scheduler node the host's room.
func (h *Host) reportLoop(ctx context.Context) {
	var meter cpuMeter
	t := time.NewTimer(0)
	defer t.Stop()
	last, gathered, due := time.Time{}, time.Time{}, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.nudge:
			if !due { // a later change does not put it off again
				due = true
				t.Reset(max(reportSoon-time.Since(last), reportPause))
			}
			continue
		case <-t.C:
			due = false
		}
		last = time.Now()
		h.keepRoom(last)
		if last.Sub(gathered) >= reportEvery { // not at each nudge
			gathered = last
			h.gather(last)
		}
		r := h.report(meter.busy())
		for _, n := range h.cfg.Schedulers() {
			h.cfg.Post.Send(wire.Address{Node: n}, r)
		}
		t.Reset(reportEvery)
	}
}

// report is the host's room now. It is shared by all receivers and never changed again.
func (h *Host) report(cpu uint16) *wire.HostReport {
	h.mu.Lock()
	r := &wire.HostReport{Host: h.cfg.Node, Zone: h.cfg.Zone, FreeMiB: uint32(max(h.cfg.MemoryMiB-h.used, 0)), TotalMiB: uint32(h.cfg.MemoryMiB),
		Instances: uint32(h.count - h.starting), Starting: uint32(h.starting), CPU: cpu, Draining: h.draining.Load() || h.cfg.Stopping(), Versions: slices.Clone(h.versions)}
	if h.count >= h.cfg.InstanceMax {
		r.FreeMiB = 0
	}
	h.mu.Unlock()
	r.Isolations = h.Isolations()
	for _, i := range r.Isolations.List() {
		stock := h.cfg.Pools[i].Stock()
		for _, rt := range starling.Runtimes {
			if n, ok := stock[rt]; ok {
				r.Pools = append(r.Pools, wire.PoolReport{Runtime: rt, Ready: uint32(n), Isolation: stored(i)})
			}
		}
	}
	return r
}

// stored is how i is said to others: empty for process.
func stored(i starling.Isolation) starling.Isolation {
	if i == starling.IsolationProcess {
		return ""
	}
	return i
}

// Isolations returns what this host can give.
func (h *Host) Isolations() (s starling.Isolations) {
	for i := range h.cfg.Pools {
		s |= starling.SetOf(i)
	}
	return s
}

// Room returns how many instances there are, starting ones included, and the memory that new ones may claim, of how much,
// in MiB.
func (h *Host) Room() (instances, free, total int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count, max(h.cfg.MemoryMiB-h.used, 0), h.cfg.MemoryMiB
}

// cpuMeter reads the busy share of all cores between two calls from /proc/stat.
type cpuMeter struct{ total, idle uint64 }

// busy returns thousandths; 0 where the file cannot be read.
func (c *cpuMeter) busy() uint16 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := bytes.Fields(line)
	var total, idle uint64
	for i, f := range fields[min(1, len(fields)):] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil || i > 7 { // guest time is counted in user time already
			break
		}
		total += n
		if i == 3 || i == 4 {
			idle += n
		}
	}
	dt, di := total-c.total, idle-c.idle
	first := c.total == 0
	c.total, c.idle = total, idle
	if first || dt == 0 || di > dt {
		return 0
	}
	return uint16((dt - di) * 1000 / dt)
}
