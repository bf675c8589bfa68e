package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const emulatorPath = "/usr/bin/qemu-system-x86_64"

// TestAnEmulatorRunsWithHollowLibraries: the loader takes ours in place of the system's, and QEMU makes a whole machine with it.
func TestAnEmulatorRunsWithHollowLibraries(t *testing.T) {
	if _, err := os.Stat(emulatorPath); err != nil {
		t.Skip("no QEMU: " + err.Error())
	}
	dir := t.TempDir()
	if err := Hollow(dir, emulatorPath); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, HollowDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(made) == 0 {
		t.Skip("this QEMU is linked with nothing that is replaced")
	}
	cmd := exec.Command(emulatorPath, "-machine", "q35,accel=tcg", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio")
	cmd.Env = []string{"LD_BIND_NOW=1", "LD_LIBRARY_PATH=" + filepath.Join(dir, HollowDir)}
	cmd.Stdin = strings.NewReader("x/1i 0xfffffff0\nquit\n") // the one thing that would use it
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "Asm output not supported") {
		t.Errorf("QEMU does not say that it has no disassembler: %s", out)
	}
}

// TestOnlyEmulatorsAreLookedInto: a script may stand in for QEMU.
func TestOnlyEmulatorsAreLookedInto(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Hollow(dir, script); err != nil {
		t.Error(err)
	}
	if err := Hollow(dir, filepath.Join(dir, "none")); err == nil {
		t.Error("a QEMU that is not there is no error")
	}
}
