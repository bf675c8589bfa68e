package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kernel is a netlink socket of one namespace. It is a file because the number of a descriptor that was closed is somebody else's soon.
type kernel struct{ socket *os.File }

// dial opens one in the caller's namespace.
func dial(protocol int) (kernel, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return kernel{}, err
	}
	return kernel{os.NewFile(uintptr(fd), "netlink")}, nil
}

func (k kernel) close() error { return k.socket.Close() }

// ask has the kernel do what messages say and returns its first refusal. It does it before it lets go of the caller, so that its answers are
// there then: one for each message that asks for one, and one for each that it refuses.
func (k kernel) ask(messages []byte) error {
	fd := int(k.socket.Fd())
	if err := unix.Sendto(fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	const header = unix.SizeofNlMsghdr
	refusal := errors.New("the kernel does not answer")
	for first := true; ; first = false {
		var answer [512]byte
		n, _, err := unix.Recvfrom(fd, answer[:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return refusal
		case err != nil:
			return err
		case n < header+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR:
			return fmt.Errorf("the kernel answers %x", answer[:n])
		}
		code := int32(binary.NativeEndian.Uint32(answer[header:]))
		if first {
			refusal = nil
		}
		if code != 0 && refusal == nil {
			refusal = unix.Errno(-code)
		}
	}
}

// message returns a request: its own header, what follows that, and attributes.
func message(kind, flags uint16, rest ...[]byte) []byte {
	m := make([]byte, 4, 64) // its length, set below
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|flags)
	m = append(m, make([]byte, 8)...) // a number and a sender, which nobody asks for
	for _, b := range rest {
		m = append(m, b...)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	return m
}

// attribute returns one attribute of a value, or of attributes.
func attribute(kind uint16, value ...[]byte) []byte {
	a := make([]byte, 4, 16)
	for _, b := range value {
		a = append(a, b...)
	}
	binary.NativeEndian.PutUint16(a, uint16(len(a)))
	binary.NativeEndian.PutUint16(a[2:], kind)
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}
