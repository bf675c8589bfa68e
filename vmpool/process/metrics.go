package process

import "github.com/VictoriaMetrics/metrics"

// instruments are the numbers of one driver.
type instruments struct {
	clone, attach                              *metrics.PrometheusHistogram
	cloneFailures, outOfMemory, wardenRestarts *metrics.Counter
}

// buckets of the two histograms, in seconds.
var buckets = []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 5}

func newInstruments(set *metrics.Set, d *Driver) instruments {
	set.NewGauge(`starling_process_sandboxes`, func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(len(d.boxes))
	})
	return instruments{
		clone:          set.NewPrometheusHistogramExt(`starling_process_clone_seconds`, buckets),
		attach:         set.NewPrometheusHistogramExt(`starling_process_attach_seconds`, buckets),
		cloneFailures:  set.NewCounter(`starling_process_clone_failures_total`),
		outOfMemory:    set.NewCounter(`starling_process_out_of_memory_total`),
		wardenRestarts: set.NewCounter(`starling_process_warden_restarts_total`),
	}
}
