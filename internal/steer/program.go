package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The places of the two sockets in the program's map.
const (
	slotTCP = 0
	slotUDP = 1
)

// A Program steers what is sent out in one namespace to the sockets in its map, and passes everything on while there are none.
type Program struct{ sockets, link *os.File }

// Load attaches a program to a namespace. It steers nothing yet.
func Load(ns *os.File) (p *Program, err error) {
	p = &Program{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	create := struct{ kind, keySize, valueSize, entries uint32 }{unix.BPF_MAP_TYPE_SOCKMAP, 4, 8, 2}
	if p.sockets, err = bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create)); err != nil {
		return p, fmt.Errorf("make map of sockets: %w", err)
	}
	code, license := assemble(instructions(int32(p.sockets.Fd()))), []byte("GPL\x00")
	load := struct {
		kind, count   uint32
		code, license unsafe.Pointer
		_             [11]uint32 // the verifier's log, versions, flags, a name, a device
		attach        uint32
	}{kind: unix.BPF_PROG_TYPE_SK_LOOKUP, count: uint32(len(code) / 8), code: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0]), attach: unix.BPF_SK_LOOKUP}
	prog, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return p, fmt.Errorf("load program: %w", err)
	}
	defer prog.Close() // the link holds it
	attach := struct{ prog, target, kind, flags uint32 }{uint32(prog.Fd()), uint32(ns.Fd()), unix.BPF_SK_LOOKUP, 0}
	if p.link, err = bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return p, fmt.Errorf("attach program: %w", err)
	}
	return p, nil
}

// Steer puts the two sockets into the map: from here on the program has somewhere to steer to.
func (p *Program) Steer(tcp, udp syscall.Conn) error {
	for slot, c := range [...]syscall.Conn{slotTCP: tcp, slotUDP: udp} {
		rc, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var put error
		if err := rc.Control(func(fd uintptr) { put = p.put(uint32(slot), uint64(fd)) }); err != nil {
			return err
		}
		if put != nil {
			return fmt.Errorf("steer to socket: %w", put)
		}
	}
	return nil
}

func (p *Program) put(slot uint32, socket uint64) error {
	update := struct {
		sockets    uint32
		_          uint32
		key, value unsafe.Pointer
		flags      uint64
	}{sockets: uint32(p.sockets.Fd()), key: unsafe.Pointer(&slot), value: unsafe.Pointer(&socket)}
	_, err := call(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&update), unsafe.Sizeof(update))
	runtime.KeepAlive(p)
	return err
}

