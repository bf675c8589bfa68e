package metrics

import (
	"fmt"
	"io"
	"os"
	"runtime"
	rtm "runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var started = time.Now()

// writeProcess writes what every dashboard expects of a process under its usual names.
func writeProcess(w io.Writer) {
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
		fmt.Fprintf(w, "process_cpu_seconds_total %.6f\n", float64(ru.Utime.Nano()+ru.Stime.Nano())/1e9)
	}
	fmt.Fprintf(w, "process_resident_memory_bytes %d\n", residentBytes())
	fmt.Fprintf(w, "process_start_time_seconds %d\n", started.Unix())
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		fmt.Fprintf(w, "process_open_fds %d\n", len(fds))
	}
	samples := []rtm.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/total:bytes"}}
	rtm.Read(samples)
	fmt.Fprintf(w, "go_goroutines %d\n", runtime.NumGoroutine())
	fmt.Fprintf(w, "go_memory_heap_objects_bytes %d\n", samples[0].Value.Uint64())
	fmt.Fprintf(w, "go_gc_cycles_total %d\n", samples[1].Value.Uint64())
	fmt.Fprintf(w, "go_memory_reserved_bytes %d\n", samples[2].Value.Uint64())
}

// residentBytes returns the resident set of this process, or 0 where /proc is missing.
func residentBytes() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
