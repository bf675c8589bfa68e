// Package link carries messages and descriptors between a node and its starling-vmd over a unix SEQPACKET socket: one packet
// is one message. The node asks, and each question has one answer of the same number; starling-vmd tells of ended VMs unasked.
package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MessageMax bounds one message in bytes.
const MessageMax = 64 << 10

// FD is the descriptor of starling-vmd's end.
const FD = 3

// An Op says what a message wants. Numbers are only ever added.
type Op uint8

const (
	Open     Op = 1 // Setup; the answer has Accel
	Template Op = 2 // Runtime; answered when the template can be cloned; the answer has Built
	Clone    Op = 3 // Runtime, VM; the answer carries the stream's descriptor
	Attach   Op = 4 // VM, Code, MemoryBytes; for provided Argv and Env. The answer may have Entrypoint
	Pause    Op = 5 // VM
	Resume   Op = 6 // VM
	Stats    Op = 7 // VM; the answer has Use
	Kill     Op = 8 // VM; answered when nothing of it is left
	Exit     Op = 9 // from starling-vmd, unasked: VM, Status, OutOfMemory
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
	Built       time.Duration   `json:"built,omitempty"` // how long building the template took; 0 for one that was there
	Code        string          `json:"code,omitempty"`  // folder of the package
	MemoryBytes int64           `json:"memory,omitempty"`
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
	Paused     int                 // clones kept paused for each template
	TmpBytes   int64               // largest /tmp
	TmpFiles   int                 // files in /tmp
	Files      uint64              // open descriptors of one process
	Tasks      int                 // processes and threads of a function
	RuntimeAPI string              // address of the Runtime API inside
	Argv       map[string][]string // of the shipped runtimes
	Env        []string            // of the shipped runtimes before they have code
}

// Use is what a function used so far, as its guest says; and what its VM is on the host.
type Use struct {
	MemoryBytes int64
	MemoryMax   int64
	CPU         time.Duration
	Processes   int
	PID         int // of the VM
}

// A Conn is one end. Send is safe for concurrent use, Receive is not.
type Conn struct {
	mu   sync.Mutex // one packet at a time
	conn *net.UnixConn
	buf  []byte
}

// Pair returns one end as a Conn and the other as a file for a child process.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	c, err := New(os.NewFile(uintptr(fds[0]), "link"))
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(fds[1]), "link"), nil
}

// New returns the Conn over f, which it owns from now on.
func New(f *os.File) (*Conn, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("open link: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("open link: not a unix socket")
	}
	return &Conn{conn: u, buf: make([]byte, MessageMax)}, nil
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
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, err = c.conn.WriteMsgUnix(b, oob, nil)
	return err
}

// Receive waits for one message. The descriptor belongs to the caller; it is -1 when none came.
func (c *Conn) Receive() (*Message, int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return nil, -1, err
	}
	if n == 0 {
		return nil, -1, io.EOF
	}
	fd := -1
	if oobn > 0 {
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				fd = fds[0]
				unix.CloseOnExec(fd)
			}
		}
	}
	m := &Message{}
	err = json.Unmarshal(c.buf[:n], m)
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("cut off")
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, -1, fmt.Errorf("decode message: %w", err)
	}
	return m, fd, nil
}

// Close ends the link; the other end reads its end.
func (c *Conn) Close() error { return c.conn.Close() }
