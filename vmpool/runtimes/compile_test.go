package runtimes

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const python = "/usr/bin/python3"

// TestCompileShowsNothingOfTheHost: what is compiled on the host names its source as a sandbox sees it, and Write
// removes what an earlier version compiled.
func TestCompileShowsNothingOfTheHost(t *testing.T) {
	if _, err := exec.LookPath(python); err != nil {
		t.Skip("no " + python + " on this machine")
	}
	dir := t.TempDir()
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Compile(context.Background(), dir, python); err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(dir, "python/__pycache__/runtime.*.pyc"))
	if len(found) != 1 {
		t.Fatalf("compiled %v", found)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte(dir)) || !bytes.Contains(b, []byte(Dir+"/python/runtime.py")) {
		t.Error("the compiled runtime names the host's folder")
	}
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(found[0]); !os.IsNotExist(err) {
		t.Errorf("an old one is left: %v", err)
	}
	if err := Compile(context.Background(), dir, "/bin/false"); err == nil {
		t.Error("a failure was not told")
	}
}
