package metrics

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
)

// A Runnable reads how many threads of the machine want a processor at this instant, from /proc/loadavg. A read costs some
// microseconds. One goroutine uses it.
type Runnable struct {
	file *os.File // nil where there is none
	cpus float64
}

// OpenRunnable returns a reader; where the file cannot be opened it reads 0.
func OpenRunnable() *Runnable {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		f = nil
	}
	return &Runnable{f, float64(runtime.NumCPU())}
}

// Close gives the file back.
func (r *Runnable) Close() {
	if r.file != nil {
		r.file.Close()
	}
}

// PerCPU returns how many threads besides the one that reads want to run, for each processor.
func (r *Runnable) PerCPU() float64 {
	if r.file == nil {
		return 0
	}
	var b [64]byte
	n, _ := r.file.ReadAt(b[:], 0)
	return float64(runnable(b[:n])) / r.cpus
}

// runnable returns how many threads want to run besides the one that reads, from the text of /proc/loadavg: its fourth
// field is "runnable/all".
func runnable(loadavg []byte) int {
	fields := bytes.Fields(loadavg)
	if len(fields) < 4 {
		return 0
	}
	want, _, _ := bytes.Cut(fields[3], []byte("/"))
	n, _ := strconv.Atoi(string(want))
	return max(n-1, 0)
}
