// Package link carries messages and descriptors between a node and its starling-vmd, each in one packet (internal/packet). The node asks, and each question has one answer of the same number; starling-vmd tells of ended VMs unasked.
package link

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/packet"
)

// MessageMax bounds one message in bytes.
const MessageMax = 64 << 10

// FD is the descriptor of starling-vmd's end.
const FD = 3

// An Op says what a message wants. Numbers are only ever added.
type Op uint8

const (
	Open     Op = 1  // Setup; the answer has Accel
	Template Op = 2  // Runtime; answered when the template can be cloned; the answer has Built
	Clone    Op = 3  // Runtime, VM; the answer carries the stream's descriptor
	Attach   Op = 4  // VM, Code, Layers, MemoryBytes, CPU, Network; for provided Argv and Env; Meta and Data of a disk that comes as a descriptor. The answer may have Entrypoint
	Pause    Op = 5  // VM
	Resume   Op = 6  // VM
	Stats    Op = 7  // VM; the answer has Use
	Kill     Op = 8  // VM; answered when nothing of it is left
	Exit     Op = 9  // from starling-vmd, unasked: VM, Status, OutOfMemory
	Settle   Op = 10 // VM; from now on it has the CPU of its function only
)

// A Message is one packet. Which fields count depends on Op.
type Message struct {
	Op          Op              `json:"op"`
	Seq         uint64          `json:"seq,omitempty"`
	VM          uint64          `json:"vm,omitempty"`
	Error       string          `json:"error,omitempty"`
	Entrypoint  string          `json:"entrypoint,omitempty"` // why the bootstrap cannot run, which is its developer's fault
	Setup       *Setup          `json:"setup,omitempty"`
	Accel       string          `json:"accel,omitempty"` // "kvm", or "tcg" for software emulation
	Why         string          `json:"why,omitempty"`   // what decided that
	Runtime     string          `json:"runtime,omitempty"`
	Built       time.Duration   `json:"built,omitempty"`  // how long building the template took; 0 for one that was there
	Code        string          `json:"code,omitempty"`   // folder of the package
	Layers      []string        `json:"layers,omitempty"` // folders that lie under /opt, a later one over an earlier one
	Meta        int64           `json:"meta,omitempty"`   // bytes of the description on a disk
	Data        int64           `json:"data,omitempty"`   // bytes of the content that follows it
	MemoryBytes int64           `json:"memory,omitempty"`
	CPU         float64         `json:"cpu,omitempty"`     // CPUs of the function after its start
	Network     bool            `json:"network,omitempty"` // what the function sends out comes on the VM's stream
	Argv        []string        `json:"argv,omitempty"`
	Env         []string        `json:"env,omitempty"`
	Use         *Use            `json:"use,omitempty"`
	Status      unix.WaitStatus `json:"status,omitempty"`
	OutOfMemory bool            `json:"oom,omitempty"`
}

// Setup tells a new starling-vmd what it works with. All paths are absolute.
type Setup struct {
	Images     string              // kernel and roots, as vmpool/kata/images makes them
	Cache      string              // where templates and images of code are kept
	Guest      string              // the starling-guest binary
	Programs   string              // the shipped runtimes, shown at /var/runtime
	QEMU       string              // the emulator
	MemoryMiB  int                 // of each VM
	CodeMiB    int                 // size of the code slot
	Groups     string              // parent of the VMs' cgroups, this node's alone
	Paused     int                 // clones kept paused for each template
	TmpBytes   int64               // largest /tmp
	TmpFiles   int                 // files in /tmp
	Files      uint64              // open descriptors of one process
	Tasks      int                 // processes and threads of a function
	RuntimeAPI string              // address of the Runtime API inside
	Argv       map[string][]string // of the shipped runtimes
	Env        []string            // of the shipped runtimes before they have code
}

// Use is what a function used so far, as its guest says; CPU is the VM's, as the host counts it.
type Use struct {
	MemoryBytes int64
	MemoryMax   int64
	CPU         time.Duration
	Processes   int
	PID         int // of the VM
}

// A Conn is one end. Send is safe for concurrent use, Receive is not.
type Conn struct{ packets *packet.Conn }

// Pair returns one end as a Conn and the other as a file for a child process.
func Pair() (*Conn, *os.File, error) {
	p, theirs, err := packet.Pair(MessageMax)
	if err != nil {
		return nil, nil, err
	}
	return &Conn{p}, theirs, nil
}

// New returns the Conn over f, which it owns from now on.
func New(f *os.File) (*Conn, error) {
	p, err := packet.New(f, MessageMax)
	if err != nil {
		return nil, err
	}
	return &Conn{p}, nil
}

// Send sends one message and a duplicate of a descriptor; -1 for none.
func (c *Conn) Send(m *Message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MessageMax {
		return fmt.Errorf("message of %d bytes: at most %d", len(b), MessageMax)
	}
	if fd < 0 {
		return c.packets.Send(b)
	}
	return c.packets.Send(b, fd)
}

// Receive waits for one message. The descriptor belongs to the caller; it is -1 when none came. The end of the link is io.EOF.
func (c *Conn) Receive() (*Message, int, error) {
	b, fds, err := c.packets.Receive()
	if err != nil {
		return nil, -1, err
	}
	m := new(Message)
	if err = json.Unmarshal(b, m); err == nil && len(fds) > 1 {
		err = fmt.Errorf("%d descriptors came with it", len(fds))
	}
	if err != nil {
		packet.CloseAll(fds)
		return nil, -1, fmt.Errorf("decode message: %w", err)
	}
	if len(fds) == 0 {
		return m, -1, nil
	}
	return m, fds[0], nil
}

// Close ends the link; the other end receives its end.
func (c *Conn) Close() error { return c.packets.Close() }
