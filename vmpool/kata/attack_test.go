package kata_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/process/attack"
)

// TestAttacks is the escape suite in microVMs. What a guest's kernel answers proves nothing, the host is the judge.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("microVMs are slow without hardware; run it without -short")
	}
	programs := t.TempDir()
	must(t, os.Chmod(programs, 0o755))
	must(t, os.WriteFile(filepath.Join(programs, "test.py"), []byte(attack.ReadyRuntime), 0o644))
	var cfg kata.Config
	_, tpl := template(t, func(c *kata.Config) {
		c.RuntimeDir, c.TmpBytes, c.TmpInodes = programs, 64<<20, 4096
		c.Command = func(starling.Runtime) []string {
			return []string{"/usr/bin/python3", "-I", "-S", "-B", "/var/runtime/test.py"}
		}
		cfg = *c
	})
	secrets := []string{programs, filepath.Dir(programs), cfg.GuestPath, cfg.VMD, cfg.Cache, os.TempDir() + "/"}
	if host, _ := os.Hostname(); len(host) > 3 { // a shorter name turns up by chance
		secrets = append(secrets, host)
	}
	seen := map[vmpool.Sandbox]int{}
	attack.Run(t, attack.Target{
		Template: tpl, MemoryMiB: 192, TmpBytes: cfg.TmpBytes, TmpInodes: cfg.TmpInodes, OwnKernel: true, Few: true,
		Processes: cfg.Tasks, Files: cfg.Files, SpareMiB: 64, Secrets: secrets, CPUs: 1, MachineMiB: cfg.MemoryMiB,
		PIDs: func(s vmpool.Sandbox) []int {
			if seen[s] == 0 {
				seen[s] = kata.PIDOf(s)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", seen[s])); err != nil || seen[s] == 0 {
				return nil
			}
			return []int{seen[s]}
		},
	})
}
