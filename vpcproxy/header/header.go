// Package header is what is said between host and gateway on a stream that carries one flow: what it is and whose, the
// gateway's answer, and datagrams. It is pure.
package header

import (
	"encoding/binary"
	"io"
	"net/netip"

	"starling"
	"starling/vpcproxy/grant"
)

// A Kind says what a flow is. Numbers are only ever added.
type Kind uint8

const (
	TCP  Kind = 1 // bytes
	UDP  Kind = 2 // datagrams of one socket to one address
	DNS  Kind = 3 // one question and its answer as datagrams; no address: the gateway knows the network's servers
	Test Kind = 4 // nothing follows the answer: it says whether a TCP flow could begin, and connects
)

// String returns the word of the audit log.
func (k Kind) String() string {
	switch k {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case DNS:
		return "dns"
	case Test:
		return "test"
	}
	return "unknown"
}

// An Answer is the gateway's first byte. Numbers are only ever added; an unknown one is a refusal.
type Answer uint8

const (
	Open        Answer = 0
	Denied      Answer = 1 // by the network's rules, or by those for everybody
	Limit       Answer = 2 // of account, network or function
	Refused     Answer = 3 // nobody listens there
	Unreachable Answer = 4
	TimedOut    Answer = 5
	BadGrant    Answer = 6
	NoUplink    Answer = 7 // this gateway is not plugged into the network, or does not know it
	Malformed   Answer = 8
)

var answers = [...]string{"open", "denied", "limit reached", "refused", "unreachable", "timed out", "grant refused", "no uplink", "malformed"}

// String returns the words people see.
func (a Answer) String() string {
	if int(a) < len(answers) {
		return answers[a]
	}
	return "refused by a newer gateway"
}

// version is the layout's; a gateway refuses any other.
const version = 1

// DatagramMax is the largest datagram in bytes.
const DatagramMax = 65_535

// A Header begins a stream.
type Header struct {
	Kind  Kind
	Grant []byte
	To    netip.AddrPort // invalid for DNS
}

// Append appends h:
//
//	u8 version · u8 kind · u16 length of the grant · grant · u8 length of the address (0, 4, 16) · address · u16 port
func Append(dst []byte, h Header) []byte {
	dst = append(dst, version, byte(h.Kind))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(h.Grant)))
	dst = append(dst, h.Grant...)
	addr := h.To.Addr().AsSlice()
	dst = append(append(dst, byte(len(addr))), addr...)
	return binary.BigEndian.AppendUint16(dst, h.To.Port())
}

// Read reads one header and not a byte more. The error is Invalid unless r's own.
func Read(r io.Reader) (h Header, err error) {
	const op = "read flow header"
	var b [grant.SizeMax]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return h, err
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if b[0] != version || n > grant.SizeMax {
		return h, starling.Errorf(starling.Invalid, op, "version %d with a grant of %d bytes", b[0], n)
	}
	h.Kind = Kind(b[1])
	if h.Kind < TCP || h.Kind > Test {
		return h, starling.Errorf(starling.Invalid, op, "kind %d", b[1])
	}
	h.Grant = make([]byte, n)
	if _, err := io.ReadFull(r, h.Grant); err != nil {
		return h, err
	}
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return h, err
	}
	size := int(b[0])
	if size != 0 && size != 4 && size != 16 || (size == 0) != (h.Kind == DNS) {
		return h, starling.Errorf(starling.Invalid, op, "%s with an address of %d bytes", h.Kind, size)
	}
	if _, err := io.ReadFull(r, b[:size+2]); err != nil {
		return h, err
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	port := binary.BigEndian.Uint16(b[size:])
	if size == 0 && port != 0 {
		return h, starling.Errorf(starling.Invalid, op, "a port without an address")
	}
	if size != 0 {
		h.To = netip.AddrPortFrom(addr, port)
	}
	return h, nil
}

// AppendDatagram appends u16 length and datagram, which is at most DatagramMax long.
func AppendDatagram(dst, datagram []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(datagram))), datagram...)
}

// ReadDatagram reads one datagram into buf, which has room for DatagramMax bytes, and returns it.
func ReadDatagram(r io.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, buf[:2]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(buf)
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return nil, err
	}
	return buf[:n], nil
}
