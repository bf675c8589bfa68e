package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeployTakesAFloorAndASchedule(t *testing.T) {
	c := newCLI(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte("def handler(event, context): return event\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := c.must("deploy", dir, "--name", "hello", "--dry-run", "-o", "json", "--provisioned", "2", "--schedule", "Mon-Fri 08:00=10", "--schedule", "20:00=1")
	for _, want := range []string{`"provisioned": 2`, `"at": "Mon-Fri 08:00"`, `"count": 10`, `"at": "20:00"`} {
		if !strings.Contains(out, want) {
			t.Errorf("deploy does not show %s:\n%s", want, out)
		}
	}
}
