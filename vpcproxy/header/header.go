// Package header is what is said between host and gateway on a stream that carries one flow: what it is and whose, the
// gateway's answer, and datagrams. It is pure.
package header

import (
	"encoding/binary"
	"io"
	"net/netip"

	"starling"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/resume"
)

// A Kind says what a flow is. Numbers are only ever added.
type Kind uint8

const (
	TCP  Kind = 1 // bytes
	UDP  Kind = 2 // datagrams of one socket to one address
	DNS  Kind = 3 // one question and its answer as datagrams; no address: the gateway knows the network's servers
	Test Kind = 4 // nothing follows the answer: it says whether a TCP flow could begin, and connects

	// From version 2 on. Neither has a grant or an address.
	Watch  Kind = 5 // no flow: a node id after the answer asks that the flows of this connection go on at that gateway
	Resume Kind = 6 // a flow that another gateway has carried goes on here
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
	case Watch:
		return "watch"
	case Resume:
		return "resume"
	}
	return "unknown"
}

// An Answer is the gateway's first byte. Numbers are only ever added; an unknown one is a refusal.
type Answer uint8

const (
	Open        Answer = 0
	Denied      Answer = 1 // by the network's rules, or by those for everybody
	Limit       Answer = 2 // of account, network or function, or of the gateway itself: ports, descriptors
	Refused     Answer = 3 // nobody listens there
	Unreachable Answer = 4
	TimedOut    Answer = 5
	BadGrant    Answer = 6
	NoUplink    Answer = 7 // this gateway is not plugged into the network, or does not know it; or not the flow that is to be resumed
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

// The versions of the layout. A gateway refuses any that it does not know: a host asks by a Watch whether it knows the second.
const (
	Fixed   = 1 // a flow ends with its gateway
	Movable = 2 // an open TCP flow's answer is followed by its token
)

// DatagramMax is the largest datagram in bytes.
const DatagramMax = 65_535

// A Header begins a stream.
type Header struct {
	Version uint8 // 0 for Fixed
	Kind    Kind
	Grant   []byte
	To      netip.AddrPort // invalid for all but TCP, UDP and Test

	// Of Resume alone.
	From  starling.NodeID // the gateway that has carried it
	Token resume.Token
	Sent  uint64 // bytes that the host has sent on all streams before
}

// Append appends h:
//
//	u8 version · u8 kind · u16 length of the grant · grant · u8 length of the address (0, 4, 16) · address · u16 port
//	Resume: · u64 gateway · 16 token · u64 bytes sent
func Append(dst []byte, h Header) []byte {
	dst = append(dst, max(h.Version, Fixed), byte(h.Kind))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(h.Grant)))
	dst = append(dst, h.Grant...)
	addr := h.To.Addr().AsSlice()
	dst = append(append(dst, byte(len(addr))), addr...)
	dst = binary.BigEndian.AppendUint16(dst, h.To.Port())
	if h.Kind == Resume {
		dst = binary.BigEndian.AppendUint64(dst, uint64(h.From))
		dst = append(dst, h.Token[:]...)
		dst = binary.BigEndian.AppendUint64(dst, h.Sent)
	}
	return dst
}

// Read reads one header and not a byte more. The error is Invalid unless r's own.
func Read(r io.Reader) (h Header, err error) {
	const op = "read flow header"
	var b [grant.SizeMax]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return h, err
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	h.Version, h.Kind = b[0], Kind(b[1])
	last := Test
	if h.Version == Movable {
		last = Resume
	}
	if h.Version < Fixed || h.Version > Movable || h.Kind < TCP || h.Kind > last || n > grant.SizeMax {
		return h, starling.Errorf(starling.Invalid, op, "kind %d of version %d with a grant of %d bytes", b[1], b[0], n)
	}
	h.Grant = make([]byte, n)
	if _, err := io.ReadFull(r, h.Grant); err != nil {
		return h, err
	}
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return h, err
	}
	size := int(b[0])
	if size != 0 && size != 4 && size != 16 || (size == 0) != (h.Kind == DNS || h.Kind > Test) {
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
	if h.Kind == Resume {
		if _, err := io.ReadFull(r, b[:8+len(h.Token)+8]); err != nil {
			return h, err
		}
		h.From, h.Token, h.Sent = starling.NodeID(binary.BigEndian.Uint64(b[:])), resume.Token(b[8:24]), binary.BigEndian.Uint64(b[24:])
	}
	return h, nil
}

// AppendNotice appends whom the flows of a connection should go on at: it follows the answer to a Watch, any number of times, and the newest
// counts.
func AppendNotice(dst []byte, successor starling.NodeID) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(successor))
}

// ReadNotice reads one.
func ReadNotice(r io.Reader) (starling.NodeID, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return starling.NodeID(binary.BigEndian.Uint64(b[:])), err
}

// ReadSent reads what follows an open answer to a Resume: how many bytes the gateways have sent on all streams before.
func ReadSent(r io.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// AppendSent appends it.
func AppendSent(dst []byte, sent uint64) []byte { return binary.BigEndian.AppendUint64(dst, sent) }

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
