package kata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
	"starling/vmpool/framed"
	"starling/vmpool/kata/link"
	"starling/vmpool/kata/relay"
)

// sandbox is the node's side of one VM. It has the goroutines of its relay, which Close waits for.
type sandbox struct {
	driver  *Driver
	runtime starling.Runtime
	life    *life
	id      uint64

	channel        net.Conn  // framed, shipped runtimes
	listener       *listener // of the Runtime API, provided
	stdout, stderr *os.File
	relay          *relay.Relay  // nil before the VM is there
	drained        chan struct{} // closed when the relay's goroutines ended

	attached bool
	frozen   bool
	closing  sync.Once
	closeErr error

	done chan struct{}
	exit vmpool.Exit // written before done is closed
}

var _ vmpool.Sandbox = (*sandbox)(nil)

// plumb joins the streams of the VM to pipes and sockets of the node.
func (b *sandbox) plumb(stream *os.File) error {
	cfg := relay.Config{}
	if b.runtime == starling.Provided {
		b.listener = newListener()
		cfg.Open = b.listener.open
	}
	b.relay = relay.New(stream, cfg)
	err := b.join()
	// Only now: what comes of a stream that nobody joined is dropped, and the runtime's first word comes at once.
	go func() {
		defer close(b.drained)
		if err := b.relay.Run(); err != nil {
			b.driver.cfg.Log.Warn("stream of a VM", "vm", b.id, "err", err)
		}
		if b.listener != nil {
			b.listener.Close()
		}
	}()
	return err
}

// join makes the pipes of a sandbox and gives the relay its ends of them.
func (b *sandbox) join() error {
	for _, o := range []struct {
		id uint16
		f  **os.File
	}{{relay.Stdout, &b.stdout}, {relay.Stderr, &b.stderr}} {
		read, write, err := output()
		if err != nil {
			return err
		}
		*o.f = read
		if err := b.relay.Join(o.id, nil, write); err != nil {
			return err
		}
	}
	if b.listener != nil {
		return nil
	}
	channel, theirs, err := framed.Pipes()
	if err != nil {
		return err
	}
	b.channel = channel
	return b.relay.Join(relay.Calls, os.NewFile(uintptr(theirs[0]), "calls"), os.NewFile(uintptr(theirs[1]), "answers"))
}

// output returns the ends of a pipe for what a function prints; the reader does not block, so that a call's end can empty it.
func output() (read, write *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	_ = unix.SetNonblock(p[0], true) // cannot fail on a fresh pipe
	return os.NewFile(uintptr(p[0]), "output"), os.NewFile(uintptr(p[1]), "output"), nil
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
	m := &link.Message{Op: link.Attach, VM: b.id, Code: code.Dir, MemoryBytes: int64(code.MemoryMiB+overheadMiB(b.runtime)) << 20}
	if b.runtime == starling.Provided {
		m.Argv, m.Env = []string{"/var/task/bootstrap"}, environment(code.Env)
	}
	a, _, err := b.life.ask(ctx, m)
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	if a.Entrypoint != "" {
		return starling.Errorf(starling.Failed, "start bootstrap", "%s", a.Entrypoint).With(starling.ErrEntrypoint)
	}
	b.driver.m.attach.UpdateDuration(begun)
	return nil
}

// overheadMiB is added to a function's memory for the runtime that is not the function's choice.
func overheadMiB(r starling.Runtime) int {
	switch r {
	case starling.NodeJS20:
		return 32
	case starling.Python311:
		return 8
	}
	return 2
}

// environment returns env sorted, with the address of the Runtime API and a search path.
func environment(env map[string]string) []string {
	out := []string{"AWS_LAMBDA_RUNTIME_API=" + RuntimeAPI}
	if _, ok := env["PATH"]; !ok {
		out = append(out, "PATH=/usr/bin:/bin:/opt/bin")
	}
	for k, v := range env {
		if k != "AWS_LAMBDA_RUNTIME_API" {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return out
}

func (b *sandbox) Channel() net.Conn                  { return b.channel }
func (b *sandbox) Output() (stdout, stderr io.Reader) { return b.stdout, b.stderr }
func (b *sandbox) Done() <-chan struct{}              { return b.done }
func (b *sandbox) Exit() vmpool.Exit                  { return b.exit }

// Listener accepts connections to the Runtime API made inside the VM; nil for shipped runtimes.
func (b *sandbox) Listener() net.Listener {
	if b.listener == nil {
		return nil
	}
	return b.listener
}

// askMax bounds a question about a VM that has no caller's deadline.
const askMax = 15 * time.Second

func (b *sandbox) ask(m *link.Message) (*link.Message, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askMax)
	defer cancel()
	m.VM = b.id
	a, _, err := b.life.ask(ctx, m)
	return a, err
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

// Stats asks the guest for what the function used. A function that took its guest over can lie, about itself only.
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
func (b *sandbox) end(m *link.Message) {
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-b.drained:
	case <-t.C:
	}
	b.exit = exitOf(m)
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
		b.end(killed)
	}
	closing := func(c io.Closer) {
		if cerr := c.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) && !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	if b.channel != nil {
		closing(b.channel)
	}
	if b.stdout != nil {
		closing(b.stdout)
	}
	if b.stderr != nil {
		closing(b.stderr)
	}
	if err != nil {
		return fmt.Errorf("close VM %d: %w", b.id, err)
	}
	return nil
}
