package partition

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/sched"
)

// numbers are the metrics of one partition. They have a set of their own, which goes when the partition goes:
// taking single metrics out of a large set is slow.
type numbers struct {
	all  *metrics.Set
	step *metrics.PrometheusHistogram

	queue, instances, starting, wanted, leased, cold, rate *metrics.Gauge
	counters                                               []counter
}

// A counter shows one sum of the scheduler.
type counter struct {
	shown *metrics.Counter
	sum   func(*sched.Counts) uint64
}

func newNumbers(p starling.PartitionID) *numbers {
	s := metrics.NewSet()
	label := func(name, more string) string { return fmt.Sprintf(`%s{partition="%d"%s}`, name, uint64(p), more) }
	gauge := func(name string) *metrics.Gauge { return s.NewGauge(label(name, ""), nil) }
	n := &numbers{all: s,
		step: s.NewPrometheusHistogramExt(label("starling_partition_step_seconds", ""),
			[]float64{1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 5e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1}),
		queue: gauge("starling_partition_waiting_calls"), instances: gauge("starling_partition_instances"),
		starting: gauge("starling_partition_starting_instances"), wanted: gauge("starling_partition_wanted_instances"), leased: gauge("starling_partition_leased_slots"),
		cold: gauge("starling_partition_cold_ratio"), rate: gauge("starling_partition_acquires_per_second")}
	add := func(name, more string, sum func(*sched.Counts) uint64) {
		n.counters = append(n.counters, counter{s.NewCounter(label(name, more)), sum})
	}
	add("starling_partition_acquires_total", "", func(c *sched.Counts) uint64 { return c.Acquires })
	add("starling_partition_grants_total", `,start="warm"`, func(c *sched.Counts) uint64 { return c.Grants - c.Cold })
	add("starling_partition_grants_total", `,start="cold"`, func(c *sched.Counts) uint64 { return c.Cold })
	add("starling_partition_starts_total", "", func(c *sched.Counts) uint64 { return c.Starts })
	add("starling_partition_starts_failed_total", "", func(c *sched.Counts) uint64 { return c.StartsFailed })
	add("starling_partition_prewarmed_total", "", func(c *sched.Counts) uint64 { return c.Prewarmed })
	add("starling_partition_retries_spared_total", "", func(c *sched.Counts) uint64 { return c.RetriesSpared })
	add("starling_partition_stops_total", "", func(c *sched.Counts) uint64 { return c.Stops })
	add("starling_partition_evictions_total", "", func(c *sched.Counts) uint64 { return c.Evictions })
	add("starling_partition_exits_total", "", func(c *sched.Counts) uint64 { return c.Exits })
	add("starling_partition_leases_expired_total", "", func(c *sched.Counts) uint64 { return c.Expired })
	add("starling_partition_leases_recalled_total", "", func(c *sched.Counts) uint64 { return c.Recalls })
	add("starling_partition_refusals_total", `,reason="QueueFull"`, func(c *sched.Counts) uint64 { return c.QueueFull })
	add("starling_partition_refusals_total", `,reason="QueueTimeout"`, func(c *sched.Counts) uint64 { return c.QueueTimeout })
	add("starling_partition_refusals_total", `,reason="NoHost"`, func(c *sched.Counts) uint64 { return c.NoHost })
	add("starling_partition_refusals_total", `,reason="Failed"`, func(c *sched.Counts) uint64 { return c.Failed })
	add("starling_partition_refusals_total", `,reason="Moved"`, func(c *sched.Counts) uint64 { return c.Moved })
	add("starling_partition_refusals_total", `,reason="Other"`, func(c *sched.Counts) uint64 { return c.Other })
	return n
}

// set shows a status.
func (n *numbers) set(s *Status) {
	n.queue.Set(float64(s.Waiting))
	n.instances.Set(float64(s.Instances))
	n.starting.Set(float64(s.Starting))
	n.wanted.Set(float64(s.Wanted))
	n.leased.Set(float64(s.Leased))
	n.rate.Set(s.Rate)
	if s.Counts.Grants > 0 {
		n.cold.Set(float64(s.Counts.Cold) / float64(s.Counts.Grants))
	}
	for _, c := range n.counters {
		c.shown.Set(c.sum(&s.Counts))
	}
}
