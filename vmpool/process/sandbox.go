package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
	"starling/vmpool/framed"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// warmEnv is the environment in which a shipped runtime starts; the function's own comes with its code.
var warmEnv = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8", "TZ=:UTC"}

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
	b := &sandbox{driver: d, runtime: t.runtime, life: l, done: make(chan struct{})}
	fds, err := b.plumb()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("clone sandbox: %w", err), b.release())
	}
	d.mu.Lock()
	d.next++
	b.id = d.next
	b.group = d.tree.Group(strconv.FormatUint(b.id, 10))
	d.boxes[b.id] = b
	d.mu.Unlock()
	m := &link.Message{Op: link.Clone, ID: b.id, Argv: t.argv, Weight: weight, MemoryBytes: d.memory(t.runtime, d.cfg.WarmMiB)}
	if t.argv != nil {
		m.Env = warmEnv
	}
	_, got, err := l.ask(ctx, m, fds...)
	closeFDs(fds)
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
	driver  *Driver
	runtime starling.Runtime
	life    *life // the warden that made it
	id      uint64
	group   cgroup.Group

	channel        net.Conn     // framed, shipped runtimes
	listener       net.Listener // of the Runtime API, provided
	stdout, stderr *os.File

	attached  bool
	memoryMiB int // of the function, once attached
	frozen    bool
	closing   sync.Once
	closeErr  error

	done chan struct{}
	exit vmpool.Exit // written before done is closed
}

var _ vmpool.Sandbox = (*sandbox)(nil)

// plumb makes the pipes of what is printed and, for a shipped runtime, of calls and answers, and returns the sandbox's ends:
// stdout, stderr, calls, answers.
func (b *sandbox) plumb() (fds []int, err error) {
	defer func() {
		if err != nil {
			closeFDs(fds)
			fds = nil
		}
	}()
	for _, f := range []**os.File{&b.stdout, &b.stderr} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return fds, err
		}
		_ = unix.SetNonblock(p[0], true) // cannot fail on a fresh pipe
		*f = os.NewFile(uintptr(p[0]), "output")
		fds = append(fds, p[1])
	}
	if b.runtime == starling.Provided {
		return fds, nil
	}
	var theirs [2]int
	if b.channel, theirs, err = framed.Pipes(); err != nil {
		return fds, err
	}
	return append(fds, theirs[:]...), nil
}

// take turns the descriptor of the Runtime API's socket into a listener.
func (b *sandbox) take(fds []int) error {
	if len(fds) != 1 {
		closeFDs(fds)
		return fmt.Errorf("%d descriptors with a provided sandbox, want the listener", len(fds))
	}
	f := os.NewFile(uintptr(fds[0]), "runtime-api")
	defer f.Close()
	var err error
	b.listener, err = net.FileListener(f)
	return err
}

// Attach mounts the code, sets the limits and, for provided, executes the bootstrap.
func (b *sandbox) Attach(ctx context.Context, code vmpool.Code) error {
	const op = "attach code"
	if b.attached {
		return starling.Errorf(starling.Invalid, op, "sandbox %d has code: it is never given a second", b.id)
	}
	began := time.Now()
	b.attached, b.memoryMiB = true, code.MemoryMiB
	m := &link.Message{Op: link.Attach, ID: b.id, Code: code.Dir, Processes: b.driver.cfg.ProcessesMax,
		MemoryBytes: b.driver.memory(b.runtime, code.MemoryMiB),
		CPU:         max(1, b.driver.cpu(code.MemoryMiB))}
	if b.runtime == starling.Provided {
		m.Env = environment(code.Env)
		if n := size(m.Env); n > environmentMax {
			return starling.Errorf(starling.TooLarge, op, "the environment needs %d bytes: make it smaller", n)
		}
	}
	var mount []int
	if code.Mount != nil {
		mount = []int{int(code.Mount.Fd())}
	}
	entrypoint, err := b.life.attach(ctx, m, mount...)
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	if entrypoint != "" {
		return starling.Errorf(starling.Failed, "start bootstrap", "%s", entrypoint).With(starling.ErrEntrypoint)
	}
	b.driver.m.attach.UpdateDuration(began)
	return nil
}

// cpu returns how many CPUs the calls of a function with so much memory may use.
func (d *Driver) cpu(memoryMiB int) float64 {
	return max(d.cfg.CPUMin, float64(memoryMiB)/starling.MemoryOfCPU)
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

// size returns how much of a message a list takes.
func size(list []string) (n int) {
	for _, s := range list {
		n += len(s) + link.StringOverhead
	}
	return n
}

func (b *sandbox) Channel() net.Conn                  { return b.channel }
func (b *sandbox) Listener() net.Listener             { return b.listener }
func (b *sandbox) Output() (stdout, stderr io.Reader) { return b.stdout, b.stderr }
func (b *sandbox) Done() <-chan struct{}              { return b.done }
func (b *sandbox) Exit() vmpool.Exit                  { return b.exit }

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
	if rel := b.release(); err == nil {
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
		b.end(vmpool.Exit{Code: -1, Signal: "killed"})
	}
}

// release closes the node's descriptors. Whoever used one may have closed it already.
func (b *sandbox) release() error {
	var errs []error
	closing := func(c io.Closer) {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if b.channel != nil {
		closing(b.channel)
	}
	if b.listener != nil {
		closing(b.listener)
	}
	if b.stdout != nil {
		closing(b.stdout)
	}
	if b.stderr != nil {
		closing(b.stderr)
	}
	return errors.Join(errs...)
}
