//go:build race

package manager

import "runtime"

// Go 1.26 has one context of the race detector for all timers of a synctest bubble: two goroutines that look at tickers at one
// instant break the detector (SIGSEGV in its own code, once in some fifty runs). On one processor they cannot; it finds races by
// their order, not by luck.
func init() { runtime.GOMAXPROCS(1) }
