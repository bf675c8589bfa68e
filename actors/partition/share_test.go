package partition_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var nodeCPU = flag.Float64("nodecpu", 0, "CPUs that each scheduler process of a bench may use, 0.1 or more, by a cgroup; 0 for all that there are")

// sharePeriod is how often a node's CPU is refilled, in µs: so short that a node out of CPU is slow and does not seem dead.
const sharePeriod = 10_000

// limitCPU gives a process so many CPUs, as if it had a small machine of its own. It returns what to do when it has ended.
func limitCPU(b *testing.B, pid int, cpus float64) (end func()) {
	root, files := "/sys/fs/cgroup/cpu", [][2]string{{"cpu.cfs_period_us", fmt.Sprint(sharePeriod)}, {"cpu.cfs_quota_us", fmt.Sprint(int(cpus * sharePeriod))}}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, files = "/sys/fs/cgroup", [][2]string{{"cpu.max", fmt.Sprint(int(cpus*sharePeriod), " ", sharePeriod)}}
	}
	dir := filepath.Join(root, fmt.Sprint("starling-bench-", pid))
	must(b, os.Mkdir(dir, 0o700))
	end = func() {
		if err := os.Remove(dir); err != nil {
			b.Error(err)
		}
	}
	for _, f := range append(files, [2]string{"cgroup.procs", fmt.Sprint(pid)}) {
		if err := os.WriteFile(filepath.Join(dir, f[0]), []byte(f[1]), 0); err != nil {
			end()
			b.Fatal(err)
		}
	}
	return end
}
