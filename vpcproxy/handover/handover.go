// Package handover carries sockets between the gateways of one machine: a unix socket for each, in a directory that belongs to whoever
// runs them and that nobody else may enter.
package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/internal/packet"
	"starling/internal/run"
	"starling/vpcproxy/resume"
)

// patience is how long either end waits for the other's next word.
const patience = 5 * time.Second

// A Conn is one conversation between two gateways. Close it.
type Conn struct {
	packets *packet.Conn
	timer   *time.Timer
}

// path is where the gateway of a node listens.
func path(dir string, id starling.NodeID) string { return filepath.Join(dir, id.String()+".sock") }

// A Listener has one goroutine that accepts and one for each conversation; Close waits for them.
type Listener struct {
	socket *net.UnixListener
	group  *run.Group
}

// Listen serves conversations at the node's place in dir, which it makes when it is missing. A conversation ends when serve returns.
func Listen(dir string, id starling.NodeID, serve func(*Conn)) (*Listener, error) {
	const op = "open hand-over"
	if err := private(dir); err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "%w", err)
	}
	if err := os.Remove(path(dir, id)); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier life of this node
		return nil, starling.Errorf(starling.Invalid, op, "%w", err)
	}
	socket, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path(dir, id)})
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "%w", err)
	}
	l := &Listener{socket, run.New(context.Background())}
	l.group.Go(func(context.Context) { l.accept(serve) })
	return l, nil
}

// private makes a directory, or checks one, that nobody else may enter.
func private(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s: it must be a directory of this user that nobody else may enter (mode 0700)", dir)
	}
	return nil
}

func (l *Listener) accept(serve func(*Conn)) {
	for {
		u, err := l.socket.AcceptUnix()
		if err != nil {
			return // closed
		}
		l.group.Go(func(ctx context.Context) {
			c, err := open(u)
			if err != nil {
				return
			}
			defer c.Close()
			defer context.AfterFunc(ctx, c.Close)()
			serve(c)
		})
	}
}

// Close ends every conversation.
func (l *Listener) Close() error {
	err := l.socket.Close()
	l.group.Stop()
	return err
}

// Dial begins a conversation with the gateway of a node. Unavailable when it does not listen in dir.
func Dial(dir string, id starling.NodeID) (*Conn, error) {
	u, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path(dir, id)})
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "reach gateway on this machine", "%w", err)
	}
	return open(u)
}

// open takes a connection whose other end is of the same user.
func open(u *net.UnixConn) (*Conn, error) {
	defer u.Close() // the conversation has a descriptor of its own
	f, err := u.File()
	if err != nil {
		return nil, err
	}
	who, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err == nil && int(who.Uid) != os.Geteuid() {
		err = starling.Errorf(starling.Denied, "reach gateway on this machine", "the other end is of user %d", who.Uid)
	}
	if err == nil {
		err = unix.SetNonblock(int(f.Fd()), true) // that the number was asked for made it blocking
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	p, err := packet.New(f, resume.PieceMax)
	if err != nil {
		return nil, err
	}
	return &Conn{p, time.AfterFunc(patience, func() { p.Close() })}, nil
}

// Close ends the conversation.
func (c *Conn) Close() {
	c.timer.Stop()
	_ = c.packets.Close() // fails when the time has closed it
}

// Say sends a message and, if there is one, a descriptor, of which the other end gets a duplicate.
func (c *Conn) Say(message any, fds ...int) error {
	raw, err := resume.Encode(message)
	if err != nil {
		return err
	}
	c.timer.Reset(patience)
	return c.packets.Send(raw, fds...)
}

// Hear waits for a message and the descriptors that came with it, which belong to the caller.
func (c *Conn) Hear(message any) ([]int, error) {
	c.timer.Reset(patience)
	raw, fds, err := c.packets.Receive()
	if err == nil {
		err = resume.Decode(raw, message)
	}
	if err != nil {
		packet.CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

// Send sends bytes in pieces.
func (c *Conn) Send(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), resume.PieceMax)
		c.timer.Reset(patience)
		if err := c.packets.Send(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Receive waits for n bytes.
func (c *Conn) Receive(n int) ([]byte, error) {
	out := make([]byte, 0, n)
	for len(out) < n {
		c.timer.Reset(patience)
		piece, fds, err := c.packets.Receive()
		packet.CloseAll(fds)
		if err != nil {
			return nil, err
		}
		if len(out)+len(piece) > n {
			return nil, starling.Errorf(starling.Invalid, "receive flow", "more than %d bytes", n)
		}
		out = append(out, piece...)
	}
	return out, nil
}

// Here reports whether the gateway of a node listens in dir.
func Here(dir string, id starling.NodeID) bool {
	c, err := Dial(dir, id)
	if err != nil {
		return false
	}
	defer c.Close()
	var o resume.Offer
	if c.Say(resume.Question{}) != nil {
		return false
	}
	_, err = c.Hear(&o)
	return err == nil && o.Here
}
