package relay

import (
	"fmt"
	"sync"
)

// An account keeps the windows of a stream, of both directions.
type account struct {
	mu     sync.Mutex // guards what follows, and what of its stream says so; of the relay's locks only the leaf is taken under it
	grown  *sync.Cond // any of it changed
	credit int        // bytes that may be sent
	under  int        // bytes the peer may have under way
	took   int        // bytes that were passed on since the peer was told
}

func (a *account) begin() {
	a.credit, a.under = window, window
	a.grown = sync.NewCond(&a.mu)
}

// allow takes credit of the peer.
func (a *account) allow(n uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > window || a.credit+int(n) > window {
		return fmt.Errorf("%w: credit over the window", errProtocol)
	}
	a.credit += int(n)
	a.grown.Broadcast()
	return nil
}

// came notes n bytes of the peer, and reports whether it was allowed so many; a.mu is held.
func (a *account) came(n int) bool {
	if n > a.under {
		return false
	}
	a.under -= n
	return true
}

// passed notes n bytes that were passed on, and reports whether the peer is owed credit; a.mu is held.
func (a *account) passed(n int) bool {
	a.took += n
	return a.took >= window/4
}

// taken returns how much the peer is to be allowed more.
func (a *account) taken() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.took
	a.took = 0
	a.under += n
	return uint32(n)
}
