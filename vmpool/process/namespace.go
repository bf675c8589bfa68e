package process

import (
	"fmt"
	"os"
	"slices"

	"starling"
	"starling/vmpool"
)

var _ vmpool.Namespaced = (*sandbox)(nil)

// Namespace returns the sandbox's network namespace. Every process in it has the same: none may make another.
func (b *sandbox) Namespace() (*os.File, error) {
	const op = "find sandbox's network"
	if !b.driver.cfg.Kind.Sockets {
		return nil, starling.Errorf(starling.Unavailable, op, "isolation %s has sockets of its own", b.driver.cfg.Kind.Name)
	}
	for _, pid := range b.group.Processes() {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			continue // it ended
		}
		if slices.Contains(b.group.Processes(), pid) { // still: its number was nobody else's meanwhile
			return f, nil
		}
		f.Close()
	}
	return nil, starling.Errorf(starling.Unavailable, op, "sandbox %d has ended", b.id)
}
