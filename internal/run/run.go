// Package run starts goroutines that stop together and waits for them.
package run

import (
	"context"
	"sync"
)

// A Group is a set of goroutines with one end. Create it with New; each function given to Go must return
// soon after its context ends. The zero Group is not usable.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // guards stopped; a leaf
	stopped bool
	wg      sync.WaitGroup
}

// New returns a group whose goroutines also end with parent.
func New(parent context.Context) *Group {
	ctx, cancel := context.WithCancel(parent)
	return &Group{ctx: ctx, cancel: cancel}
}

// Context ends when Stop is called or the parent ends.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs f on a goroutine of the group. After Stop it does nothing and reports false.
func (g *Group) Go(f func(ctx context.Context)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return false
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		f(g.ctx)
	}()
	return true
}

// Stop ends the group's context and waits for every goroutine. It may be called twice.
func (g *Group) Stop() {
	g.mu.Lock()
	g.stopped = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
}