// Close takes the program out of its namespace.
func (p *Program) Close() error {
	var errs []error
	for _, f := range []*os.File{p.link, p.sockets} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// bpf does what makes a descriptor.
func bpf(what int, attr unsafe.Pointer, size uintptr) (*os.File, error) {
	fd, err := call(what, attr, size)
	if err != nil {
		return nil, err
	}
	return os.NewFile(fd, "bpf"), nil
}

// callTries bounds how often the kernel is asked again: it gives up checking a program when a signal comes, and Go's scheduler sends such.
const callTries = 20

func call(what int, attr unsafe.Pointer, size uintptr) (r uintptr, err error) {
	for range callTries {
		var e unix.Errno
		if r, _, e = unix.Syscall(unix.SYS_BPF, uintptr(what), uintptr(attr), size); e == 0 {
			return r, nil
		}
		if err = e; e != unix.EAGAIN {
			break
		}
	}
	return 0, err
}

// Registers: the first argument of the program and of what it calls, more arguments, what calls leave alone, and the stack.
const (
	r0, r1, r2, r3, r4, r6, r7, r8, r10 = 0, 1, 2, 3, 4, 6, 7, 8, 10
)

// Operations, as the kernel numbers them.
const (
	opMove    = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opSet     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opAdd     = unix.BPF_ALU64 | unix.BPF_ADD | unix.BPF_K
	opAnd     = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	opLoad    = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opStore   = unix.BPF_STX | unix.BPF_MEM | unix.BPF_W
	opAddress = unix.BPF_LD | unix.BPF_DW | unix.BPF_IMM // two instructions long
	opEqual   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opDiffers = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opCall    = unix.BPF_JMP | unix.BPF_CALL
	opReturn  = unix.BPF_JMP | unix.BPF_EXIT
)

// What the program calls.
const (
	callLookup  = 1   // map_lookup_elem
	callRelease = 86  // sk_release
	callAssign  = 124 // sk_assign
)

// Where things lie in the kernel's struct bpf_sk_lookup.
const (
	offFamily    = 8
	offProtocol  = 12
	offLocalAddr = 40
	offLocalPort = 60
)

// An instruction is one step; at names it, and a jump goes to a name.
type instruction struct {
	at       string
	op       uint8
	dst, src uint8
	off      int16
	value    int32
	to       string
}

// resolverWord is the resolver's IPv4 address as the program loads it.
func resolverWord() int32 {
	b := Resolver.Addr().As4()
	return int32(binary.NativeEndian.Uint32(b[:]))
}

// instructions: what is not IPv4 passes. On loopback addresses the sockets' own port is refused as if nobody listened, that of
// the resolver is steered, and the rest passes. All other addresses are steered.
func instructions(sockets int32) []instruction {
	return []instruction{
		{op: opMove, dst: r6, src: r1},
		{op: opLoad, dst: r2, src: r6, off: offFamily},
		{op: opDiffers, dst: r2, value: unix.AF_INET, to: "pass"},
		{op: opLoad, dst: r2, src: r6, off: offLocalAddr},
		{op: opLoad, dst: r3, src: r6, off: offLocalPort},
		{op: opMove, dst: r4, src: r2},
		{op: opAnd, dst: r4, value: 0xff},
		{op: opDiffers, dst: r4, value: loopbackNet, to: "steer"},
		{op: opEqual, dst: r3, value: ownPort, to: "refuse"},
		{op: opDiffers, dst: r3, value: dnsPort, to: "pass"},
		{op: opDiffers, dst: r2, value: resolverWord(), to: "pass"},

		{at: "steer", op: opLoad, dst: r2, src: r6, off: offProtocol},
		{op: opSet, dst: r3, value: slotTCP},
		{op: opEqual, dst: r2, value: unix.IPPROTO_TCP, to: "find"},
		{op: opSet, dst: r3, value: slotUDP},
		{at: "find", op: opStore, dst: r10, src: r3, off: -4},
		{op: opAddress, dst: r1, src: unix.BPF_PSEUDO_MAP_FD, value: sockets},
		{op: opMove, dst: r2, src: r10},
		{op: opAdd, dst: r2, value: -4},
		{op: opCall, value: callLookup},
		{op: opEqual, dst: r0, value: 0, to: "pass"},
		{op: opMove, dst: r7, src: r0},
		{op: opMove, dst: r1, src: r6},
		{op: opMove, dst: r2, src: r7},
		{op: opSet, dst: r3, value: 0},
		{op: opCall, value: callAssign},
		{op: opMove, dst: r8, src: r0},
		{op: opMove, dst: r1, src: r7},
		{op: opCall, value: callRelease},
		{op: opDiffers, dst: r8, value: 0, to: "refuse"},

		{at: "pass", op: opSet, dst: r0, value: 1},
		{op: opReturn},
		{at: "refuse", op: opSet, dst: r0, value: 0},
		{op: opReturn},
	}
}

// assemble returns the program as the kernel takes it.
func assemble(list []instruction) (code []byte) {
	places, n := map[string]int{}, 0
	for _, i := range list {
		if i.at != "" {
			places[i.at] = n
		}
		n++
		if i.op == opAddress {
			n++
		}
	}
	for _, i := range list {
		if i.to != "" {
			i.off = int16(places[i.to] - len(code)/8 - 1)
		}
		code = append(code, i.op, i.src<<4|i.dst)
		code = binary.NativeEndian.AppendUint16(code, uint16(i.off))
		code = binary.NativeEndian.AppendUint32(code, uint32(i.value))
		if i.op == opAddress {
			code = append(code, make([]byte, 8)...)
		}
	}
	return code
}
