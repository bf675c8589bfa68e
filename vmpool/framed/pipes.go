package framed

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors of a runtime: calls come in on the one and answers go out on the other.
//
// They are two pipes and not one socket, because who reads from a stream socket wakes the peer that waits on it: it might
// have waited for room. A runtime that blocks for its next call was woken in vain by the node reading its answer.
const (
	CallsFD   = 3
	AnswersFD = 4
)

// Pipes returns the node's end of a runtime's pipes, and the runtime's ends, of calls and of answers: descriptors that
// block, close on execution and belong to the caller.
func Pipes() (node net.Conn, runtime [2]int, err error) {
	var calls, answers [2]int
	if err := unix.Pipe2(calls[:], unix.O_CLOEXEC); err != nil {
		return nil, runtime, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.Pipe2(answers[:], unix.O_CLOEXEC); err != nil {
		unix.Close(calls[0])
		unix.Close(calls[1])
		return nil, runtime, fmt.Errorf("make pipe: %w", err)
	}
	_ = unix.SetNonblock(calls[1], true) // cannot fail on a fresh pipe
	_ = unix.SetNonblock(answers[0], true)
	p := &pipes{r: os.NewFile(uintptr(answers[0]), "answers"), w: os.NewFile(uintptr(calls[1]), "calls")}
	return p, [2]int{calls[0], answers[1]}, nil
}

// pipes is a connection over two pipes.
type pipes struct{ r, w *os.File }

func (p *pipes) Read(b []byte) (int, error)         { return p.r.Read(b) }
func (p *pipes) Write(b []byte) (int, error)        { return p.w.Write(b) }
func (p *pipes) SetReadDeadline(t time.Time) error  { return p.r.SetReadDeadline(t) }
func (p *pipes) SetWriteDeadline(t time.Time) error { return p.w.SetWriteDeadline(t) }
func (p *pipes) LocalAddr() net.Addr                { return pipeAddr{} }
func (p *pipes) RemoteAddr() net.Addr               { return pipeAddr{} }

func (p *pipes) SetDeadline(t time.Time) error {
	if err := p.r.SetReadDeadline(t); err != nil {
		return err
	}
	return p.w.SetWriteDeadline(t)
}

func (p *pipes) Close() error {
	err := p.w.Close()
	if rerr := p.r.Close(); err == nil {
		err = rerr
	}
	return err
}

// raw returns both descriptors for use without a read in vain.
func (p *pipes) raw() (r, w syscall.RawConn, err error) {
	if r, err = p.r.SyscallConn(); err == nil {
		w, err = p.w.SyscallConn()
	}
	return r, w, err
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
