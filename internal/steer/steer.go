// Package steer makes one network namespace give whatever the code in it sends out to two sockets: every IPv4 address becomes one of
// lo's own, and the kernel hands over what is for any of them, by a BPF program in its socket lookup ([Program]) or by rules of
// nftables ([Rules]). The host uses it in the namespaces of sandboxes, and the agent of a microVM, with the program, in its guest.
//
// It speaks bpf(2), rtnetlink and nftables by itself, a few messages in all: the libraries for them bring parsers and cryptography, which
// every sandbox's first process would set up.
package steer

import (
	"cmp"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	ownPort = 1 // of the two sockets: nothing without privileges can want it
	dnsPort = 53

	loopbackNet = 127 // the first byte of loopback addresses
)

// Resolver is where the code inside asks for names.
var Resolver = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)

// Listen makes the two sockets for a program in the caller's namespace. Where a connection was made to is its local address; where a
// datagram was sent to says Destination. The program refuses whoever connects to the sockets' own address.
func Listen() (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	return listen(netip.AddrPortFrom(Resolver.Addr(), ownPort))
}

// ListenApart makes the two sockets for rules, with the same to say.
func ListenApart() (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	return listen(apart, option{unix.SOL_IP, unix.IP_FREEBIND}) // the address is not there
}

func listen(own netip.AddrPort, options ...option) (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	lc := net.ListenConfig{Control: with(options...)}
	lc.SetMultipathTCP(false) // a map of sockets takes no others
	l, err := lc.Listen(context.Background(), "tcp4", own.String())
	if err != nil {
		return nil, nil, err
	}
	lc = net.ListenConfig{Control: with(append(options, option{unix.SOL_IP, unix.IP_RECVORIGDSTADDR})...)}
	pc, err := lc.ListenPacket(context.Background(), "udp4", own.String())
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l.(*net.TCPListener), pc.(*net.UDPConn), nil
}

// Answering makes a socket in the caller's namespace that sends as addr, which any address is once LetOut was called.
func Answering(addr netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: with(option{unix.SOL_SOCKET, unix.SO_REUSEADDR})}
	pc, err := lc.ListenPacket(context.Background(), "udp4", addr.String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// An option is one of a socket's that is set to 1.
type option struct{ level, name int }

// with sets options of a socket.
func with(options ...option) func(network, address string, rc syscall.RawConn) error {
	return func(_, _ string, rc syscall.RawConn) (err error) {
		ctl := rc.Control(func(fd uintptr) {
			for _, o := range options {
				if err = unix.SetsockoptInt(int(fd), o.level, o.name, 1); err != nil {
					return
				}
			}
		})
		return cmp.Or(ctl, err)
	}
}

// OOBSize is the room that Destination's bytes need.
const OOBSize = 128

// Destination returns where a datagram was sent to, by the control messages that came with it.
func Destination(oob []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:4])), true
		}
	}
	return netip.AddrPort{}, false
}
