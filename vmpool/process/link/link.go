// Package link carries messages and descriptors between the node, its warden and the first process of a sandbox,
// over a unix SEQPACKET socket pair: one packet is one message, so there is nothing to frame.
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

// fdsMax bounds the descriptors of one message.
const fdsMax = 4

// An Op says what a message wants. Numbers are only ever added.
type Op uint8

// Node to warden; each is answered by a message of the same Op and ID. Attach goes over a lane, the others over the link.
const (
	Open   Op = 1 // Setup
	Clone  Op = 2 // Argv, MemoryBytes, Weight; descriptors: stdout, stderr and, for a shipped runtime, channel. The answer may carry the listener
	Attach Op = 3 // Code or the descriptor of a mount, Limits; for provided Env. The answer comes when the bootstrap runs, or says in Entrypoint why it cannot
	Kill   Op = 4
)

// Warden to node, unasked.
const Exit Op = 10 // Status, OutOfMemory

// Warden to the first process of a sandbox and back.
const (
	Enter    Op = 20 // Jail; permission to go on, given only when the process sits in its cgroup
	Listener Op = 21 // one descriptor
	Ready    Op = 22 // everything is in place; the end of the connection then says that the program runs, or for provided the bootstrap
)

// A Message is one packet. Which fields count depends on Op.
type Message struct {
	Op          Op              `json:"op"`
	ID          uint64          `json:"id,omitempty"` // of the sandbox
	Error       string          `json:"error,omitempty"`
	Entrypoint  string          `json:"entrypoint,omitempty"` // why the bootstrap cannot run, which is its developer's fault
	Setup       *Setup          `json:"setup,omitempty"`
	Argv        []string        `json:"argv,omitempty"` // nil: wait for code
	Env         []string        `json:"env,omitempty"`
	Code        string          `json:"code,omitempty"`
	MemoryBytes int64           `json:"memory,omitempty"`
	CPU         float64         `json:"cpu,omitempty"`
	Weight      float64         `json:"weight,omitempty"` // of a clone against its neighbours; 0 for that of one CPU
	Processes   int             `json:"processes,omitempty"`
	Status      unix.WaitStatus `json:"status,omitempty"`
	OutOfMemory bool            `json:"oom,omitempty"`
	Jail        *Jail           `json:"jail,omitempty"`
}

// Setup tells a new warden about its driver.
type Setup struct {
	Dir        string // mount point for the root of all sandboxes, an empty folder
	CgroupRoot string
	Parent     string // name of the driver's cgroup
	RuntimeDir string // copied to /var/runtime; may be empty
	KeepLocal  bool   // show /usr/local, because an interpreter lives there
	ResolvConf string // contents of /etc/resolv.conf
	UIDBase    uint32
	SandboxMax int
	Processes  int // limit of every sandbox
	TakeOver   time.Duration
	Runsc      string // gVisor's binary, for its warden
	Jail       Jail
}

// Jail tells the first process of a sandbox how to close itself in.
type Jail struct {
	TmpBytes  int64
	TmpInodes int
	Files     uint64 // descriptors of one process
	Argv      []string
	Env       []string
	Listen    string // address of the Runtime API listener, empty for none
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

// Send sends one message and duplicates of the descriptors.
func (c *Conn) Send(m *Message, fds ...int) error {
	b, oob, err := encode(m, fds)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, err = c.conn.WriteMsgUnix(b, oob, nil)
	return err
}

func encode(m *Message, fds []int) (packet, oob []byte, err error) {
	if m.Op == Attach {
		packet = appendAttach(nil, m)
	} else if packet, err = json.Marshal(m); err != nil {
		return nil, nil, fmt.Errorf("encode message: %w", err)
	}
	if len(packet) > MessageMax {
		return nil, nil, fmt.Errorf("message of %d bytes: at most %d", len(packet), MessageMax)
	}
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return packet, oob, nil
}

// Receive waits for one message. The descriptors are close-on-exec and belong to the caller. The end of the
// connection is io.EOF.
func (c *Conn) Receive() (*Message, []int, error) {
	oob := make([]byte, unix.CmsgSpace(4*fdsMax))
	n, on, flags, _, err := c.conn.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return nil, nil, err
	}
	return decode(c.buf[:n], oob[:on], flags)
}

func decode(packet, oob []byte, flags int) (*Message, []int, error) {
	fds, err := rights(oob)
	if err != nil {
		return nil, nil, err
	}
	if len(packet) == 0 {
		closeAll(fds)
		return nil, nil, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(fds)
		return nil, nil, errors.New("receive message: cut off")
	}
	m := new(Message)
	if packet[0] == attachMark {
		err = readAttach(packet[1:], m)
	} else {
		err = json.Unmarshal(packet, m)
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, fmt.Errorf("decode message: %w", err)
	}
	return m, fds, nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var fds []int
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Close closes the connection and wakes a blocked Receive.
func (c *Conn) Close() error { return c.conn.Close() }
