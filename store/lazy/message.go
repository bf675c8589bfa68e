package lazy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"starling"
)

const messageMax = 8 << 10

// An op says what a message wants.
type op uint8

const (
	opOpen    op = 1 // to the helper: Spec, and the file of sealed blocks
	opMounted op = 2 // its answer: the mount, or Error
	opClose   op = 3 // to the helper; no answer
	opNeed    op = 4 // to the node: Block must be in the file, and right
	opHave    op = 5 // its answer, or Error
	opPing    op = 6 // to the helper
	opPong    op = 7 // its answer
)

// A message is one packet between the node and its helper.
type message struct {
	Op    op     `json:"op"`
	ID    uint64 `json:"id,omitempty"` // of the image
	Block int    `json:"block,omitempty"`
	Error string `json:"error,omitempty"`
	Spec  *spec  `json:"spec,omitempty"`
}

// A spec is what the helper must know of an image.
type spec struct {
	Account starling.AccountID
	Hash    starling.CodeHash
	Key     []byte
	Meta    int64
	Data    int64
}

// A line carries messages and descriptors. Send is safe for concurrent use, receive is for one goroutine.
type line struct{ conn *net.UnixConn }

func newLine(f *os.File) (*line, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open line: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("open line: it is no unix socket")
	}
	return &line{conn}, nil
}

// pair returns one end for this process and one for a child.
func pair() (*line, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make line: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "line")
	ours, err := newLine(os.NewFile(uintptr(fds[0]), "line"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// send sends m and a duplicate of the descriptor, if there is one.
func (l *line) send(m *message, file *os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err = l.conn.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// receive waits for one message; the caller closes the file, which is nil when none came. The end of the line is io.EOF.
func (l *line) receive() (*message, *os.File, error) {
	buf, rights := make([]byte, messageMax), make([]byte, unix.CmsgSpace(4))
	n, on, flags, _, err := l.conn.ReadMsgUnix(buf, rights)
	if err != nil || n == 0 {
		return nil, nil, io.EOF // a packet socket has no empty packets of ours
	}
	file := fileOf(rights[:on])
	m := &message{}
	if err = json.Unmarshal(buf[:n], m); err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("it is cut")
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, nil, fmt.Errorf("receive message: %w", err)
	}
	return m, file, nil
}

func fileOf(rights []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "passed")
}
