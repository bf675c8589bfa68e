package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
}

func content(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	return string(b)
}

// A folder stands for the unified hierarchy: the kernel here offers only version 1 with controllers.
func TestVersion2WritesItsFiles(t *testing.T) {
	root := t.TempDir()
	put(t, root, map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": ""})
	tree, err := Find(root, "starling-x")
	must(t, err)
	if tree.Version() != 2 {
		t.Fatalf("version %d", tree.Version())
	}
	parent := filepath.Join(root, "starling-x")
	put(t, parent, map[string]string{"cgroup.subtree_control": "", "cpu.weight": ""})
	must(t, tree.Open())
	if got, want := content(t, parent, "cpu.weight"), strconv.Itoa(100*runtime.NumCPU()); got != want {
		t.Errorf("all sandboxes together weigh %s, want %s", got, want)
	}
	for _, d := range []string{root, parent} {
		if got := content(t, d, "cgroup.subtree_control"); got != "+memory +cpu +pids" {
			t.Errorf("%s enables %q", d, got)
		}
	}
	dir := filepath.Join(parent, "7")
	put(t, dir, map[string]string{"memory.max": "", "memory.swap.max": "", "cpu.max": "", "cpu.weight": "", "pids.max": "", "cgroup.procs": "", "cgroup.kill": "", "cgroup.freeze": "",
		"memory.current": "4096\n", "memory.peak": "8192\n", "pids.current": "3\n", "cpu.stat": "usage_usec 1500\nuser_usec 1\n", "memory.events": "low 0\noom 2\noom_kill 1\n",
		"cgroup.events": "populated 1\nfrozen 1\n"})
	g := tree.Group("7")
	must(t, g.Limit(Limits{MemoryBytes: 1 << 27, CPU: .5, Processes: 64}))
	for name, want := range map[string]string{"memory.max": "134217728", "memory.swap.max": "0", "cpu.max": "50000 100000", "cpu.weight": "50", "pids.max": "64"} {
		if got := content(t, dir, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	put(t, dir, map[string]string{"memory.max": "", "cpu.max": "", "memory.swap.max": "unchanged", "pids.max": "unchanged", "cpu.weight": "unchanged"})
	must(t, g.Limit(Limits{MemoryBytes: 1 << 26, CPU: .25, Weight: .5, Processes: 64}))
	must(t, g.Freeze())
	must(t, g.Place(42))
	for name, want := range map[string]string{"memory.max": "67108864", "memory.swap.max": "unchanged", "cpu.max": "25000 100000", "cpu.weight": "unchanged", "pids.max": "unchanged", "cgroup.freeze": "1", "cgroup.procs": "42"} {
		if got := content(t, dir, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	s, err := g.Stats()
	must(t, err)
	if want := (Stats{4096, 8192, 1500 * time.Microsecond, 3}); s != want || !g.OutOfMemory() {
		t.Errorf("%+v, want %+v", s, want)
	}
	if names := tree.Names(); len(names) != 1 || names[0] != "7" {
		t.Errorf("groups %v", names)
	}
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	root := t.TempDir()
	if _, err := Find(root, "x"); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("empty folder: %v", err)
	}
	put(t, root, map[string]string{"cgroup.controllers": "cpu pids"})
	if _, err := Find(root, "x"); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("no memory controller: %v", err)
	}
}

func TestSharedMountIsOneGroup(t *testing.T) {
	root := t.TempDir()
	for _, c := range []string{"memory", "cpu,cpuacct", "pids", "freezer"} {
		must(t, os.Mkdir(filepath.Join(root, c), 0o755))
	}
	must(t, os.Symlink("cpu,cpuacct", filepath.Join(root, "cpu")))
	must(t, os.Symlink("cpu,cpuacct", filepath.Join(root, "cpuacct")))
	tree, err := Find(root, "x")
	must(t, err)
	if n := len(tree.dirs("1")); n != 4 {
		t.Fatalf("%d folders for four mounts", n)
	}
	for _, d := range tree.dirs("1") {
		put(t, d, map[string]string{"cgroup.procs": ""})
	}
	must(t, tree.Group("1").PlaceBehind(4711)) // who stood behind would have its time counted there
	if got := content(t, filepath.Join(root, "cpu,cpuacct/x/1"), "cgroup.procs"); got != "4711" {
		t.Errorf("the group that counts processor time has %q", got)
	}
}

// TestKillReachesFrozenProcesses uses the machine's own cgroups.
func TestKillReachesFrozenProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	tree, err := Find("/sys/fs/cgroup", "starling-cgroup-test")
	if err != nil {
		t.Skip(err)
	}
	lock, err := tree.Lock(time.Second)
	must(t, err)
	defer lock.Close()
	if _, err := tree.Lock(10 * time.Millisecond); err == nil {
		t.Error("locked twice")
	}
	g := tree.Group("1")
	must(t, g.Create(Limits{MemoryBytes: 64 << 20, CPU: .1, Processes: 8}))
	cmd := exec.Command("/bin/sh", "-c", "sleep 100 & sleep 100")
	must(t, cmd.Start())
	must(t, g.Place(cmd.Process.Pid))
	must(t, g.Freeze())
	if s, err := g.Stats(); err != nil || s.Processes < 1 {
		t.Errorf("%+v %v", s, err)
	}
	must(t, tree.Sweep())
	if err := cmd.Wait(); err == nil {
		t.Error("was not killed")
	}
	must(t, tree.Remove())
	if _, err := os.Stat(tree.dirs("")[0]); err == nil {
		t.Error("the parent group is still there")
	}
}

// TestForwardMovesEveryProcess uses the machine's own cgroups: what is placed behind lies in a group that is idle to the kernel,
// beside the parent group; Forward moves it and what it forked, and nothing is left in the end.
func TestForwardMovesEveryProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	tree, err := Find("/sys/fs/cgroup", "starling-forward-test")
	if err != nil || tree.behind() == "" {
		t.Skip("no cgroups of version 1 with cpu and cpuacct apart: ", err)
	}
	lock, err := tree.Lock(time.Second)
	must(t, err)
	defer lock.Close()
	g := tree.Group("1")
	must(t, g.Create(Limits{MemoryBytes: 64 << 20, CPU: 1, Weight: .1, Processes: 8}))
	cmd := exec.Command("/bin/sh", "-c", "read x; sleep 100 & sleep 100")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, g.PlaceBehind(cmd.Process.Pid))
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(10 * time.Second); len(g.Processes()) < 3 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	behind, own := "/sys/fs/cgroup/cpu/starling-forward-test-behind", "/sys/fs/cgroup/cpu/starling-forward-test/1"
	if n := strings.TrimSpace(content(t, behind, "cpu.idle")); n != "1" {
		t.Errorf("cpu.idle of the group behind is %s", n)
	}
	if a, b := len(processes(behind)), len(processes(own)); a != 3 || b != 0 {
		t.Errorf("%d processes behind, %d in their own group", a, b)
	}
	must(t, g.Forward())
	if a, b := len(processes(behind)), len(processes(own)); a != 0 || b != 3 {
		t.Errorf("after Forward %d processes behind, %d in their own group", a, b)
	}
	must(t, tree.Sweep())
	_ = cmd.Wait() // it was killed
	must(t, tree.Remove())
	for _, d := range []string{behind, own} {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is still there", d)
		}
	}
}
