package capture

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"starling/internal/steer"
	"starling/vpcproxy/netns"
)

// sockets are the host's hand in one sandbox's network namespace.
type sockets struct {
	ns      *os.File
	tcp     *net.TCPListener
	udp     *net.UDPConn
	routes  *steer.Router
	program *steer.Program
}

// prepare puts into a namespace what lets code out later.
func (s *sockets) prepare() (err error) {
	if netns.IsHome(s.ns) {
		return errors.New("it has the host's network namespace")
	}
	err = netns.Do(s.ns, func() (err error) {
		if s.tcp, s.udp, err = steer.Listen(); err != nil {
			return err
		}
		s.routes, err = steer.OpenRouter()
		return err
	})
	if err == nil {
		s.program, err = steer.Load(s.ns)
	}
	return err
}

// letOut has everything that is sent out come to the two sockets.
func (s *sockets) letOut() error {
	if err := s.program.Steer(s.tcp, s.udp); err != nil {
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
	if s.program != nil {
		errs = append(errs, s.program.Close())
	}
	if s.routes != nil {
		errs = append(errs, s.routes.Close())
	}
	return errors.Join(append(errs, s.ns.Close())...)
}
