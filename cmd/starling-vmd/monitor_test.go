package main

import (
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"starling/vmpool/kata/shim"
)

// qemu answers one conversation as QEMU's monitor does, with these states one after the other, and returns the commands it was told.
func qemu(t *testing.T, dir string, states ...string) <-chan []string {
	l, err := net.Listen("unix", filepath.Join(dir, shim.MonitorSocket))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan []string, 1)
	go func() {
		var commands []string
		defer func() { told <- commands }()
		c, err := l.Accept()
		l.Close()
		if err != nil {
			return
		}
		defer c.Close()
		in, out := json.NewDecoder(c), json.NewEncoder(c)
		for err = out.Encode(map[string]any{"QMP": map[string]any{}}); err == nil; {
			var q struct{ Execute string }
			if in.Decode(&q) != nil {
				return
			}
			commands = append(commands, q.Execute)
			answer := map[string]any{}
			if q.Execute == "query-status" {
				answer["status"] = states[0]
				states = append(states[1:], states[0])
			}
			err = out.Encode(map[string]any{"return": answer})
		}
	}()
	return told
}

// A clone runs from when its state is loaded, also when Kata let it run before we looked.
func TestLoadedCloneRunsWhoeverLetsIt(t *testing.T) {
	for name, states := range map[string][]string{"we are first": {"inmigrate", "inmigrate", "paused"}, "Kata is first": {"inmigrate", "running"}} {
		dir := t.TempDir()
		told := qemu(t, dir, states...)
		m, err := openMonitor(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.runLoaded(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.close()
		if commands := <-told; commands[len(commands)-1] != "cont" || len(slices.DeleteFunc(commands, func(c string) bool { return c != "query-status" })) != len(states) {
			t.Errorf("%s: it was told %v", name, commands)
		}
	}
}
