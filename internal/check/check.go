// Package check stops the program when its own state is wrong, before the wrong spreads. Disks, peers and
// users fail with errors; only our own invariants belong here.
package check

import "fmt"

// That panics with the formatted sentence unless ok. The arguments are only formatted on failure; keep
// calls off paths where boxing them would show.
func That(ok bool, format string, args ...any) {
	if !ok {
		panic("broken invariant: " + fmt.Sprintf(format, args...))
	}
}
