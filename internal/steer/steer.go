// Package steer makes one network namespace give whatever the code in it sends out to two sockets: every IPv4 address becomes one of
// lo's own, and a BPF program in the kernel's socket lookup hands over what is for any of them. The host uses it in the namespaces of
// sandboxes, and the agent of a microVM in its guest.
//
// It speaks bpf(2) and rtnetlink by itself, four calls in all: the libraries for them bring parsers and cryptography, which every
// sandbox's first process would set up.
package steer

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	ownPort = 1 // of the two sockets: nothing without privileges can want it, and the program refuses whoever connects to it
	dnsPort = 53
)

// Resolver is where the code inside asks for names.
var Resolver = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)

// Listen makes the two sockets in the caller's namespace. Where a connection was made to is its local address; where a datagram was
// sent to says Destination.
func Listen() (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // a map of sockets takes no others
	own := fmt.Sprintf("127.0.0.1:%d", ownPort)
	l, err := lc.Listen(context.Background(), "tcp4", own)
	if err != nil {
		return nil, nil, err
	}
	lc = net.ListenConfig{Control: option(unix.SOL_IP, unix.IP_RECVORIGDSTADDR)}
	pc, err := lc.ListenPacket(context.Background(), "udp4", own)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l.(*net.TCPListener), pc.(*net.UDPConn), nil
}

// Answering makes a socket in the caller's namespace that sends as addr, which any address is once LetOut was called.
func Answering(addr netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: option(unix.SOL_SOCKET, unix.SO_REUSEADDR)}
	pc, err := lc.ListenPacket(context.Background(), "udp4", addr.String())
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

func option(level, name int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, rc syscall.RawConn) (err error) {
		if ctl := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, 1) }); ctl != nil {
			return ctl
		}
		return err
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
