// Package link carries messages and descriptors between the node, its warden and the first process of a sandbox, each in one
// packet (internal/packet).
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

// An Op says what a message wants. Numbers are only ever added.
type Op uint8

// Node to warden; each is answered by a message of the same Op and ID. Attach goes over a lane, the others over the link.
const (
	Open   Op = 1 // Setup
	Clone  Op = 2 // Argv, MemoryBytes, Weight; descriptors: stdout, stderr and, for a shipped runtime, channel. The answer may carry the listener
	Attach Op = 3 // Code, Layers and descriptors (see Trees), Limits; for provided Env. The answer comes when the bootstrap runs, or says in Entrypoint why it cannot
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
	Layers      []string        `json:"layers,omitempty"` // a later one lies over an earlier one
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

// Send sends one message and duplicates of the descriptors, of which there are eight at most.
func (c *Conn) Send(m *Message, fds ...int) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	return c.packets.Send(b, fds...)
}

// Receive waits for one message. The descriptors are close-on-exec and belong to the caller. The end of the
// connection is io.EOF.
func (c *Conn) Receive() (*Message, []int, error) { return decode(c.packets.Receive()) }

// Close closes the connection and wakes a blocked Receive.
func (c *Conn) Close() error { return c.packets.Close() }

func encode(m *Message) (b []byte, err error) {
	if m.Op == Attach {
		b = appendAttach(nil, m)
	} else if b, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(b) > MessageMax {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(b), MessageMax)
	}
	return b, nil
}

// decode makes a message of what was received.
func decode(b []byte, fds []int, err error) (*Message, []int, error) {
	if err != nil {
		return nil, nil, err
	}
	m := new(Message)
	if b[0] == attachMark {
		err = readAttach(b[1:], m)
	} else {
		err = json.Unmarshal(b, m)
	}
	if err != nil {
		packet.CloseAll(fds)
		return nil, nil, fmt.Errorf("decode message: %w", err)
	}
	return m, fds, nil
}
