package process_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool/process"
)

// densityEnv sets how many sandboxes TestIdleMemory keeps at once.
const densityEnv = "STARLING_DENSITY"

// TestIdleMemory reports what an idle sandbox of each runtime costs and holds it under a bound. The figures are the
// cgroup's (kernel memory and page cache included) and the processes' proportional set size.
func TestIdleMemory(t *testing.T) {
	n := 5
	if v, err := strconv.Atoi(os.Getenv(densityEnv)); err == nil {
		n = v
	}
	node := `const fs = require("fs"); fs.writeSync(4, "r"); fs.readSync(3, Buffer.alloc(1))` + "\n"
	variants := []struct {
		name    string
		runtime starling.Runtime
		argv    []string
		maxKiB  int64
	}{
		{"python", starling.Python311, []string{"/usr/bin/python3.11", "-I", "-S", "-B", "/var/runtime/test.py"}, 16 << 10},
		{"node", starling.NodeJS20, []string{"/usr/bin/node", "/var/runtime/idle.js"}, 100 << 10},
		{"node, small", starling.NodeJS20, []string{"/usr/bin/node", "--max-semi-space-size=1", "--v8-pool-size=0", "/var/runtime/idle.js"}, 100 << 10},
		{"node, single", starling.NodeJS20, []string{"/usr/bin/node", "--max-semi-space-size=1", "--single-threaded", "/var/runtime/idle.js"}, 100 << 10},
		{"provided", starling.Provided, nil, 16 << 10},
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			d := newDriver(t, func(c *process.Config) {
				must(t, os.WriteFile(c.RuntimeDir+"/idle.js", []byte(node), 0o644))
				c.Command = func(starling.Runtime) []string { return v.argv }
			})
			tpl := template(t, d, v.runtime)
			var boxes []*box
			for range n {
				b := clone(t, tpl)
				switch v.runtime {
				case starling.Python311:
					b.MustPython("out = 1")
				case starling.NodeJS20:
					must(t, b.Channel().SetReadDeadline(time.Now().Add(30*time.Second)))
					if _, err := b.Channel().Read(make([]byte, 1)); err != nil {
						t.Fatalf("no sign of node: %v", err)
					}
				}
				boxes = append(boxes, b)
			}
			var group, pss, private int64
			for _, b := range boxes {
				s, err := b.Stats()
				must(t, err)
				group += s.MemoryBytes >> 10
				for _, pid := range process.Processes(b.Sandbox) {
					p, q := rollup(pid)
					pss, private = pss+p, private+q
				}
			}
			k := int64(n)
			t.Logf("%d idle: each cgroup %d KiB, PSS %d KiB, private %d KiB", n, group/k, pss/k, private/k)
			if private/k > v.maxKiB {
				t.Errorf("private memory %d KiB, bound %d", private/k, v.maxKiB)
			}
		})
	}
}

// rollup returns a process's proportional and private memory in KiB.
func rollup(pid int) (pss, private int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "Pss:":
			pss = n
		case "Private_Dirty:", "Private_Clean:":
			private += n
		}
	}
	return pss, private
}
