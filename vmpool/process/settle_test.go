package process_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
)

// TestSmallFunctionStartsOnAWholeCPU: warm and behind, a sandbox weighs little; with code it has one CPU until it
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
