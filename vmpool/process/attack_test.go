package process_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool/process"
	"starling/vmpool/process/attack"
	"starling/vmpool/process/link"
	"starling/vmpool/process/processtest"
)

// TestAttacks is the escape suite. It takes about half a minute.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("the escape suite is slow; run it without -short")
	}
	cfg := testConfig(t)
	cfg.TmpBytes, cfg.TmpInodes = 64<<20, 4096
	d := process.New(cfg)
	defer func() { must(t, d.Close()); leftNothing(t, cfg) }()
	attack.Run(t, attack.Target{
		Template: template(t, d, starling.Python311), MemoryMiB: 192, MostMiB: 1769, TmpBytes: cfg.TmpBytes, TmpInodes: cfg.TmpInodes,
		Processes: cfg.ProcessesMax, Files: cfg.Files, SpareMiB: 64, Secrets: processtest.Secrets(cfg),
		PIDs: process.Processes,
	})
}

// TestFirstProcessWaitsForItsCgroup is row B24: until the warden says that the process sits in its cgroup, no program
// starts; and when the warden never says so, none does.
func TestFirstProcessWaitsForItsCgroup(t *testing.T) {
	control, theirs, err := link.Pair()
	must(t, err)
	defer theirs.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command(processtest.Guest, "init")
	cmd.Stdout, cmd.Stderr = w, w
	cmd.ExtraFiles = []*os.File{w, w, theirs} // descriptors 3, 4 and 5
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	w.Close()
	theirs.Close()
	time.Sleep(time.Second) // the injected delay of the row: a first process that does not wait would be far by then
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
	if err != nil || exe != processtest.Guest {
		t.Fatalf("runs %s %v", exe, err)
	}
	before, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", cmd.Process.Pid))
	must(t, err)
	if mine, _ := os.Readlink("/proc/self/ns/cgroup"); before != mine {
		t.Fatal("left its cgroup namespace before it was placed")
	}
	must(t, control.Close())
	if err := cmd.Wait(); err == nil {
		t.Fatal("went on without the warden")
	}
}
