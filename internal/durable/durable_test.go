package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"starling/internal/durable"
)

func TestWriteFileReplacesWholeFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "member.json")
	if err := os.WriteFile(path, []byte("a text that is longer than the next one"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "short" {
		t.Fatalf("read %q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	alone(t, dir)
}

func TestWriteFileThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "taken"), []byte("x"), 0o600); err == nil {
		t.Fatal("a folder was replaced by a file")
	}
	alone(t, dir)
}

// alone fails the test when dir holds more than one name.
func alone(t *testing.T, dir string) {
	t.Helper()
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Fatalf("left behind: %v, %v", names, err)
	}
}
