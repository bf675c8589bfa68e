package steer

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loopback is the index of lo in every namespace.
const loopback = 1

// A Router is what the route out of one namespace is made over.
type Router struct{ socket *os.File }

// OpenRouter opens the router of the caller's namespace.
func OpenRouter() (*Router, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routes: %w", err)
	}
	return &Router{os.NewFile(uintptr(fd), "routes")}, nil
}

// Close closes the router; its route stays. A second Close fails and does no harm: the number of a descriptor is somebody else's soon.
func (r *Router) Close() error { return r.socket.Close() }

// LetOut makes every IPv4 address one of lo's own, so that what is sent to it arrives, from 127.0.0.1, at the program.
func (r *Router) LetOut() error {
	attr := func(m []byte, kind uint16, value ...byte) []byte {
		m = binary.NativeEndian.AppendUint16(m, uint16(4+len(value)))
		return append(binary.NativeEndian.AppendUint16(m, kind), value...)
	}
	// struct nlmsghdr, its length set below; struct rtmsg of a destination of no bits; attributes of four bytes each
	m := make([]byte, 4, 64)
	m = binary.NativeEndian.AppendUint16(m, unix.RTM_NEWROUTE)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m = append(m, make([]byte, 8)...)
	m = append(m, unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0)
	m = attr(m, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopback)...)
	m = attr(m, unix.RTA_PREFSRC, Resolver.Addr().AsSlice()...)
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	if err := unix.Sendto(int(r.socket.Fd()), m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	var answer [512]byte
	n, _, err := unix.Recvfrom(int(r.socket.Fd()), answer[:], 0)
	if err != nil {
		return fmt.Errorf("add route: %w", err)
	}
	const header = unix.SizeofNlMsghdr
	if n < header+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("add route: the kernel answers %x", answer[:n])
	}
	if code := int32(binary.NativeEndian.Uint32(answer[header:])); code != 0 {
		return fmt.Errorf("add route: %w", unix.Errno(-code))
	}
	return nil
}
