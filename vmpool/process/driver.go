// Package process makes sandboxes of plain Linux processes: namespaces, a read-only root of its own, no capability, a
// system-call allow-list, Landlock, resource limits and a cgroup. Sandboxes share the host's kernel.
//
// The work is done by starling-guest, a small static program with two lives: the warden, one beside each node, which
// makes and ends sandboxes and cleans up after a node that died; and the first process of each sandbox, which closes
// itself in and becomes the runtime. The node talks to its warden over a socket pair (package link).
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// Config is what the driver needs to know. Start from [DefaultConfig].
type Config struct {
	Kind      Kind
	Dir       string // scratch folder, made when missing; one driver's own
	GuestPath string // the starling-guest binary
	Tag       string // names the cgroups of this driver, 1–32 of a-z, 0-9 and "-"; unique on the machine, the same in every life of a node
	// RuntimeDir holds the shipped runtime programs; its files appear in /var/runtime of every sandbox. It is read once,
	// when the warden starts.
	RuntimeDir string
	// Command returns the program and arguments of a shipped runtime as the sandbox sees them, such as
	// /usr/bin/python3 /var/runtime/x.py. It is never asked for provided.
	Command func(starling.Runtime) []string

	TmpBytes     int64   // largest /tmp; what is written there is memory of the function, of which it may take half
	TmpInodes    int     // files in /tmp
	Files        int     // open descriptors of one process
	ProcessesMax int     // processes and threads of one sandbox
	WarmMiB      int     // memory of a sandbox before it has code, beside what its runtime needs; a function of as much needs no other limit
	CPUMin       float64 // CPUs of the smallest function; above, 1769 MiB buy one
	SandboxMax   int     // sandboxes at once
	UIDBase      uint32  // first host user id for sandboxes; two are taken for each. 0 derives one from Tag
	ResolvConf   string  // contents of /etc/resolv.conf inside
	CgroupRoot   string  // normally /sys/fs/cgroup
	// TakeOver is how long to wait for the warden of an earlier life to finish cleaning.
	TakeOver time.Duration
	Log      *slog.Logger
}

// A Kind is a driver that works as this one does, by a warden beside the node that makes sandboxes in cgroups, and differs in
// what the warden makes.
type Kind struct {
	Name        string                     // of the driver
	Warden      string                     // the word that makes the guest binary its warden
	Runsc       string                     // for the warden, where gVisor is
	OverheadMiB func(starling.Runtime) int // added to a function's memory for what is not the function's choice
	Sockets     bool                       // what the code opens are sockets of the host's kernel
}

// Plain is the kind whose sandboxes are processes of the host.
var Plain = Kind{Name: "process", Warden: "warden", OverheadMiB: vmpool.OverheadMiB, Sockets: true}

// DefaultConfig returns the limits of a driver; Dir, GuestPath, Tag, RuntimeDir and Command remain to be set.
func DefaultConfig() Config {
	return Config{Kind: Plain, TmpBytes: 512 << 20, TmpInodes: 16_384, Files: 1024, ProcessesMax: 256, WarmMiB: 128, CPUMin: starling.CPUMin,
		SandboxMax: 8192, ResolvConf: "nameserver 127.0.0.1\n", CgroupRoot: "/sys/fs/cgroup", TakeOver: 10 * time.Second,
		Log: slog.New(slog.DiscardHandler)}
}

var tagPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	const op = "check process driver"
	switch {
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.GuestPath):
		return starling.Errorf(starling.Invalid, op, "Dir %q and GuestPath %q: use absolute paths", c.Dir, c.GuestPath)
	case !tagPattern.MatchString(c.Tag):
		return starling.Errorf(starling.Invalid, op, "Tag %q: use 1-32 of a-z, 0-9 and \"-\"", c.Tag)
	case c.TmpBytes < 1<<20 || c.TmpInodes < 16 || c.Files < 16 || c.ProcessesMax < 16 || c.WarmMiB < 32 || c.SandboxMax < 1:
		return starling.Errorf(starling.Invalid, op, "TmpBytes, TmpInodes, Files, ProcessesMax, WarmMiB and SandboxMax: a runtime cannot start in so little")
	case c.SandboxMax > 1<<15:
		return starling.Errorf(starling.Invalid, op, "SandboxMax %d: the user ids of one driver suffice for 32768", c.SandboxMax)
	case c.CPUMin < 0.01:
		return starling.Errorf(starling.Invalid, op, "CPUMin %v: use 0.01 or more", c.CPUMin)
	case c.Kind.Name == "" || c.Kind.Warden == "" || c.Kind.OverheadMiB == nil:
		return starling.Errorf(starling.Invalid, op, "Kind must be set in full")
	case c.Log == nil || c.CgroupRoot == "":
		return starling.Errorf(starling.Invalid, op, "Log and CgroupRoot must be set")
	}
	return nil
}

// memory returns the limit in bytes of a sandbox whose function may use memoryMiB.
func (d *Driver) memory(r starling.Runtime, memoryMiB int) int64 {
	return int64(memoryMiB+d.cfg.Kind.OverheadMiB(r)) << 20
}

// Driver makes process sandboxes. Create it with New; the first BuildTemplate starts its warden. Close ends every
// sandbox and waits for its two goroutines: one keeps the warden's parent thread alive and starts a new warden when one
// dies, the other reads what the warden says.
type Driver struct {
	cfg     Config
	set     *metrics.Set
	m       instruments
	tree    *cgroup.Tree
	ctx     context.Context // ends with Close; for goroutines of the driver, never for calls
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	opening sync.Mutex // one BuildTemplate starts the warden; held across the start
	opened  bool

	mu      sync.Mutex // a leaf
	life    *life      // the present warden; nil between two
	boxes   map[uint64]*sandbox
	next    uint64
	closed  bool
	changed chan struct{} // closed and replaced when life changes
}

