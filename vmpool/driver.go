// Package vmpool keeps warm sandboxes for each runtime, turns one into an instance with a function's code,
// and discards it afterwards. A sandbox never returns to the pool.
package vmpool

import (
	"context"
	"io"
	"net"
	"os"
	"time"

	"starling"
)

// A Driver makes one kind of isolation.
type Driver interface {
	// Name is "process", "kata", "gvisor" or "fake".
	Name() string
	// BuildTemplate prepares what sandboxes of one runtime are cloned from. It holds nothing of a tenant.
	BuildTemplate(ctx context.Context, spec TemplateSpec) (Template, error)
	// Close ends every sandbox of the driver and waits until nothing of it is left: no process, cgroup,
	// mount or namespace.
	Close() error
}

// A TemplateSpec says what to prepare.
type TemplateSpec struct {
	Runtime starling.Runtime
}

// A Template is the ready-made state that sandboxes are cloned from.
type Template interface {
	// Clone returns a sandbox whose language runtime already runs (or, for provided, that waits to execute
	// a bootstrap). It is safe for concurrent use.
	Clone(ctx context.Context) (Sandbox, error)
	Close() error
}

// A BehindCloner is a Template that can also clone at the expense of nobody who waits: the sandbox gets little of a
// busy machine until it has code, and where it is a Forwarder nothing that anybody else wants, until Forward or for two seconds.
type BehindCloner interface {
	CloneBehind(ctx context.Context) (Sandbox, error)
}

// A Forwarder is a Sandbox that may have been cloned behind everything else on the machine. Forward ends that. It may
// sleep for some milliseconds and be called again; not concurrently with Attach, Pause, Resume and Close.
type Forwarder interface {
	Forward() error
}

// A Settler is a Sandbox that has more CPU from Attach on than its function's calls may use, so that the
// initialisation is quick. Settle ends that. It is called once, after the initialisation, not concurrently with Pause,
// Resume and Close; a call may be at work.
type Settler interface {
	Settle() error
}

// A Layer is files of this host that lie under /opt of a sandbox.
type Layer struct {
	Dir   string   // the folder of them
	Mount *os.File // instead of Dir, as in Code
}

// A Disk is a package as a file of a fixed size that lies under a sandbox's disk: the description of an EROFS file system, the content of
// its files, zeros. The file is somebody's to hand on, not to read.
type Disk struct {
	File *os.File
	Meta int64 // bytes of the description
	Data int64 // bytes of the content
}

// Code is what a sandbox is specialised with. Everything in it belongs to one version of one account.
type Code struct {
	Dir       string            // unpacked package on this host, mounted read-only at /var/task
	Mount     *os.File          // instead of Dir: its root as a mount that stands in no namespace; stays the caller's. Only of a driver that takes mounts
	Disk      *Disk             // instead of Dir, without Layers; stays the caller's. Only of the driver of microVMs, whose slot it fits
	Layers    []Layer           // at most starling.LayersMax, mounted read-only at /opt as one tree, a later one over an earlier one
	Env       map[string]string // the whole environment of the function, platform variables included
	Handler   string
	MemoryMiB int
	Account   starling.AccountID
	Version   starling.VersionID
}

// A Sandbox is the isolation around one instance. Attach, Pause, Resume and Close are not safe for
// concurrent use with each other.
type Sandbox interface {
	// Attach mounts the code, sets the limits and, for provided, executes the bootstrap. Once only.
	Attach(ctx context.Context, code Code) error
	// Channel is the framed connection to a shipped runtime (package framed); nil for provided.
	Channel() net.Conn
	// Listener accepts Runtime API connections made inside the sandbox to $AWS_LAMBDA_RUNTIME_API; nil for
	// shipped runtimes. It listens in the sandbox's network namespace.
	Listener() net.Listener
	// Output is what the code prints, both streams; each ends with the sandbox.
	Output() (stdout, stderr io.Reader)
	// Pause freezes every process of the sandbox; Resume thaws them.
	Pause() error
	Resume() error
	Stats() (Stats, error)
	// Done is closed when the sandbox's processes are all gone; Exit then says how.
	Done() <-chan struct{}
	Exit() Exit
	// Close kills every process and removes every trace. It waits for both and may be called twice.
	Close() error
}

// Exit says how a sandbox ended.
type Exit struct {
	Code        int    // exit status of the first process, -1 when a signal ended it
	Signal      string // such as "killed"; empty without one
	OutOfMemory bool   // the memory limit killed it
}

// Stats is what a sandbox used so far.
type Stats struct {
	MemoryBytes int64 // now
	MemoryMax   int64 // peak
	CPU         time.Duration
	Processes   int
}
