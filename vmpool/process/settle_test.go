package process_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
)

// TestSmallFunctionStartsOnAWholeCPU: cloned behind, a sandbox is idle to the kernel, and brought forward it weighs little; with code it has one CPU until it
// settles, and then its share of the time and the same weight. Version 1 of cgroups only, where the groups of the tests are.
func TestSmallFunctionStartsOnAWholeCPU(t *testing.T) {
	d := newDriver(t, nil)
	tpl := template(t, d, starling.Python311)
	s, err := tpl.(vmpool.BehindCloner).CloneBehind(t.Context())
	must(t, err)
	defer s.Close()
	if _, err := os.Stat(process.CPUFile(s, "cpu.shares")); err != nil {
		t.Skip("the cpu controller of cgroup version 1 is not mounted")
	}
	read := func(name string) int {
		b, err := os.ReadFile(process.CPUFile(s, name))
		must(t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		must(t, err)
		return n
	}
	if _, err := os.Stat(process.CPUFile(s, "cpuacct.usage")); err != nil { // where cpu has cpuacct, too, nobody stands behind
		if n := read("../../" + process.Behind(s) + "/cpu.idle"); n != 1 {
			t.Errorf("the group behind all others has cpu.idle %d", n)
		}
		if b, _ := os.ReadFile(process.CPUFile(s, "cgroup.procs")); len(b) != 0 {
			t.Errorf("a clone that nobody waits for computes beside others: %s", b)
		}
	}
	must(t, s.(vmpool.Forwarder).Forward())
	if b, _ := os.ReadFile(process.CPUFile(s, "cgroup.procs")); len(strings.Fields(string(b))) != len(process.Processes(s)) || len(b) == 0 {
		t.Errorf("of the processes %v only %s were brought forward", process.Processes(s), b)
	}
	if n := read("cpu.shares"); n > 128 {
		t.Errorf("a clone that nobody waits for weighs %d", n)
	}
	must(t, s.Attach(t.Context(), vmpool.Code{Dir: codeDir(t, nil), MemoryMiB: 128}))
	if quota, shares := read("cpu.cfs_quota_us"), read("cpu.shares"); quota != 100_000 || shares != 1024 {
		t.Errorf("with code: quota %d µs, weight %d", quota, shares)
	}
	must(t, s.(vmpool.Settler).Settle())
	if quota, shares := read("cpu.cfs_quota_us"), read("cpu.shares"); quota != 25_000 || shares != 1024 {
		t.Errorf("settled: quota %d µs, weight %d", quota, shares)
	}
}

// TestNothingStandsBehindForLong: a clone that nobody brings forward has its part of the machine after two seconds.
func TestNothingStandsBehindForLong(t *testing.T) {
	d := newDriver(t, nil)
	s, err := template(t, d, starling.Python311).(vmpool.BehindCloner).CloneBehind(t.Context())
	must(t, err)
	defer s.Close()
	if _, err := os.Stat(process.CPUFile(s, "cpu.shares")); err != nil {
		t.Skip("the cpu controller of cgroup version 1 is not mounted")
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if b, _ := os.ReadFile(process.CPUFile(s, "cgroup.procs")); len(b) != 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatal("it stands behind everything else after 20 s")
		}
	}
}
