package kata

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/ends"
	"starling/vmpool/kata/link"
	"starling/vmpool/kata/relay"
)

// sandbox is the node's side of one VM. It has the goroutines of its relay, which Close waits for.
type sandbox struct {
	ends.Ends
	driver  *Driver
	runtime starling.Runtime
	life    *life
	id      uint64

	relay   *relay.Relay // nil before the VM is there
	catcher atomic.Pointer[vmpool.Catcher]
	drained chan struct{} // closed when the relay's goroutines ended

	attached bool
	frozen   bool
	closing  sync.Once
	closeErr error

	done chan struct{}
	exit vmpool.Exit // written before done is closed
}

var (
	_ vmpool.Sandbox  = (*sandbox)(nil)
	_ vmpool.Catching = (*sandbox)(nil)
)

// plumb joins the streams of the VM to pipes and sockets of the node.
func (b *sandbox) plumb(stream *os.File) error {
	cfg, ended := relay.Config{Flow: b.flow, Datagram: b.datagram}, func() {}
	if b.runtime == starling.Provided {
		ln := newListener()
		b.Listen(ln)
		cfg.Open, ended = ln.open, func() { ln.Close() }
	}
	b.relay = relay.New(stream, cfg)
	err := b.join()
	// Only now: what comes of a stream that nobody joined is dropped, and the runtime's first word comes at once.
	go func() {
		defer close(b.drained)
		if err := b.relay.Run(); err != nil {
			b.driver.cfg.Log.Warn("stream of a VM", "vm", b.id, "err", err)
		}
		ended()
	}()
	return err
}

// join makes the pipes of a sandbox and gives the relay its ends of them.
func (b *sandbox) join() error {
	shipped := b.runtime != starling.Provided
	theirs, err := b.Plumb(shipped)
	if err != nil {
		return err
	}
	var files [4]*os.File
	for i, fd := range theirs {
		files[i] = os.NewFile(uintptr(fd), "pipe")
	}
	err = errors.Join(b.relay.Join(relay.Stdout, nil, files[0]), b.relay.Join(relay.Stderr, nil, files[1]))
	if shipped {
		err = errors.Join(err, b.relay.Join(relay.Calls, files[2], files[3]))
	}
	return err
}

// Catch has what the guest catches given to c, and the guest catch from Attach on.
func (b *sandbox) Catch(c vmpool.Catcher) { b.catcher.Store(&c) }

// Answer sends a datagram to the code inside. It waits while the guest takes nothing, until the sandbox is closed.
func (b *sandbox) Answer(as, to netip.AddrPort, d []byte) {
	_ = b.relay.Datagram(as, to, d) // too long, or the guest is gone: a datagram may be lost
}

// flow takes a connection that the guest says its code made. A guest that has no network and says so lies.
func (b *sandbox) flow(to netip.AddrPort, f *relay.Flow) {
	if c := b.catcher.Load(); c != nil {
		(*c).Flow(to, f)
		return
	}
	f.Abort()
}

func (b *sandbox) datagram(from, to netip.AddrPort, d []byte) {
	if c := b.catcher.Load(); c != nil {
		(*c).Datagram(from, to, d)
	}
}

