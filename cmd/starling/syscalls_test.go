package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool/process/attack"
)

var fuzzed = flag.String("fuzzed", "process", "isolations whose instances make random system calls, such as process,gvisor,kata")

// callsAtOnce is how many random system calls one invocation makes: seconds, where a microVM is emulated.
const callsAtOnce = 4000

// TestRandomSystemCalls lets a function of a real node make random system calls: -syscalls so many, drawn from -syscallseed. Its
// instances may die and are replaced; the node and the neighbours live, the host's log stays clean, and nothing is left behind.
func TestRandomSystemCalls(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a real node")
	}
	for _, word := range strings.Split(*fuzzed, ",") {
		t.Run(word, func(t *testing.T) { randomCalls(t, starling.Isolation(word)) })
	}
}

func randomCalls(t *testing.T, isolation starling.Isolation) {
	args, memory := []string{"--isolation", string(isolation)}, 1769
	switch isolation {
	case starling.IsolationGVisor:
		args = append(args, "--runsc", runscBinary(t))
	case starling.IsolationKata:
		memory = 256
	}
	complaints := attack.Complaints()
	c := startNodes(t, testKind{args: args})
	w := &badWorld{t: t, testCluster: c, node: c.nodes[0]}
	w.deploy(t, "echo", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    return event\n"},
		func(c *starling.Config) { c.Isolation = isolation })
	w.deploy(t, "fuzz", starling.Python311, map[string]string{"main.py": attack.Fuzzer + "\ndef handler(event, context): return fuzz(*event)\n"},
		func(c *starling.Config) { c.MemoryMiB, c.TimeoutMS, c.Isolation = memory, 120_000, isolation })
	w.echoes(t)
	calls, seed := attack.Asked(20_000)
	began, sum, failed := time.Now(), attack.Tally{}, 0
	for round := int64(0); sum.Calls < calls; round++ {
		r := w.call(t, "fuzz", fmt.Sprintf("[%d, %d]", seed+round, min(callsAtOnce, calls-sum.Calls)))
		var got attack.Tally
		if r.status == http.StatusOK {
			_ = json.Unmarshal(r.body, &got) // what is no tally did nothing
		}
		if sum.Add(got); got.Calls == 0 {
			if failed++; failed > 50+calls/callsAtOnce {
				t.Fatalf("seed %d: %d invocations failed, %d calls were made; the last: %s", seed, failed, sum.Calls, r)
			}
			time.Sleep(100 * time.Millisecond) // the scheduler backs off, too
		}
		if round%20 == 0 {
			w.echoes(t)
		}
	}
	w.echoes(t)
	t.Logf("%s: %d calls in %v, seed %d: %d numbers answered, %d of %d children ended by a signal, %d invocations failed", isolation, sum.Calls,
		time.Since(began).Round(time.Second), seed, sum.Answered, sum.Killed, sum.Children, failed)
	if now := attack.Complaints(); now > complaints {
		t.Errorf("seed %d: the host's kernel complained: see its log", seed)
	}
	family := descendants(w.node.cmd.Process.Pid)
	if isolation == starling.IsolationKata { // its instances are in no cgroup
		w.node.stop()
	} else {
		w.nothingLeft(t)
	}
	for pid, name := range family {
		if !within(20*time.Second, func() bool { return command(pid) != name }) {
			t.Errorf("process %d of the node is left: %s", pid, name)
		}
	}
}

// descendants returns a process's children and theirs, with their commands.
func descendants(pid int) map[int]string {
	found := map[int]string{}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, word := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(word)
			if name := command(child); name != "" { // none: it ended, or runs what is in a gVisor sandbox, which nothingLeft looks for
				found[child] = name
			}
			for grandchild, name := range descendants(child) {
				found[grandchild] = name
			}
		}
	}
	return found
}

// command returns the command line of a process, nothing when there is none.
func command(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(line)
}
