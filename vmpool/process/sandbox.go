package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"starling"
	"starling/internal/packet"
	"starling/vmpool"
	"starling/vmpool/ends"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// template is one runtime. All of its sandboxes share the warden's root.
type template struct {
	driver  *Driver
	runtime starling.Runtime
	argv    []string // nil for provided
}

// Close does nothing: what the template is made of belongs to the driver.
func (t *template) Close() error { return nil }

// behindWeight is the weight of a sandbox that nobody waits for, in CPUs: what a nice value of 10 gives.
const behindWeight = 0.1

var _ vmpool.BehindCloner = (*template)(nil)

// Clone makes a sandbox and returns when its program has been started.
func (t *template) Clone(ctx context.Context) (vmpool.Sandbox, error) { return t.clone(ctx, 0) }

// CloneBehind is Clone with little weight against everything else on the machine; Attach gives it that of its function.
func (t *template) CloneBehind(ctx context.Context) (vmpool.Sandbox, error) {
	return t.clone(ctx, behindWeight)
}

func (t *template) clone(ctx context.Context, weight float64) (vmpool.Sandbox, error) {
	began := time.Now()
	d := t.driver
	l, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	b := &sandbox{driver: d, runtime: t.runtime, life: l, behind: weight == behindWeight, done: make(chan struct{})}
	fds, err := b.Plumb(t.runtime != starling.Provided)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("clone sandbox: %w", err), b.Release())
	}
	d.mu.Lock()
	d.next++
	b.id = d.next
	b.group = d.tree.Group(strconv.FormatUint(b.id, 10))
	d.boxes[b.id] = b
	d.mu.Unlock()
	m := &link.Message{Op: link.Clone, ID: b.id, Argv: t.argv, Weight: weight, MemoryBytes: d.memory(t.runtime, d.cfg.WarmMiB)}
	if t.argv != nil {
		m.Env = vmpool.WarmEnv()
	}
	_, got, err := l.ask(ctx, m, fds...)
	packet.CloseAll(fds)
	if err == nil && t.argv == nil {
		err = b.take(got)
	}
	if err != nil {
		d.m.cloneFailures.Inc()
		return nil, errors.Join(starling.Errorf(starling.Unavailable, "clone sandbox", "%w", err), b.Close())
	}
	d.m.clone.UpdateDuration(began)
	return b, nil
}

// sandbox is the node's side of one sandbox.
type sandbox struct {
	ends.Ends
	driver  *Driver
	runtime starling.Runtime
	life    *life // the warden that made it
	id      uint64
	group   cgroup.Group
	behind  bool // was cloned so

	attached  bool
	memoryMiB int // of the function, once attached
	frozen    bool
	closing   sync.Once
	closeErr  error

	done chan struct{}
	exit vmpool.Exit // written before done is closed
}

var _ vmpool.Sandbox = (*sandbox)(nil)

// take turns the descriptor of the Runtime API's socket into a listener.
func (b *sandbox) take(fds []int) error {
	if len(fds) != 1 {
		packet.CloseAll(fds)
		return fmt.Errorf("%d descriptors with a provided sandbox, want the listener", len(fds))
	}
	f := os.NewFile(uintptr(fds[0]), "runtime-api")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	b.Listen(ln)
	return nil
}

// Attach mounts the code, sets the limits and, for provided, executes the bootstrap.
func (b *sandbox) Attach(ctx context.Context, code vmpool.Code) error {
	const op = "attach code"
	if b.attached {
		return starling.Errorf(starling.Invalid, op, "sandbox %d has code: it is never given a second", b.id)
	}
	began := time.Now()
	b.attached, b.memoryMiB = true, code.MemoryMiB
	m := &link.Message{Op: link.Attach, ID: b.id, Processes: b.driver.cfg.ProcessesMax,
		MemoryBytes: b.driver.memory(b.runtime, code.MemoryMiB),
		CPU:         max(1, b.driver.cpu(code.MemoryMiB))}
	if b.runtime == starling.Provided {
		m.Env = vmpool.BootstrapEnv(code.Env)
		if n := size(m.Env); n > environmentMax {
			return starling.Errorf(starling.TooLarge, op, "the environment needs %d bytes: make it smaller", n)
		}
	}
	mounts := place(m, code)
	entrypoint, err := b.life.attach(ctx, m, mounts...)
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	if entrypoint != "" {
		return starling.Errorf(starling.Failed, "start bootstrap", "%s", entrypoint).With(starling.ErrEntrypoint)
	}
	b.driver.m.attach.UpdateDuration(began)
	return nil
}

