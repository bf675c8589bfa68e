package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/kata/katatest"
	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
)

const insideEnv = "STARLING_TEST_INSIDE"

// TestBootInsteadOfCloneIsAnError: Kata's factory boots a guest when a configuration is not that of the template, and says nothing.
// It runs in a child with mounts of its own, as starling-vmd does.
func TestBootInsteadOfCloneIsAnError(t *testing.T) {
	if testing.Short() {
		t.Skip("microVMs are slow without hardware; run it without -short")
	}
	cfg := katatest.Config(t)
	if os.Getenv(insideEnv) != "" {
		bootInsteadOfClone(t, cfg)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func bootInsteadOfClone(t *testing.T, cfg kata.Config) {
	if err := errors.Join(ownRun(), os.MkdirAll(vmDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	setup := &link.Setup{Images: cfg.Images, Cache: cfg.Cache, Guest: cfg.GuestPath, Programs: cfg.RuntimeDir, QEMU: cfg.QEMU, MemoryMiB: 192, CodeMiB: 16,
		TmpBytes: 16 << 20, TmpFiles: 1000, Files: 100, Tasks: 50, RuntimeAPI: vmpool.RuntimeAPI, Groups: "starling-" + cfg.Tag}
	g, err := openGroups(setup.Groups)
	if err != nil {
		t.Fatal(err)
	}
	ctx := vc.WithNewAgentFunc(context.Background(), vc.NewMockAgent)
	tpl, err := openTemplate(ctx, setup, g, string(starling.Provided), shim.TCG)
	if err != nil {
		t.Fatal(err)
	}
	m, err := tpl.clone(ctx, "true")
	if err != nil {
		t.Fatalf("a true clone is refused: %v", err)
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	other := tpl.config
	other.HypervisorConfig.KernelParams = append(kernelParams(shim.TCG), vc.Param{Key: "other"})
	if _, err := tpl.cloneAs(ctx, other, "other"); !errors.Is(err, errBooted) {
		t.Fatalf("a guest that was booted instead of cloned: %v", err)
	}
	// The second guard asks the guest itself, should QEMU's command line ever look different.
	tpl.boot = "another boot"
	if _, err := tpl.clone(ctx, "false"); !errors.Is(err, errBooted) {
		t.Fatalf("a guest of another boot: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); children(t) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d VMs are left", children(t))
		}
	}
	if err := g.close(); err != nil {
		t.Errorf("groups of VMs are left: %v", err)
	}
	if left, _ := os.ReadDir(vmDir); len(left) > 0 {
		t.Errorf("%d folders of VMs are left", len(left))
	}
}

// children counts this process's own.
func children(t *testing.T) (n int) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, f := range strings.Fields(string(text)) {
			if _, err := strconv.Atoi(f); err == nil {
				n++
			}
		}
	}
	return n
}