var _ vmpool.Driver = (*Driver)(nil)

// New returns a driver that does nothing yet.
func New(cfg Config) *Driver {
	ctx, cancel := context.WithCancel(context.Background())
	d := &Driver{cfg: cfg, set: metrics.NewSet(), ctx: ctx, cancel: cancel, boxes: map[uint64]*sandbox{}, changed: make(chan struct{})}
	d.m = newInstruments(d.set, d, cfg.Kind.Name)
	return d
}

// Name is that of the kind: "process" or "gvisor".
func (d *Driver) Name() string { return d.cfg.Kind.Name }

// Metrics returns the driver's metrics.
func (d *Driver) Metrics() *metrics.Set { return d.set }

// BuildTemplate starts the warden unless it runs, and returns the template of one runtime. It fails with an
// Unavailable error that says what is missing where the machine or the user's rights do not suffice.
func (d *Driver) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	const op = "build template"
	if err := spec.Runtime.Validate(); err != nil {
		return nil, err
	}
	t := &template{driver: d, runtime: spec.Runtime}
	if spec.Runtime != starling.Provided {
		if d.cfg.Command != nil {
			t.argv = d.cfg.Command(spec.Runtime)
		}
		if len(t.argv) == 0 {
			return nil, starling.Errorf(starling.Unavailable, op, "runtime %s has no program: set its interpreter", spec.Runtime)
		}
		if _, err := os.Stat(t.argv[0]); err != nil {
			return nil, starling.Errorf(starling.Unavailable, op, "runtime %s: install its interpreter: %w", spec.Runtime, err)
		}
	}
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// open starts the supervisor and waits for the first warden.
func (d *Driver) open(ctx context.Context) error {
	op := "start " + d.cfg.Kind.Name + " driver"
	d.opening.Lock()
	defer d.opening.Unlock()
	if d.opened {
		return nil
	}
	if err := d.cfg.Validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return starling.Errorf(starling.Unavailable, op, "making sandboxes needs root: run the node as root, or choose another driver")
	}
	tree, err := cgroup.Find(d.cfg.CgroupRoot, d.parent())
	if err != nil {
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	d.tree = tree
	if err := os.MkdirAll(d.rootDir(), 0o700); err != nil {
		return starling.Errorf(starling.Unavailable, op, "make scratch folder: %w", err)
	}
	first := make(chan error, 1)
	d.wg.Go(func() { d.supervise(first) })
	select {
	case err = <-first:
	case <-ctx.Done():
		err = context.Cause(ctx)
		d.cancel()
	}
	if err != nil {
		d.wg.Wait()
		_ = os.Remove(d.rootDir())
		return starling.Errorf(starling.Unavailable, op, "%w", err)
	}
	d.opened = true
	return nil
}

func (d *Driver) parent() string  { return "starling-" + d.cfg.Tag }
func (d *Driver) rootDir() string { return filepath.Join(d.cfg.Dir, "root") }

// setup is what a new warden is told.
func (d *Driver) setup() *link.Setup {
	keep := false
	for _, r := range starling.Runtimes {
		if r != starling.Provided && d.cfg.Command != nil {
			if argv := d.cfg.Command(r); len(argv) > 0 {
				keep = keep || strings.HasPrefix(argv[0], "/usr/local/")
			}
		}
	}
	base := d.cfg.UIDBase
	if base == 0 {
		base = uidBase(d.cfg.Tag)
	}
	return &link.Setup{
		Dir: d.rootDir(), CgroupRoot: d.cfg.CgroupRoot, Parent: d.parent(), RuntimeDir: d.cfg.RuntimeDir, KeepLocal: keep,
		ResolvConf: d.cfg.ResolvConf, UIDBase: base, SandboxMax: d.cfg.SandboxMax,
		Processes: d.cfg.ProcessesMax, TakeOver: d.cfg.TakeOver, Runsc: d.cfg.Kind.Runsc,
		Jail: link.Jail{TmpBytes: d.cfg.TmpBytes, TmpInodes: d.cfg.TmpInodes, Files: uint64(d.cfg.Files), Listen: vmpool.RuntimeAPI},
	}
}

// uidBase spreads the drivers of one machine over the upper half of the user ids, which nobody hands out.
func uidBase(tag string) uint32 {
	h := uint32(2166136261)
	for _, c := range []byte(tag) {
		h = (h ^ uint32(c)) * 16777619
	}
	return 1<<31 | (h % (1 << 14) << 16)
}

// Close ends the warden, which ends every sandbox and removes what it made, and waits for both.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
	d.opening.Lock()
	defer d.opening.Unlock()
	if !d.opened {
		return nil
	}
	d.opened = false
	// The warden swept already, unless it was killed itself.
	err := d.tree.Sweep()
	if rm := d.tree.Remove(); rm != nil {
		err = errors.Join(err, rm)
	}
	if rm := os.Remove(d.rootDir()); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	_ = os.Remove(d.cfg.Dir) // only when it is empty: the folder may hold more than ours
	if err != nil {
		return fmt.Errorf("close %s driver: %w", d.cfg.Kind.Name, err)
	}
	return nil
}

// wardenStart is how long a warden may take to be ready, including the wait for one of an earlier life, which should
// be far shorter.
const wardenStart = time.Minute
