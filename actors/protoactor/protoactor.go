// Package protoactor runs actors on protoactor-go and is its only importer. It uses the local actor module alone:
// cluster and remote of that library bring their own ports, and its request futures race with late answers.
package protoactor

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"

	"starling"
)

// A System spawns actors. An actor's messages are handled one at a time, in the order of their arrival, on a
// goroutine that lives only while there are any. Close stops every actor and waits for it.
type System struct {
	log *slog.Logger
	sys *actor.ActorSystem

	mu     sync.Mutex // a leaf
	closed bool
	refs   map[string]*Ref
}

// New returns an empty system. What the library itself logs goes to log from Warn upwards.
func New(log *slog.Logger) *System {
	quiet := slog.New(atLeast{log.Handler(), slog.LevelWarn})
	sys := actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return quiet }),
		func(c *actor.Config) { c.DeadLetterRequestLogging = false })
	return &System{log: log, sys: sys, refs: map[string]*Ref{}}
}

// A Ref is the address of one actor on this node.
type Ref struct {
	sys     *System
	id      string
	pid     *actor.PID
	max     int64
	waiting atomic.Int64 // events told and not yet handled
	stopped atomic.Bool
	done    chan struct{} // closed when the last message was handled
	handle  func(msg any)
	failed  func(cause any)
}

// Spawn starts an actor. mailboxMax bounds the events that wait for it, in the unit of Tell's weight. When handle
// panics the cause is logged with its stack, failed is called and the actor handles nothing more: what it knew is
// not to be trusted. It is an error when an actor of this id lives, or the system is closed.
func (s *System) Spawn(id string, mailboxMax int, handle func(msg any), failed func(cause any)) (*Ref, error) {
	r := &Ref{sys: s, id: id, max: int64(mailboxMax), done: make(chan struct{}), handle: handle, failed: failed}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, starling.Errorf(starling.Unavailable, "spawn actor", "%s: the node is closing", id)
	}
	if s.refs[id] != nil {
		return nil, starling.Errorf(starling.Conflict, "spawn actor", "%s lives already", id)
	}
	pid, err := s.sys.Root.SpawnNamed(actor.PropsFromFunc(r.receive), id)
	if err != nil {
		return nil, fmt.Errorf("spawn actor %s: %w", id, err)
	}
	r.pid = pid
	s.refs[id] = r
	return r, nil
}

// envelope carries a message with its weight.
type envelope struct {
	msg    any
	weight int64
}

// Tell puts a message that stands for weight events into the mailbox. It reports false, and does nothing, when the
// mailbox has no room for them or the actor was stopped.
func (r *Ref) Tell(msg any, weight int) bool {
	w := int64(max(weight, 1))
	if r.stopped.Load() {
		return false
	}
	if r.waiting.Add(w) > r.max {
		r.waiting.Add(-w)
		return false
	}
	r.sys.sys.Root.Send(r.pid, &envelope{msg, w})
	return true
}

// Waiting is the number of events in the mailbox.
func (r *Ref) Waiting() int { return int(r.waiting.Load()) }

// Stop has the actor handle what it was told so far and then end. It does not wait; Done does.
func (r *Ref) Stop() {
	if r.stopped.CompareAndSwap(false, true) {
		r.sys.sys.Root.Poison(r.pid)
	}
}

// Done is closed when the actor has ended.
func (r *Ref) Done() <-chan struct{} { return r.done }

// receive is called by the library for one message at a time.
func (r *Ref) receive(c actor.Context) {
	switch m := c.Message().(type) {
	case *envelope:
		r.take(m)
	case *actor.Stopped:
		r.sys.mu.Lock()
		delete(r.sys.refs, r.id)
		r.sys.mu.Unlock()
		close(r.done)
	}
}

func (r *Ref) take(m *envelope) {
	defer r.waiting.Add(-m.weight)
	if r.failed == nil {
		return // it has failed before
	}
	defer func() {
		if cause := recover(); cause != nil {
			r.sys.log.Error("actor failed and is ended", "actor", r.id, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
			failed := r.failed
			r.failed = nil
			r.Stop()
			failed(cause)
		}
	}()
	r.handle(m.msg)
}

// Close stops every actor and waits until each has handled what it was told.
func (s *System) Close() error {
	s.mu.Lock()
	s.closed = true
	var refs []*Ref
	for _, r := range s.refs {
		refs = append(refs, r)
	}
	s.mu.Unlock()
	for _, r := range refs {
		r.Stop()
	}
	for _, r := range refs {
		<-r.done
	}
	s.sys.Shutdown()
	return nil
}