// place says in m where the code and its layers are, and returns the descriptors that go with it.
func place(m *link.Message, code vmpool.Code) (mounts []int) {
	where := func(dir string, mount *os.File) string {
		if mount == nil {
			return dir
		}
		mounts = append(mounts, int(mount.Fd()))
		return ""
	}
	m.Code = where(code.Dir, code.Mount)
	for _, l := range code.Layers {
		m.Layers = append(m.Layers, where(l.Dir, l.Mount))
	}
	return mounts
}

// cpu returns how many CPUs the calls of a function with so much memory may use.
func (d *Driver) cpu(memoryMiB int) float64 {
	return max(d.cfg.CPUMin, float64(memoryMiB)/starling.MemoryOfCPU)
}

var _ vmpool.Forwarder = (*sandbox)(nil)

// Forward lets a sandbox that was cloned behind have its part of the machine.
func (b *sandbox) Forward() error {
	if !b.behind {
		return nil
	}
	if err := b.group.Forward(); err != nil {
		return fmt.Errorf("bring sandbox %d forward: %w", b.id, err)
	}
	return nil
}

var _ vmpool.Settler = (*sandbox)(nil)

// settledWeight is the weight of a small function in CPUs, that of a start: its limit bounds what it takes of a machine, its
// weight says how soon. With less, a call of a fraction of a millisecond stood behind every neighbour's initialisation.
const settledWeight = 1

// Settle ends the time in which a small function has a whole CPU to initialise itself.
func (b *sandbox) Settle() error {
	cpu := b.driver.cpu(b.memoryMiB)
	if cpu >= 1 {
		return nil // that is what Attach gave
	}
	if err := b.group.LimitCPU(cpu, settledWeight); err != nil {
		return fmt.Errorf("settle sandbox %d: %w", b.id, err)
	}
	return nil
}

// environmentMax is the largest environment of a bootstrap in bytes of a message; the rest of it is for a path.
const environmentMax = link.MessageMax - 8<<10

// size returns how much of a message a list takes.
func size(list []string) (n int) {
	for _, s := range list {
		n += len(s) + link.StringOverhead
	}
	return n
}

func (b *sandbox) Done() <-chan struct{} { return b.done }
func (b *sandbox) Exit() vmpool.Exit     { return b.exit }

// Pause freezes every process of the sandbox.
func (b *sandbox) Pause() error {
	if err := b.group.Freeze(); err != nil {
		return fmt.Errorf("pause sandbox %d: %w", b.id, err)
	}
	b.frozen = true
	return nil
}

// Resume thaws them.
func (b *sandbox) Resume() error {
	if !b.frozen {
		return nil
	}
	if err := b.group.Thaw(); err != nil {
		return fmt.Errorf("resume sandbox %d: %w", b.id, err)
	}
	b.frozen = false
	return nil
}

// Stats reads the sandbox's cgroup; page cache and kernel memory count.
func (b *sandbox) Stats() (vmpool.Stats, error) {
	s, err := b.group.Stats()
	if err != nil {
		return vmpool.Stats{}, fmt.Errorf("read statistics of sandbox %d: %w", b.id, err)
	}
	return vmpool.Stats(s), nil
}

// Processes lists the processes of a sandbox of this driver as the host numbers them.
func Processes(s vmpool.Sandbox) []int {
	if b, ok := s.(*sandbox); ok {
		return b.group.Processes()
	}
	return nil
}

// end notes how the sandbox ended.
func (b *sandbox) end(e vmpool.Exit) {
	b.exit = e
	close(b.done)
}

// Close kills every process and waits until every trace is removed.
func (b *sandbox) Close() error {
	b.closing.Do(func() { b.closeErr = b.close() })
	return b.closeErr
}

// closeMax is how long a sandbox may take to end; only a task stuck in the kernel takes longer.
const closeMax = 15 * time.Second

func (b *sandbox) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeMax)
	defer cancel()
	_, _, err := b.life.ask(ctx, &link.Message{Op: link.Kill, ID: b.id})
	if errors.Is(err, errWardenGone) {
		err = nil // the sandboxes of a warden end with it
	}
	b.driver.forget(b)
	if rel := b.Release(); err == nil {
		err = rel
	}
	if err != nil {
		return fmt.Errorf("close sandbox %d: %w", b.id, err)
	}
	return nil
}

// forget drops a sandbox that never started and whose end the warden will not report.
func (d *Driver) forget(b *sandbox) {
	d.mu.Lock()
	_, present := d.boxes[b.id]
	delete(d.boxes, b.id)
	d.mu.Unlock()
	if present {
		b.end(vmpool.Killed)
	}
}
