// Package fake is a vmpool.Driver without processes: functions are Go funcs that speak the real protocols over
// in-memory connections, so everything above the sandbox is exercised as in production. It works inside
// testing/synctest. Plain runs real interpreters as plain processes, without any isolation, for tests.
package fake

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/framed"
)

// A Handler is a function's code. It answers c, or does not.
type Handler func(c *Call)

// Echo answers with the payload.
func Echo(c *Call) { c.Answer("application/json", c.Payload) }

// A Driver makes sandboxes of Go funcs. Set the fields before use.
type Driver struct {
	BootTime   time.Duration      // of one clone
	AttachTime time.Duration      // of one attach
	InitTime   time.Duration      // of the function's own initialisation
	Handlers   map[string]Handler // by the function's handler word; any other word fails to initialise with ErrHandler
	// Spoil, when set, is asked before each act: "build", "clone", "attach". Its error is the act's.
	Spoil func(act string) error

	mu      sync.Mutex
	alive   map[*Sandbox]struct{}
	made    int
	settled int
}

var (
	_ vmpool.Driver  = (*Driver)(nil)
	_ vmpool.Sandbox = (*Sandbox)(nil)
	_ vmpool.Settler = (*Sandbox)(nil)
)

// Name is "fake".
func (d *Driver) Name() string { return "fake" }

func (d *Driver) spoil(act string) error {
	if d.Spoil == nil {
		return nil
	}
	return d.Spoil(act)
}

// BuildTemplate returns at once.
func (d *Driver) BuildTemplate(_ context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	if err := d.spoil("build"); err != nil {
		return nil, err
	}
	return &template{d, spec.Runtime}, nil
}

// Alive returns how many sandboxes are not closed, and Made how many ever were.
func (d *Driver) Alive() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.alive)
}

// Made returns how many sandboxes were cloned so far.
func (d *Driver) Made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

// Settled returns how often a sandbox was given the CPU of its calls.
func (d *Driver) Settled() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settled
}

// Close closes every sandbox that is left.
func (d *Driver) Close() error {
	d.mu.Lock()
	var all []*Sandbox
	for s := range d.alive {
		all = append(all, s)
	}
	d.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
	return nil
}

type template struct {
	d  *Driver
	rt starling.Runtime
}

// Clone takes BootTime.
func (t *template) Clone(ctx context.Context) (vmpool.Sandbox, error) {
	if err := wait(ctx, t.d.BootTime); err != nil {
		return nil, err
	}
	if err := t.d.spoil("clone"); err != nil {
		return nil, err
	}
	s := &Sandbox{d: t.d, rt: t.rt, done: make(chan struct{})}
	s.outR, s.outW = io.Pipe()
	s.errR, s.errW = io.Pipe()
	t.d.mu.Lock()
	if t.d.alive == nil {
		t.d.alive = map[*Sandbox]struct{}{}
	}
	t.d.alive[s] = struct{}{}
	t.d.made++
	t.d.mu.Unlock()
	if t.rt == starling.Provided {
		s.ln = newListener()
		return s, nil
	}
	var inside net.Conn
	s.channel, inside = net.Pipe()
	s.wg.Go(func() {
		g := framed.Guest{Init: s.start, Handle: s.handle}
		g.Serve(inside)
		inside.Close()
		s.end(vmpool.Exit{Code: 1})
	})
	return s, nil
}

func (t *template) Close() error { return nil }

func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A Sandbox holds one function. Its goroutines end with Close.
type Sandbox struct {
	d          *Driver
	rt         starling.Runtime
	channel    net.Conn
	ln         *listener
	outR, errR *io.PipeReader
	outW, errW *io.PipeWriter
	wg         sync.WaitGroup

	mu      sync.Mutex
	code    vmpool.Code
	paused  bool
	pauses  int
	exit    vmpool.Exit
	ended   bool
	done    chan struct{}
	handler Handler
	cancel  context.CancelFunc
}

// Attach takes AttachTime; for provided it starts the bootstrap.
func (s *Sandbox) Attach(ctx context.Context, code vmpool.Code) error {
	if err := wait(ctx, s.d.AttachTime); err != nil {
		return err
	}
	if err := s.d.spoil("attach"); err != nil {
		return err
	}
	s.mu.Lock()
	s.code = code
	s.mu.Unlock()
	if s.ln != nil {
		s.wg.Go(s.bootstrap)
	}
	return nil
}

