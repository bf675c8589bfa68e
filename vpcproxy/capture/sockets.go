package capture

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"starling/internal/steer"
	"starling/vpcproxy/netns"
)

// sockets are the host's hand in one sandbox's network namespace.
type sockets struct {
	ns     *os.File
	tcp    *net.TCPListener
	udp    *net.UDPConn
	routes *steer.Router
	hook   hook
}

// A hook is where the kernel hands over what is sent out, from Steer on: a program in its lookup of sockets, or rules of nftables.
type hook interface {
	Steer(tcp, udp syscall.Conn) error
	Close() error
}

// prepare puts into a namespace what lets code out later, by means m.
func (s *sockets) prepare(m Means) (err error) {
	if netns.IsHome(s.ns) {
		return errors.New("it has the host's network namespace")
	}
	listen := steer.Listen
	if m == TPROXY {
		listen = steer.ListenApart
	}
	err = netns.Do(s.ns, func() (err error) {
		if s.tcp, s.udp, err = listen(); err != nil {
			return err
		}
		s.routes, err = steer.OpenRouter()
		return err
	})
	if err == nil {
		err = s.load(m)
	}
	return err
}

// load tells the kernel what it will have to hand over.
func (s *sockets) load(m Means) error {
	if m == TPROXY {
		s.hook = steer.Rules{}
		return netns.Do(s.ns, steer.AddRules)
	}
	program, err := steer.Load(s.ns)
	if err == nil {
		s.hook = program
	}
	return err
}

// letOut has everything that is sent out come to the two sockets.
func (s *sockets) letOut() error {
	if err := s.hook.Steer(s.tcp, s.udp); err != nil {
		return err
	}
	return s.routes.LetOut()
}

// answering makes a socket that sends as addr.
func (s *sockets) answering(addr netip.AddrPort) (udp *net.UDPConn, err error) {
	err = netns.Do(s.ns, func() (err error) {
		udp, err = steer.Answering(addr)
		return err
	})
	return udp, err
}

// deafen closes the two sockets: nothing more comes.
func (s *sockets) deafen() error {
	if s.tcp == nil {
		return nil
	}
	return errors.Join(s.tcp.Close(), s.udp.Close())
}

// close takes the rest out of the namespace.
func (s *sockets) close() error {
	var errs []error
	if s.hook != nil {
		errs = append(errs, s.hook.Close())
	}
	if s.routes != nil {
		errs = append(errs, s.routes.Close())
	}
	return errors.Join(append(errs, s.ns.Close())...)
}
