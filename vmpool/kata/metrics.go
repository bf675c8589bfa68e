package kata

import "github.com/VictoriaMetrics/metrics"

type instruments struct {
	build, clone, attach *metrics.PrometheusHistogram
	cloneFailures        *metrics.Counter
}

func newInstruments(set *metrics.Set, d *Driver) instruments {
	set.NewGauge("starling_kata_vms", func() float64 {
		d.mu.Lock()
		l := d.life
		d.mu.Unlock()
		if l == nil {
			return 0
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return float64(len(l.boxes))
	})
	set.NewGauge("starling_kata_hardware", func() float64 {
		if d.Accel() == "kvm" {
			return 1
		}
		return 0
	})
	return instruments{
		build:         set.NewPrometheusHistogram("starling_kata_template_seconds"),
		clone:         set.NewPrometheusHistogram("starling_kata_clone_seconds"),
		attach:        set.NewPrometheusHistogram("starling_kata_attach_seconds"),
		cloneFailures: set.NewCounter("starling_kata_clone_failures_total"),
	}
}
