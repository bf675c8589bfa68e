package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/jail"
)

// layout makes what a clone's QEMU is told to use, in a cache where others' code lies, too.
func layout(t *testing.T) (shimDir, vm, template string, args []string) {
	t.Helper()
	root := t.TempDir()
	shimDir, vm, template = filepath.Join(root, "shims"), filepath.Join(root, "vm"), filepath.Join(root, "cache/templates/python")
	for _, dir := range []string{shimDir, vm, template, filepath.Join(root, "cache/code")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(shimDir, RootFile), filepath.Join(template, "memory"), filepath.Join(template, "state"), filepath.Join(root, "cache/code/other.erofs"), filepath.Join(root, "vmlinuz")} {
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return shimDir, vm, template, []string{"-object", "memory-backend-file,id=dimm1,size=320M,mem-path=" + template + "/memory,share=off", "-kernel", root + "/vmlinuz", "-incoming", "defer",
		"-pidfile", vm + "/pid"}
}

// TestAnEmulatorReachesItsOwnFilesOnly confines a process as QEMU is, which then tries files and its parent.
func TestAnEmulatorReachesItsOwnFilesOnly(t *testing.T) {
	if dir := os.Getenv("STARLING_TEST_SHIM"); dir != "" {
		confinedProcess(t, dir, os.Args[slices.Index(os.Args, "--")+1:])
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("giving up rights needs root")
	}
	if jail.LandlockABI() == 0 {
		t.Skip("this kernel has no Landlock: the emulator's files rest on its lack of rights")
	}
	shimDir, vm, template, args := layout(t)
	root := filepath.Dir(vm)
	cmd := exec.Command("/proc/self/exe", append([]string{"-test.run=^TestAnEmulatorReachesItsOwnFilesOnly$", "--"}, args...)...)
	cmd.Env = append(os.Environ(), "STARLING_TEST_SHIM="+shimDir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"write " + vm + "/x: ok", "read " + template + "/memory: ok", "write " + template + "/memory: ok", "read " + template + "/state: ok", "read " + root + "/vmlinuz: ok",
		"write " + template + "/state: refused", "write " + template + "/more: refused", "read " + root + "/cache/code/other.erofs: refused", "read /etc/passwd: refused",
		"write " + shimDir + "/" + RootFile + ": refused", "read /proc/1/environ: refused", "signal: refused", "mount: refused", "chown: refused",
	} {
		if !slices.Contains(strings.Split(string(out), "\n"), want) {
			t.Errorf("not %q in\n%s", want, out)
		}
	}
}

// confinedProcess is what the test starts: it confines itself and says what it can do.
func confinedProcess(t *testing.T, shimDir string, args []string) {
	runtime.LockOSThread()
	parent := os.Getppid()
	if err := confine(shimDir, args); err != nil {
		t.Fatal(err)
	}
	vm, memory := filepath.Dir(args[len(args)-1]), strings.TrimSuffix(args[1][strings.Index(args[1], "mem-path=")+9:], ",share=off")
	root := filepath.Dir(vm)
	say := func(what string, err error) {
		word := "ok"
		switch {
		case errors.Is(err, fs.ErrPermission):
			word = "refused"
		case err != nil:
			word = err.Error()
		}
		fmt.Printf("%s: %s\n", what, word)
	}
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600) // on this thread, which is the confined one
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for _, path := range []string{memory, filepath.Dir(memory) + "/state", root + "/vmlinuz", root + "/cache/code/other.erofs", "/etc/passwd", "/proc/1/environ"} {
		say("read "+path, open(path, unix.O_RDONLY))
	}
	for _, path := range []string{vm + "/x", memory, filepath.Dir(memory) + "/state", filepath.Dir(memory) + "/more", shimDir + "/" + RootFile} {
		say("write "+path, open(path, unix.O_RDWR|unix.O_CREAT))
	}
	say("signal", unix.Kill(parent, 0))
	say("mount", unix.Mount("x", vm, "tmpfs", 0, ""))
	say("chown", unix.Chown(vm, 1, 1))
}