// Attach puts the code into the VM's slot, sets the memory limit and, for provided, executes the bootstrap.
func (b *sandbox) Attach(ctx context.Context, code vmpool.Code) error {
	const op = "attach code"
	if b.attached {
		return starling.Errorf(starling.Invalid, op, "VM %d has code: it is never given a second", b.id)
	}
	b.attached = true
	if most := b.driver.cfg.MemoryMiB - ReserveMiB; code.MemoryMiB > most {
		return starling.Errorf(starling.Invalid, op, "the function asks for %d MiB, and microVMs of this node give %d at most: raise the node's kata-memory", code.MemoryMiB, most)
	}
	begun := time.Now()
	m := &link.Message{Op: link.Attach, VM: b.id, Code: code.Dir, MemoryBytes: int64(code.MemoryMiB+vmpool.OverheadMiB(b.runtime)) << 20,
		CPU: starling.CPUOf(code.MemoryMiB), Network: b.catcher.Load() != nil}
	for _, l := range code.Layers {
		m.Layers = append(m.Layers, l.Dir)
	}
	disk := -1
	if d := code.Disk; d != nil {
		m.Meta, m.Data, disk = d.Meta, d.Data, int(d.File.Fd())
	}
	if b.runtime == starling.Provided {
		m.Argv, m.Env = []string{"/var/task/bootstrap"}, vmpool.BootstrapEnv(code.Env)
	}
	a, _, err := b.life.askWith(ctx, m, disk)
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	if a.Entrypoint != "" {
		return starling.Errorf(starling.Failed, "start bootstrap", "%s", a.Entrypoint).With(starling.ErrEntrypoint)
	}
	b.driver.m.attach.UpdateDuration(begun)
	return nil
}

func (b *sandbox) Done() <-chan struct{} { return b.done }
func (b *sandbox) Exit() vmpool.Exit     { return b.exit }

// askMax bounds a question about a VM that has no caller's deadline.
const askMax = 15 * time.Second

func (b *sandbox) ask(m *link.Message) (*link.Message, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askMax)
	defer cancel()
	m.VM = b.id
	a, _, err := b.life.ask(ctx, m)
	return a, err
}

var _ vmpool.Settler = (*sandbox)(nil)

// Settle ends the time in which a small function has a whole CPU of the host to initialise itself.
func (b *sandbox) Settle() error {
	if _, err := b.ask(&link.Message{Op: link.Settle}); err != nil {
		return fmt.Errorf("settle VM %d: %w", b.id, err)
	}
	return nil
}

// Pause stops the VM's processor.
func (b *sandbox) Pause() error {
	if _, err := b.ask(&link.Message{Op: link.Pause}); err != nil {
		return fmt.Errorf("pause VM %d: %w", b.id, err)
	}
	b.frozen = true
	return nil
}

// Resume lets it run on, with the right time.
func (b *sandbox) Resume() error {
	if !b.frozen {
		return nil
	}
	if _, err := b.ask(&link.Message{Op: link.Resume}); err != nil {
		return fmt.Errorf("resume VM %d: %w", b.id, err)
	}
	b.frozen = false
	return nil
}

// Stats asks the guest for the memory that the function used: one that took its guest over can lie, about itself only. The time of
// processors is the host's count for the whole VM.
func (b *sandbox) Stats() (vmpool.Stats, error) {
	if b.frozen {
		return vmpool.Stats{}, fmt.Errorf("read statistics of VM %d: it is paused", b.id)
	}
	a, err := b.ask(&link.Message{Op: link.Stats})
	if err != nil {
		return vmpool.Stats{}, fmt.Errorf("read statistics of VM %d: %w", b.id, err)
	}
	return vmpool.Stats{MemoryBytes: a.Use.MemoryBytes, MemoryMax: a.Use.MemoryMax, CPU: a.Use.CPU, Processes: a.Use.Processes}, nil
}

// lastWords bounds the wait for what a VM sent before it ended.
const lastWords = time.Second

// end notes how the sandbox ended, after everything that came of it is where it is read.
func (b *sandbox) end(e vmpool.Exit) {
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-b.drained:
	case <-t.C:
	}
	b.exit = e
	close(b.done)
}

// Close ends the VM and waits until nothing of it is left.
func (b *sandbox) Close() error {
	b.closing.Do(func() { b.closeErr = b.close() })
	return b.closeErr
}

func (b *sandbox) close() error {
	_, err := b.ask(&link.Message{Op: link.Kill})
	if errors.Is(err, errGone) {
		err = nil // VMs end with their starling-vmd
	}
	if b.relay != nil {
		b.relay.Abort()
		<-b.drained
	}
	if b.life.remove(b.id) != nil {
		b.end(vmpool.Killed)
	}
	if err = errors.Join(err, b.Release()); err != nil {
		return fmt.Errorf("close VM %d: %w", b.id, err)
	}
	return nil
}
