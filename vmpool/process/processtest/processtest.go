// Package processtest is what tests of drivers with a warden have in common: the guest program, built once for a test binary,
// drivers over it, sandboxes of the attack suite's runtime, and the search for what they left behind.
package processtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
	"starling/vmpool/process/attack"
)

// Guest is the starling-guest binary of a test binary that begins with [Main].
var Guest string

// Main builds the guest, runs the tests and returns their exit status.
func Main(m *testing.M) int {
	if Guest = os.Getenv(guestVariable); Guest != "" {
		return m.Run() // a node of NodeKilled, which ends without a chance to tidy up
	}
	dir, err := os.MkdirTemp("", "starling-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if Guest, err = Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Build builds starling-guest in dir and returns its path.
func Build(dir string) (string, error) {
	path := filepath.Join(dir, "starling-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "starling/cmd/starling-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build starling-guest: %w\n%s", err, out)
	}
	return path, nil
}

// Config returns the configuration of a process driver whose Python is the attack suite's runtime. It skips the test without root.
func Config(t testing.TB) process.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	dir := t.TempDir()
	runtimes := filepath.Join(dir, "runtimes")
	must(t, os.Mkdir(runtimes, 0o755))
	must(t, os.WriteFile(filepath.Join(runtimes, "test.py"), []byte(attack.Runtime), 0o644))
	cfg := process.DefaultConfig()
	cfg.Dir, cfg.GuestPath, cfg.RuntimeDir = filepath.Join(dir, "process"), Guest, runtimes
	cfg.Tag = fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000)
	cfg.Command = func(r starling.Runtime) []string {
		if r == starling.Python311 {
			return []string{"/usr/bin/python3", "-I", "-S", "-B", "/var/runtime/test.py"}
		}
		return nil
	}
	cfg.Log = slog.New(slog.NewTextHandler(writer{t}, nil))
	return cfg
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Template returns the template of a runtime.
func Template(t testing.TB, d *process.Driver, r starling.Runtime) vmpool.Template {
	t.Helper()
	tpl, err := d.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: r})
	must(t, err)
	return tpl
}

// A Box is a sandbox of the attack suite's runtime, which executes what it is told.
type Box struct {
	*attack.Box
	t testing.TB
}

// Clone returns a sandbox that ends with the test.
func Clone(t testing.TB, tpl vmpool.Template) *Box {
	t.Helper()
	return &Box{attack.NewBox(t, tpl), t}
}

// MustPython executes source, which must not fail, and returns its variable out.
func (b *Box) MustPython(source string) any {
	b.t.Helper()
	out, err := b.Python(source)
	if err != nil {
		b.t.Fatalf("%s: %v", source, err)
	}
	return out
}

// CodeDir returns a folder with files that a sandbox may read and execute.
func CodeDir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	return dir
}

// CodeMount returns a mount that stands in no namespace and holds main.py, which says answer = 42. The caller closes it.
func CodeMount(t testing.TB) *os.File {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigCreate(fs))
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	m := os.NewFile(uintptr(fd), "code")
	must(t, os.WriteFile(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", fd), "main.py"), []byte("answer = 42\n"), 0o644))
	return m
}

// Attach gives a sandbox the code in dir.
func Attach(t testing.TB, b *Box, dir string) {
	t.Helper()
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
}

// WaitDone waits for the end of a sandbox.
func WaitDone(t testing.TB, s vmpool.Sandbox) vmpool.Exit {
	t.Helper()
	select {
	case <-s.Done():
		return s.Exit()
	case <-time.After(20 * time.Second):
		t.Fatal("the sandbox did not end")
		return vmpool.Exit{}
	}
}

// LeftNothing fails unless every trace of a driver is gone within 15 seconds.
func LeftNothing(t testing.TB, cfg process.Config) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := Traces(cfg)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// Traces lists cgroups, processes and mounts of a driver, and its scratch folder.
func Traces(cfg process.Config) (left []string) {
	left, _ = filepath.Glob("/sys/fs/cgroup/*/starling-" + cfg.Tag)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		group, _ := os.ReadFile(p + "/cgroup")
		mounts, _ := os.ReadFile(p + "/mountinfo")
		if strings.Contains(string(group), "starling-"+cfg.Tag) || strings.Contains(string(mounts), cfg.Dir) {
			exe, _ := os.Readlink(p + "/exe")
			left = append(left, "process "+filepath.Base(p)+" "+exe)
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "root")); err == nil {
		left = append(left, cfg.Dir)
	}
	return left
}

// Secrets are words about the host of a driver that no sandbox may come to know.
func Secrets(cfg process.Config) []string {
	words := []string{cfg.Dir, filepath.Dir(cfg.Dir), cfg.GuestPath, cfg.Tag, "starling-test", "/sys/fs/cgroup", os.TempDir() + "/"}
	if host, _ := os.Hostname(); len(host) > 3 { // a shorter name turns up by chance
		words = append(words, host)
	}
	return words
}
