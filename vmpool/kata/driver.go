// Package kata makes sandboxes of microVMs, cloned copy-on-write from a template whose language runtime already runs. The
// work with VMs is done by starling-vmd, a program of its own, because Kata is eighty modules that a node need not carry; this
// package starts it, asks it over a unix socket (package link), and carries the streams of each VM itself (package relay).
package kata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata/link"
)

// Config is what the driver needs to know. Start from [DefaultConfig].
type Config struct {
	VMD        string // the starling-vmd binary
	GuestPath  string // the starling-guest binary
	Images     string // folder with kernel and roots, as "make guest-images" makes them
	Cache      string // folder for templates and images of code; shared by the nodes of a machine
	RuntimeDir string // the shipped runtime programs
	// Command returns the program and arguments of a shipped runtime as the guest sees them. It is never asked for provided.
	Command func(starling.Runtime) []string

	Tag       string // names the cgroups of VMs, 1-34 of a-z, 0-9 and "-"; unique on the machine, the same in every life of a node
	QEMU      string // the emulator
	MemoryMiB int    // of each VM, the guest's kernel included; the largest function has ReserveMiB less
	CodeMiB   int    // largest image of a package
	Paused    int    // clones kept paused for each runtime, beside those that run in the pool
	TmpBytes  int64  // largest /tmp, which is memory of the function
	TmpInodes int
	Files     int // open descriptors of one process
	Tasks     int // processes and threads of one function
	Log       *slog.Logger
}

// ReserveMiB of a VM's memory are its kernel's and its agent's.
const ReserveMiB = 64

// DefaultConfig returns the limits of a driver; the paths, Tag and Command remain to be set.
func DefaultConfig() Config {
	return Config{QEMU: "/usr/bin/qemu-system-x86_64", MemoryMiB: 320, CodeMiB: 320, Paused: 1, TmpBytes: 128 << 20, TmpInodes: 16_384, Files: 1024,
		Tasks: 256, Log: slog.New(slog.DiscardHandler)}
}

// DefaultImages returns where "make guest-images" puts what microVMs boot, and where templates are kept: the user's cache.
func DefaultImages() (images, cache string, err error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "starling/guest"), filepath.Join(dir, "starling/vm"), err
}

var tagPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,33}$`)

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	const op = "check kata driver"
	for name, path := range map[string]string{"VMD": c.VMD, "GuestPath": c.GuestPath, "Images": c.Images, "Cache": c.Cache, "RuntimeDir": c.RuntimeDir, "QEMU": c.QEMU} {
		if !filepath.IsAbs(path) {
			return starling.Errorf(starling.Invalid, op, "%s %q: use an absolute path", name, path)
		}
	}
	switch {
	case !tagPattern.MatchString(c.Tag):
		return starling.Errorf(starling.Invalid, op, "Tag %q: use 1-34 of a-z, 0-9 and \"-\"", c.Tag)
	case c.MemoryMiB < 128+ReserveMiB || c.MemoryMiB > starling.MemoryMaxMiB:
		return starling.Errorf(starling.Invalid, op, "MemoryMiB %d: use %d-%d", c.MemoryMiB, 128+ReserveMiB, starling.MemoryMaxMiB)
	case c.CodeMiB < 1 || c.Paused < 0 || c.Paused > 100 || c.TmpBytes < 1<<20 || c.TmpInodes < 16 || c.Files < 16 || c.Tasks < 16:
		return starling.Errorf(starling.Invalid, op, "CodeMiB, Paused, TmpBytes, TmpInodes, Files and Tasks: a runtime cannot start in so little")
	case c.Log == nil || c.Command == nil:
		return starling.Errorf(starling.Invalid, op, "Log and Command must be set")
	}
	return nil
}

// Driver makes microVMs. Create it with New; the first BuildTemplate starts starling-vmd. Close ends every VM. It has two
// goroutines, one that keeps the thread alive that starling-vmd hangs on, and one that reads what that says; both end when
// starling-vmd does, and the next BuildTemplate or Clone starts another.
type Driver struct {
	cfg Config
	set *metrics.Set
	m   instruments

	opening sync.Mutex // one starts starling-vmd; held across the start

	mu     sync.Mutex // guards what follows; a leaf
	life   *life      // the running starling-vmd; nil for none
	accel  string
	next   uint64
	closed bool
}

var _ vmpool.Driver = (*Driver)(nil)

// New returns a driver that does nothing yet.
func New(cfg Config) *Driver {
	d := &Driver{cfg: cfg, set: metrics.NewSet()}
	d.m = newInstruments(d.set, d)
	return d
}

// Name is "kata".
func (d *Driver) Name() string { return "kata" }

// Metrics returns the driver's metrics.
func (d *Driver) Metrics() *metrics.Set { return d.set }

// Accel returns what runs the VMs, "kvm" or "tcg" (software emulation); empty before the first template.
func (d *Driver) Accel() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accel
}

// BuildTemplate builds the template of one runtime, which takes seconds, or finds it in the cache. It fails with an
// Unavailable error that says what is missing.
func (d *Driver) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	if err := spec.Runtime.Validate(); err != nil {
		return nil, err
	}
	begun := time.Now()
	l, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	a, _, err := l.ask(ctx, &link.Message{Op: link.Template, Runtime: string(spec.Runtime)})
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "build template", "%w", err)
	}
	if a.Built > 0 {
		d.m.build.UpdateDuration(begun)
		d.cfg.Log.Info("template built", "runtime", spec.Runtime, "took", a.Built.Round(time.Millisecond), "accel", d.Accel())
	}
	return &template{driver: d, runtime: spec.Runtime}, nil
}

// setup is what a new starling-vmd is told.
func (d *Driver) setup() *link.Setup {
	c := d.cfg
	argv := map[string][]string{}
	for _, rt := range starling.Runtimes {
		if rt != starling.Provided {
			argv[string(rt)] = c.Command(rt)
		}
	}
	return &link.Setup{Images: c.Images, Cache: c.Cache, Guest: c.GuestPath, Programs: c.RuntimeDir, QEMU: c.QEMU, MemoryMiB: c.MemoryMiB, CodeMiB: c.CodeMiB,
		Groups: "starling-" + c.Tag, Paused: c.Paused, TmpBytes: c.TmpBytes, TmpFiles: c.TmpInodes, Files: uint64(c.Files), Tasks: c.Tasks, RuntimeAPI: vmpool.RuntimeAPI, Argv: argv,
		Env: append(vmpool.WarmEnv(), "STARLING_CLONED=1")}
}

// current returns the running starling-vmd, starting one when there is none.
func (d *Driver) current(ctx context.Context) (*life, error) {
	const op = "start kata driver"
	d.opening.Lock()
	defer d.opening.Unlock()
	d.mu.Lock()
	l, closed := d.life, d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return nil, starling.Errorf(starling.Unavailable, op, "the node is shutting down")
	case l != nil && !l.isOver():
		return l, nil
	}
	if err := d.cfg.Validate(); err != nil {
		return nil, err
	}
	for _, path := range []string{d.cfg.VMD, d.cfg.GuestPath, d.cfg.QEMU, d.cfg.Images} {
		if _, err := os.Stat(path); err != nil {
			return nil, starling.Errorf(starling.Unavailable, op, "%w (\"make build\" makes the programs, \"make guest-images\" what guests boot)", err)
		}
	}
	l, err := d.start()
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	a, _, err := l.ask(ctx, &link.Message{Op: link.Open, Setup: d.setup()})
	if err != nil {
		l.close()
		return nil, starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	d.mu.Lock()
	d.life, d.accel = l, a.Accel
	d.mu.Unlock()
	d.cfg.Log.Info("microVMs", "accel", a.Accel, "why", a.Why)
	return l, nil
}

// start starts a starling-vmd in namespaces of its own: of mounts, and without a network. It ends with the node.
func (d *Driver) start() (*life, error) {
	conn, theirs, err := link.Pair()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(d.cfg.VMD, "serve")
	cmd.ExtraFiles = []*os.File{theirs} // descriptor link.FD
	cmd.Stderr = os.Stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "STARLING_VMD_DEBUG=" + os.Getenv("STARLING_VMD_DEBUG")}
	// With the node it is asked to end, not killed: it removes the cgroups of its VMs.
	apart := uintptr(syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: apart, Setsid: true, Pdeathsig: syscall.SIGTERM}
	l := newLife(conn, d.cfg.Log)
	started := make(chan error, 1)
	l.wg.Go(func() {
		// The death signal comes with the end of this thread, so it must live as long as the process.
		lockThread()
		err := cmd.Start()
		theirs.Close()
		l.process = cmd.Process
		started <- err
		if err == nil {
			if err := cmd.Wait(); err != nil {
				d.cfg.Log.Error("starling-vmd ended", "err", err)
			}
		}
		conn.Close()
	})
	if err := <-started; err != nil {
		conn.Close()
		l.wg.Wait()
		return nil, fmt.Errorf("start %s: %w", d.cfg.VMD, err)
	}
	l.wg.Go(l.read)
	return l, nil
}

// Close ends starling-vmd, which ends every VM, and waits for both.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.opening.Lock()
	defer d.opening.Unlock()
	d.mu.Lock()
	l := d.life
	d.life = nil
	d.mu.Unlock()
	if l != nil {
		l.close()
	}
	return nil
}

// template is one runtime; what it is made of belongs to starling-vmd.
type template struct {
	driver  *Driver
	runtime starling.Runtime
}

// Close does nothing: a template is kept for its next user.
func (t *template) Close() error { return nil }

// Clone makes a VM and returns when it runs as a guest of its own.
func (t *template) Clone(ctx context.Context) (vmpool.Sandbox, error) {
	begun := time.Now()
	d := t.driver
	l, err := d.current(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.next++
	b := &sandbox{driver: d, runtime: t.runtime, life: l, id: d.next, drained: make(chan struct{}), done: make(chan struct{})}
	d.mu.Unlock()
	l.add(b)
	_, fd, err := l.ask(ctx, &link.Message{Op: link.Clone, VM: b.id, Runtime: string(t.runtime)})
	if err == nil && fd < 0 {
		err = errors.New("no stream came with the VM")
	}
	if err != nil {
		close(b.drained) // there is nothing to drain
	} else {
		_ = unix.SetNonblock(fd, true) // or closing it would not end a read
		err = b.plumb(os.NewFile(uintptr(fd), "stream"))
	}
	if err != nil {
		d.m.cloneFailures.Inc()
		return nil, errors.Join(starling.Errorf(starling.Unavailable, "clone sandbox", "%w", err), b.Close())
	}
	d.m.clone.UpdateDuration(begun)
	return b, nil
}
