package kata

import (
	"errors"

	"starling/vmpool"
	"starling/vmpool/kata/link"
)

// PIDOf returns the process of a sandbox's VM; 0 when it cannot be asked.
func PIDOf(s vmpool.Sandbox) int {
	a, err := s.(*sandbox).ask(&link.Message{Op: link.Stats})
	if err != nil {
		return 0
	}
	return a.Use.PID
}

// KillVMD kills a driver's starling-vmd.
func KillVMD(d *Driver) error {
	d.mu.Lock()
	l := d.life
	d.mu.Unlock()
	if l == nil || l.process == nil {
		return errors.New("starling-vmd does not run")
	}
	return l.process.Kill()
}