// start is the guest's initialisation.
func (s *Sandbox) start(set framed.Setup) *framed.Failure {
	s.sleep(s.d.InitTime)
	h, ok := s.d.Handlers[set.Handler]
	if !ok {
		return &framed.Failure{Type: starling.ErrHandler, Message: "no handler " + set.Handler}
	}
	s.mu.Lock()
	s.handler = h
	s.mu.Unlock()
	return nil
}

// sleep waits unless the sandbox ends.
func (s *Sandbox) sleep(d time.Duration) {
	if d == 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

func (s *Sandbox) handle(c *framed.Call) {
	s.handler(&Call{Call: c, sandbox: s})
}

// Channel is the runtime's end of the framed protocol.
func (s *Sandbox) Channel() net.Conn {
	if s.channel == nil {
		return nil
	}
	return s.channel
}

// Listener is where a provided function asks for calls.
func (s *Sandbox) Listener() net.Listener {
	if s.ln == nil {
		return nil
	}
	return s.ln
}

// Output is what handlers print.
func (s *Sandbox) Output() (stdout, stderr io.Reader) { return s.outR, s.errR }

// Settle is counted.
func (s *Sandbox) Settle() error {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.settled++
	return nil
}

// Pause marks the sandbox frozen. It stops no Go func.
func (s *Sandbox) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		return errors.New("paused twice")
	}
	s.paused = true
	s.pauses++
	return nil
}

// Resume undoes Pause.
func (s *Sandbox) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return errors.New("resumed without a pause")
	}
	s.paused = false
	return nil
}

// Stats reports a fixed peak of 32 MiB, and a processor busy for BootTime.
func (s *Sandbox) Stats() (vmpool.Stats, error) {
	return vmpool.Stats{MemoryBytes: 16 << 20, MemoryMax: 32 << 20, CPU: s.d.BootTime, Processes: 1}, nil
}

// Done is closed when the sandbox ended.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Exit says how it ended.
func (s *Sandbox) Exit() vmpool.Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit
}

// end is the death of all processes of the sandbox.
func (s *Sandbox) end(how vmpool.Exit) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended, s.exit = true, how
	cancel := s.cancel
	s.mu.Unlock()
	if s.channel != nil {
		s.channel.Close()
	}
	if cancel != nil {
		cancel()
	}
	s.outW.Close()
	s.errW.Close()
	close(s.done)
}

// Close ends the sandbox and waits for its goroutines. A handler that ignores Call.Done and its socket holds it up.
func (s *Sandbox) Close() error {
	s.end(vmpool.Exit{Code: -1, Signal: "killed"})
	if s.ln != nil {
		s.ln.Close()
	}
	s.outR.Close()
	s.errR.Close()
	s.wg.Wait()
	s.d.mu.Lock()
	delete(s.d.alive, s)
	s.d.mu.Unlock()
	return nil
}

// A Call is one call inside a fake function.
type Call struct {
	*framed.Call
	sandbox *Sandbox
}

// Print writes to stdout.
func (c *Call) Print(s string) { io.WriteString(c.sandbox.outW, s) }

// Sleep works for d, unless the sandbox is killed.
func (c *Call) Sleep(d time.Duration) { c.sandbox.sleep(d) }

// Hang does nothing until the sandbox is killed.
func (c *Call) Hang() { <-c.sandbox.done }

// Done is closed when the sandbox is killed.
func (c *Call) Done() <-chan struct{} { return c.sandbox.done }

// Exit ends the function's process with a status.
func (c *Call) Exit(status int) { c.sandbox.end(vmpool.Exit{Code: status}) }

// ExhaustMemory ends it as the memory limit does.
func (c *Call) ExhaustMemory() {
	c.sandbox.end(vmpool.Exit{Code: -1, Signal: "killed", OutOfMemory: true})
}

// Env returns the environment that the code was given.
func (c *Call) Env() map[string]string {
	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	return c.sandbox.code.Env
}

// Version returns which version this sandbox belongs to.
func (c *Call) Version() starling.VersionID {
	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	return c.sandbox.code.Version
}

// Paused reports whether the sandbox is frozen now, and how often it was.
func (c *Call) Paused() (now bool, times int) {
	c.sandbox.mu.Lock()
	defer c.sandbox.mu.Unlock()
	return c.sandbox.paused, c.sandbox.pauses
}
