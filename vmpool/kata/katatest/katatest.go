// Package katatest readies real microVMs for tests: the programs, built once for a test binary, and the images of the user's
// cache.
package katatest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool/kata"
	"starling/vmpool/runtimes"
)

// Patience is how long a clone may take to be ready on a busy machine that emulates it, its template included.
const Patience = 2 * time.Minute

// programs builds starling-guest and starling-vmd once for a test binary. They are kept in the user's cache, where Go sees
// that nothing changed: linking Kata takes seconds. Each checkout has a folder of its own there, or the tests of one would run the
// programs of another.
var programs = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	module, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "starling/test", fmt.Sprintf("%x", sha256.Sum256(module))[:8])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return dir, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return dir, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return dir, err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "starling/cmd/starling-guest", "starling/cmd/starling-vmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return dir, err
	}
	to := filepath.Join(dir, "runtimes")
	if err := runtimes.Write(to); err != nil {
		return dir, err
	}
	return dir, runtimes.Compile(context.Background(), to, "/usr/bin/python3")
})

// configs counts them, because no two drivers may share a tag.
var configs atomic.Int64

// Config returns the configuration of a driver over real microVMs. It skips the test where they cannot be: without root, QEMU or
// images. Templates come from the user's cache, or are built there.
func Config(t testing.TB) kata.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making microVMs needs root")
	}
	cfg := kata.DefaultConfig()
	images, cache, err := kata.DefaultImages()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{cfg.QEMU, filepath.Join(images, "kernel/vmlinuz"), filepath.Join(images, "provided.erofs")} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("no microVMs without %s: make guest-images", path)
		}
	}
	dir, err := programs()
	if err != nil {
		t.Fatalf("build programs: %v", err)
	}
	cfg.VMD, cfg.GuestPath, cfg.RuntimeDir = filepath.Join(dir, "starling-vmd"), filepath.Join(dir, "starling-guest"), filepath.Join(dir, "runtimes")
	cfg.Images, cfg.Cache = images, cache
	cfg.Tag = fmt.Sprintf("test-vm-%d-%d", os.Getpid(), configs.Add(1))
	cfg.Command = func(rt starling.Runtime) []string {
		return runtimes.Command(rt, runtimes.Dir, "/usr/bin/python3", "/usr/bin/node")
	}
	cfg.Log = slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	return cfg
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }
