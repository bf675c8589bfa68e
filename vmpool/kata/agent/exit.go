package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/steer"
	"starling/vmpool/kata/relay"
)

const (
	// exitBuffer is what the kernel keeps of one of the function's connections at this end, in bytes each way. It is memory of the
	// guest, not of the function.
	exitBuffer = 64 << 10
	// mouthMax bounds the sockets that are kept to send as somebody.
	mouthMax = 64
	// acceptPause is how long the agent waits after it had no descriptor for a connection.
	acceptPause = 10 * time.Millisecond
)

// An exit is what lets the function out when it has a network: whatever it sends is caught here and handed to the node, which
// knows by the VM whose it is. It lies ready in the template; until letOut there is no route and nothing listens.
type exit struct {
	tcp     *net.TCPListener
	udp     *net.UDPConn
	routes  *steer.Router
	program *steer.Program
	missing error // why this guest can have no exit

	mouths map[netip.AddrPort]*net.UDPConn // what sends as whom; of the relay's reader
}

func newExit() *exit {
	x := &exit{mouths: map[netip.AddrPort]*net.UDPConn{}}
	x.missing = x.prepare()
	return x
}

func (x *exit) prepare() (err error) {
	if x.tcp, x.udp, err = steer.Listen(); err != nil {
		return err
	}
	rc, err := x.tcp.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = rc.Control(func(fd uintptr) { // what is accepted has the listener's
		set = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, exitBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, exitBuffer))
	})
	if err = errors.Join(err, set); err != nil {
		return err
	}
	if x.routes, err = steer.OpenRouter(); err != nil {
		return err
	}
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	x.program, err = steer.Load(ns)
	return err
}

// letOut opens the exit, once: Kata's call for routes, of which the guest has the one.
func (g *guest) letOut([]byte) ([]byte, error) {
	if err := g.mayHaveCode(); err != nil {
		return nil, err
	}
	x := g.exit
	if x.missing != nil {
		return nil, fmt.Errorf("the guest's kernel catches nothing (\"make guest-kernel\" builds one that does): %w", x.missing)
	}
	<-g.connected
	err := x.program.Steer(x.tcp, x.udp)
	if err == nil {
		err = x.routes.LetOut() // a second time fails
	}
	if err != nil {
		return nil, err
	}
	go x.accept(g.relay)
	go x.receive(g.relay)
	return nil, nil
}

// accept makes each connection of the function a flow.
func (x *exit) accept(r *relay.Relay) {
	for {
		c, err := x.tcp.AcceptTCP()
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		to := c.LocalAddr().(*net.TCPAddr).AddrPort()
		f, err := c.File()
		if err != nil {
			_ = c.SetLinger(0) // it is reset: nobody carries it
		}
		c.Close()
		if err == nil {
			err = r.OpenFlow(f, to)
		}
		if err != nil {
			fmt.Println("starling-guest: connection:", err)
		}
	}
}

// receive hands the node each datagram of the function. One that is too long is dropped.
func (x *exit) receive(r *relay.Relay) {
	buf, oob := make([]byte, relay.DatagramMax), make([]byte, steer.OOBSize)
	for {
		n, on, flags, from, err := x.udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		to, ok := steer.Destination(oob[:on])
		if !ok || flags&unix.MSG_TRUNC != 0 {
			continue
		}
		if err := r.Datagram(from, to, buf[:n]); err != nil {
			return // the node hung up
		}
	}
}

// answer sends a datagram to the function as whom it spoke to.
func (x *exit) answer(as, to netip.AddrPort, d []byte) {
	c := x.mouths[as]
	if c == nil {
		var err error
		if c, err = steer.Answering(as); err != nil {
			return // it is lost, as datagrams are
		}
		if len(x.mouths) >= mouthMax {
			for _, old := range x.mouths {
				old.Close()
			}
			clear(x.mouths)
		}
		x.mouths[as] = c
	}
	_, _ = c.WriteToUDPAddrPort(d, to) // its socket may be closed: a datagram may be lost
}
