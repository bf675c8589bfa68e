package processtest

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"starling"
	"starling/vmpool/gvisor"
	"starling/vmpool/process"
	"starling/vmpool/runtimes"
)

// Jail returns the driver of isolation process or gvisor with the shipped runtimes and a guest of its own. It skips the test without root,
// and where gVisor was not built.
func Jail(t testing.TB, isolation starling.Isolation, log *slog.Logger) *process.Driver {
	t.Helper()
	cfg := Config(t)
	dir := t.TempDir()
	var err error
	cfg.GuestPath, err = Build(dir)
	must(t, err)
	cfg.RuntimeDir, cfg.Log = filepath.Join(dir, "runtimes"), log
	must(t, runtimes.Write(cfg.RuntimeDir))
	cfg.Command = func(rt starling.Runtime) []string {
		return runtimes.Command(rt, runtimes.Dir, "/usr/bin/python3", "/usr/bin/node")
	}
	if isolation == starling.IsolationGVisor {
		cfg = gvisor.Config(cfg, Runsc(t))
	}
	return process.New(cfg)
}

// Runsc returns the gVisor that "make runsc" built, and skips the test where there is none.
func Runsc(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd() // of the package under test
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "bin/runsc")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skip("no bin/runsc: run \"make runsc\"")
	return ""
}
