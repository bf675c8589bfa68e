// Package splice carries bytes between a connection and a stream until both directions are done, and lets the stream be replaced by
// another while it does.
package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sys/unix"

	"starling/transport"
	"starling/vpcproxy/resume"
)

// A Side is the end of a flow that stays: a connection. Abort ends it so that its peer can tell it from a good end; Close frees what this
// process holds of it.
type Side interface {
	io.Reader
	io.Writer
	CloseWrite() error
	Abort()
	Close() error
}

// A pausable side can be stopped with nothing lost. A flow of any other does not move.
type pausable interface{ SetDeadline(time.Time) error }

// unsentMax is how many bytes the kernel keeps for a connection whose other end does not read, beyond what that has room for.
const unsentMax = 32 << 10

// Conn makes a Side of a TCP connection, which the side owns from then on.
func Conn(c *net.TCPConn) Side {
	if raw, err := c.SyscallConn(); err == nil { // without it one that nobody reads holds more memory, and no harm is done
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMax) })
	}
	return conn{c}
}

type conn struct{ *net.TCPConn }

// Abort resets the connection.
func (c conn) Abort() {
	_ = c.SetLinger(0) // fails on a connection that is closed: then there is nothing to reset
	_ = c.TCPConn.Close()
}

// A Counter counts the bytes of both directions, for people.
type Counter struct {
	Sent  *metrics.Counter // read from the connection and given to the stream
	Taken *metrics.Counter // the other direction
}

// A Joint is one connection and what becomes of its bytes. Create it with New or Resumed, give it streams by Carry, and end it by Carry's
// own end, Abort or Release. Carry has two goroutines, of which one is the caller's.
type Joint struct {
	side    Side
	idle    time.Duration
	count   Counter
	account resume.Account
	ended   [2]bool // by direction: the connection has said its last; the stream has
	began   time.Time
	moved   atomic.Int64 // since began, when a byte last did
	watch   *time.Timer

	mu     sync.Mutex       // guards the rest
	stream transport.Stream // which Carry works on
	end    End              // why the side is no more ours; empty while it is
}

const (
	outward = 0 // from the connection to the stream
	inward  = 1
)

// New returns the joint of a new flow, which owns side. Nothing may move for idle at most.
func New(side Side, idle time.Duration, count Counter) *Joint {
	return Resumed(side, idle, count, resume.Account{})
}

// Resumed returns the joint of a flow that began elsewhere.
func Resumed(side Side, idle time.Duration, count Counter, account resume.Account) *Joint {
	j := &Joint{side: side, idle: idle, count: count, account: account, began: time.Now()}
	j.mu.Lock() // the first shot waits until watch is set
	j.watch = time.AfterFunc(idle, j.expire)
	j.mu.Unlock()
	return j
}

// expire ends a flow in which nothing moved for too long.
func (j *Joint) expire() {
	j.mu.Lock()
	still := time.Since(j.began) - time.Duration(j.moved.Load())
	if j.end == "" && still < j.idle {
		j.watch.Reset(j.idle - still)
		still = 0
	}
	j.mu.Unlock()
	if still >= j.idle {
		j.abort(Idle)
	}
}

// Abort resets the connection and abandons the stream, unless the joint has ended.
func (j *Joint) Abort() { j.abort(Stopped) }

func (j *Joint) abort(why End) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end != "" {
		return
	}
	j.end = why
	j.side.Abort()
	if j.stream != nil {
		j.stream.Cancel()
	}
	j.watch.Stop()
}

// Release closes this process's descriptor of the connection, which lives on in another, and reports false when it was reset before.
func (j *Joint) Release() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end != "" {
		return false
	}
	j.end = Moved
	_ = j.side.Close() // what it could say concerns the other process
	j.watch.Stop()
	return true
}

// Pause has Carry return soon, with nothing lost, when the side can be stopped.
func (j *Joint) Pause() { j.deadline(time.Now()) }

// proceed undoes Pause.
func (j *Joint) proceed() { j.deadline(time.Time{}) }

func (j *Joint) deadline(t time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	side, ok := j.side.(pausable)
	if j.end != "" || !ok {
		return
	}
	_ = side.SetDeadline(t) // these fail on ends that are gone, which the carrying finds out
	if j.stream != nil {
		_ = j.stream.SetReadDeadline(t)
		_ = j.stream.SetWriteDeadline(t)
	}
}

// End returns why the flow is over; empty while it is not.
func (j *Joint) End() End {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// Account returns the flow's account while Carry does not run.
func (j *Joint) Account() *resume.Account { return &j.account }

// Carry carries bytes between the connection and s until both directions have ended or the flow failed: then it is over and everything is
// closed. It reports false when it was paused: s is as it was, and the next Carry goes on, with s or another stream.
func (j *Joint) Carry(s transport.Stream) (over bool) {
	j.mu.Lock()
	if j.end != "" {
		j.mu.Unlock()
		s.Cancel()
		return true
	}
	j.stream = s
	j.mu.Unlock()
	var other sync.WaitGroup
	other.Go(func() { j.settle(s, outward, j.carryOut(s)) })
	j.settle(s, inward, j.carryIn(s))
	other.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.end != "":
		return true
	case j.ended == [2]bool{true, true}:
		j.end = Done
		j.watch.Stop()
		_ = j.side.Close() // both directions have ended: nothing is lost with it
		return true
	}
	return false
}

// settle says what the end of one direction's carrying means for the flow.
func (j *Joint) settle(s transport.Stream, direction int, err error) {
	switch {
	case err == nil:
		j.ended[direction] = true
		if direction == outward {
			err = s.CloseWrite()
		} else {
			err = j.side.CloseWrite()
		}
		_ = err // that end is gone, which its reader sees
	case !errors.Is(err, os.ErrDeadlineExceeded): // which is Pause
		j.abort(endOf(err))
	}
}

// carryOut carries to the stream until the connection's end, which is nil.
func (j *Joint) carryOut(s transport.Stream) error {
	if err := j.give(s, j.account.Unsent()); err != nil || j.ended[outward] {
		return err
	}
	b := newBuffer()
	defer b.free()
	for n := 0; ; {
		var err error
		p := b.next(n)
		n, err = j.side.Read(p)
		if n > 0 {
			if werr := j.give(s, p[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// give writes to the stream what was read from the connection.
func (j *Joint) give(s transport.Stream, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	j.touch()
	n, err := s.Write(p)
	j.account.Read(p, n)
	j.count.Sent.Add(n)
	j.touch()
	return err
}

// carryIn carries to the connection until the stream's end, which is nil.
func (j *Joint) carryIn(s transport.Stream) error {
	if waiting := j.account.Unwritten(); len(waiting) > 0 {
		n, err := j.side.Write(waiting)
		j.account.Return(waiting[n:])
		j.count.Taken.Add(n)
		j.touch()
		if err != nil {
			return err
		}
	}
	b := newBuffer()
	defer b.free()
	for n := 0; ; {
		var err error
		p := b.next(n)
		n, err = s.Read(p)
		if n > 0 {
			j.touch()
			m, werr := j.side.Write(p[:n])
			j.account.Took(p[:n], m)
			j.count.Taken.Add(m)
			j.touch()
			if werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (j *Joint) touch() { j.moved.Store(int64(time.Since(j.began))) }

// behindTime is how long what is under way on an old stream may take.
const behindTime = 3 * time.Second

// Take reads from s what its other end says to have sent in all and what has not come yet. It is written first when the carrying goes on.
func (j *Joint) Take(s transport.Stream, theirs uint64) error {
	n, err := j.account.Behind(theirs)
	if err != nil || n == 0 {
		return err
	}
	if err := s.SetReadDeadline(time.Now().Add(behindTime)); err != nil {
		return err
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(s, p); err != nil {
		return err
	}
	j.account.Took(p, 0)
	return nil
}
