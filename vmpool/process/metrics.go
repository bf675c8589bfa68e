package process

import "github.com/VictoriaMetrics/metrics"

// instruments are the numbers of one driver.
type instruments struct {
	clone, attach                              *metrics.PrometheusHistogram
	cloneFailures, outOfMemory, wardenRestarts *metrics.Counter
}

// buckets of the two histograms, in seconds.
var buckets = []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 5}

func newInstruments(set *metrics.Set, d *Driver, kind string) instruments {
	name := func(what string) string { return "starling_" + kind + "_" + what }
	set.NewGauge(name("sandboxes"), func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(len(d.boxes))
	})
	return instruments{
		clone:          set.NewPrometheusHistogramExt(name("clone_seconds"), buckets),
		attach:         set.NewPrometheusHistogramExt(name("attach_seconds"), buckets),
		cloneFailures:  set.NewCounter(name("clone_failures_total")),
		outOfMemory:    set.NewCounter(name("out_of_memory_total")),
		wardenRestarts: set.NewCounter(name("warden_restarts_total")),
	}
}
