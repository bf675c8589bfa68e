// Package quiet stops a library from writing to standard error before main runs. Every version of
// github.com/VictoriaMetrics/metrics with Prometheus-style histograms tells, while it is initialised, that a machine has no pressure-stall files; every
// command of ours would begin with that line. The line goes through the standard logger, which Dragonboat's logging library
// takes over at its own initialisation, so its level is raised here.
//
// This works because a package is initialised as soon as what it imports is, in order of import paths: this one needs
// much less than the metrics library, which waits for net/http. A test of the built binary holds it.
package quiet

import "github.com/lni/goutils/logutil/capnslog"

func init() { capnslog.SetGlobalLogLevel(capnslog.ERROR) }
