package capture

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Where things lie in the kernel's struct bpf_sk_lookup.
const (
	offFamily    = 8
	offProtocol  = 12
	offLocalAddr = 40
	offLocalPort = 60
)

// The places of the host's sockets in the program's map.
const (
	slotTCP = 0
	slotUDP = 1
)

// A program steers what is connected to in one namespace to the sockets in its map, and passes everything on while there are none.
type program struct {
	sockets *ebpf.Map
	link    link.Link
}

// load attaches a program to a namespace. It steers nothing yet.
func load(ns *os.File) (p *program, err error) {
	p = &program{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.sockets, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 2}); err != nil {
		return p, fmt.Errorf("make map of sockets: %w", err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL", Instructions: instructions(p.sockets.FD())})
	if err != nil {
		return p, fmt.Errorf("load program: %w", err)
	}
	defer prog.Close() // the link holds it
	if p.link, err = link.AttachNetNs(int(ns.Fd()), prog); err != nil {
		return p, fmt.Errorf("attach program: %w", err)
	}
	return p, nil
}

// steer puts the host's sockets into the map: from here on the program has somewhere to steer to.
func (p *program) steer(tcp, udp syscall.Conn) error {
	for slot, c := range map[uint32]syscall.Conn{slotTCP: tcp, slotUDP: udp} {
		rc, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var put error
		if err := rc.Control(func(fd uintptr) { put = p.sockets.Put(slot, uint64(fd)) }); err != nil {
			return err
		}
		if put != nil {
			return fmt.Errorf("steer to the host's socket: %w", put)
		}
	}
	return nil
}

func (p *program) close() error {
	var errs []error
	if p.link != nil {
		errs = append(errs, p.link.Close())
	}
	if p.sockets != nil {
		errs = append(errs, p.sockets.Close())
	}
	return errors.Join(errs...)
}

// word is an IPv4 address as the program loads it.
func word(a net.IP) int32 {
	b := a.To4()
	return int32(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
}

// instructions: what is not IPv4 passes. On loopback addresses the host's own port is refused as if nobody listened, that of
// the resolver is steered, and the rest passes. All other addresses are steered.
func instructions(sockets int) asm.Instructions {
	const loopback = 127
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, offFamily, asm.Word),
		asm.JNE.Imm(asm.R2, unix.AF_INET, "pass"),
		asm.LoadMem(asm.R2, asm.R6, offLocalAddr, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, offLocalPort, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.And.Imm32(asm.R4, 0xff),
		asm.JNE.Imm32(asm.R4, loopback, "steer"),
		asm.JEq.Imm32(asm.R3, hostPort, "refuse"),
		asm.JNE.Imm32(asm.R3, dnsPort, "pass"),
		asm.JNE.Imm32(asm.R2, word(Resolver.IP), "pass"),

		asm.LoadMem(asm.R2, asm.R6, offProtocol, asm.Word).WithSymbol("steer"),
		asm.Mov.Imm(asm.R3, slotTCP),
		asm.JEq.Imm32(asm.R2, unix.IPPROTO_TCP, "find"),
		asm.Mov.Imm(asm.R3, slotUDP),
		asm.StoreMem(asm.R10, -4, asm.R3, asm.Word).WithSymbol("find"),
		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.JNE.Imm(asm.R8, 0, "refuse"),

		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return(),
	}
}
