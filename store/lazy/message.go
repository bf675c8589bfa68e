package lazy

import (
	"encoding/json"
	"fmt"
	"os"

	"starling"
	"starling/internal/packet"
)

const messageMax = 8 << 10

// An op says what a message wants.
type op uint8

const (
	opOpen    op = 1 // to the helper: Spec, and the file of sealed blocks
	opMounted op = 2 // its answer: the mount or the file, or Error
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
	Disk    int64 `json:",omitempty"` // bytes of the file to be shown instead of a mount; 0 for a mount
}

// A line carries messages and files. send is safe for concurrent use, receive is for one goroutine.
type line struct{ *packet.Conn }

func newLine(f *os.File) (line, error) {
	c, err := packet.New(f, messageMax)
	return line{c}, err
}

// pair returns one end for this process and one for a child.
func pair() (line, *os.File, error) {
	c, theirs, err := packet.Pair(messageMax)
	return line{c}, theirs, err
}

// send sends m and a duplicate of the file, if there is one.
func (l line) send(m *message, file *os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	var fds []int
	if file != nil {
		fds = []int{int(file.Fd())}
	}
	if err := l.Send(b, fds...); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// receive waits for one message; the caller closes the file, which is nil when none came. The end of the line is io.EOF.
func (l line) receive() (*message, *os.File, error) {
	b, fds, err := l.Receive()
	if err != nil {
		return nil, nil, err
	}
	m := &message{}
	if err = json.Unmarshal(b, m); err == nil && len(fds) > 1 {
		err = fmt.Errorf("%d files came with it", len(fds))
	}
	if err != nil {
		packet.CloseAll(fds)
		return nil, nil, fmt.Errorf("receive message: %w", err)
	}
	if len(fds) == 0 {
		return m, nil, nil
	}
	return m, os.NewFile(uintptr(fds[0]), "passed"), nil
}
