package jail

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system-call filter is an allow-list: a call that nobody thought of is refused. A refused call that this list was
// written with gets EPERM; a newer one gets ENOSYS, so that libraries fall back as on an older kernel. Calls of a
// foreign ABI end the process: no compiler makes them by accident.

// Offsets in struct seccomp_data; arguments are compared by their low halves, as the kernel reads ints.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
	argSize   = 8
)

const (
	allow      = uint32(unix.SECCOMP_RET_ALLOW)
	refuse     = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	unknown    = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	killAll    = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	noTTY      = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOTTY)
	noFamily   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EAFNOSUPPORT)
	noProtocol = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPROTONOSUPPORT)
	noOption   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOPROTOOPT)
)

// namespaceFlags are the flags of clone that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Requests that package unix does not name; the same on every architecture that Go runs on but MIPS and PowerPC.
const (
	fionclex = 0x5450
	fioclex  = 0x5451
	fionbio  = 0x5421
	fioasync = 0x5452
)

// ioctls that read a state or set a descriptor's mode. Everything a device driver could answer to is not among them.
var ioctls = []uint32{unix.TCGETS, unix.TIOCGWINSZ, unix.TIOCGPGRP, unix.TIOCINQ, unix.TIOCOUTQ, fionbio, fioclex, fionclex, fioasync,
	unix.SIOCGIFNAME, unix.SIOCGIFCONF, unix.SIOCGIFFLAGS, unix.SIOCGIFADDR, unix.SIOCGIFNETMASK, unix.SIOCGIFMTU, unix.SIOCGIFHWADDR, unix.SIOCGIFINDEX}

// prctls leaves out PR_SET_PDEATHSIG (the sandbox must die with its warden), PR_SET_MM, PR_SET_SECCOMP and the
// speculation controls, which could only be weakened.
var prctls = []uint32{unix.PR_GET_PDEATHSIG, unix.PR_GET_DUMPABLE, unix.PR_SET_DUMPABLE, unix.PR_GET_KEEPCAPS, unix.PR_SET_NAME, unix.PR_GET_NAME,
	unix.PR_GET_SECCOMP, unix.PR_CAPBSET_READ, unix.PR_GET_SECUREBITS, unix.PR_SET_TIMERSLACK, unix.PR_GET_TIMERSLACK, unix.PR_SET_CHILD_SUBREAPER,
	unix.PR_GET_CHILD_SUBREAPER, unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_TID_ADDRESS, unix.PR_SET_THP_DISABLE,
	unix.PR_GET_THP_DISABLE, unix.PR_SET_VMA}

// socketFilters are the options of SOL_SOCKET that load a program into the kernel.
var socketFilters = []uint32{unix.SO_ATTACH_FILTER, unix.SO_ATTACH_BPF, unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF}

// A program is a filter being assembled. Jumps only go forward, over what is appended next.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf})
}

func (p *program) load(offset uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }
func (p *program) arg(n uint32)       { p.load(offArg0 + n*argSize) }
func (p *program) mask(k uint32)      { p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, k, 0, 0) }
func (p *program) ret(action uint32)  { p.add(unix.BPF_RET|unix.BPF_K, action, 0, 0) }

// retIf ends with action when the loaded word equals k.
func (p *program) retIf(k, action uint32) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, 0, 1)
	p.ret(action)
}

// on runs body, which must end every path, when the loaded word equals k. Otherwise the word stays loaded.
func (p *program) on(k uint32, body func(*program)) {
	var b program
	body(&b)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, 0, uint8(len(b)))
	*p = append(*p, b...)
}

// oneOf ends with allow when argument n is one of ks, else with otherwise.
func oneOf(n uint32, ks []uint32, otherwise uint32) func(*program) {
	return func(p *program) {
		p.arg(n)
		for _, k := range ks {
			p.retIf(k, allow)
		}
		p.ret(otherwise)
	}
}

// Filter returns the system-call filter for this machine's architecture.
func Filter() []unix.SockFilter {
	var p program
	p.load(offArch)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, auditArch, 1, 0)
	p.ret(killAll)
	p.load(offNumber)
	if x32Bit != 0 {
		p.add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, x32Bit, 0, 1)
		p.ret(killAll)
	}
	p.on(unix.SYS_CLONE, func(p *program) {
		p.arg(0)
		p.add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, namespaceFlags, 0, 1)
		p.ret(refuse)
		p.ret(allow)
	})
	// The flags of clone3 are behind a pointer that a filter cannot follow; libraries fall back to clone.
	p.retIf(unix.SYS_CLONE3, unknown)
	p.on(unix.SYS_SOCKET, socketRule)
	p.on(unix.SYS_SETSOCKOPT, optionRule)
	p.on(unix.SYS_IOCTL, oneOf(1, ioctls, noTTY))
	p.on(unix.SYS_PRCTL, oneOf(0, prctls, refuse))
	p.on(unix.SYS_PERSONALITY, oneOf(0, []uint32{0, 0xffffffff}, refuse))
	for _, r := range ranges(allowed) {
		if r[0] == r[1] {
			p.retIf(r[0], allow)
			continue
		}
		p.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, r[0], 0, 2)
		p.add(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, r[1], 1, 0)
		p.ret(allow)
	}
	p.add(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, newestKnown, 0, 1)
	p.ret(unknown)
	p.ret(refuse)
	return p
}

// socketRule allows unix, TCP and UDP sockets.
func socketRule(p *program) {
	p.arg(0)
	p.on(unix.AF_UNIX, func(p *program) { p.ret(allow) })
	inet := func(p *program) {
		p.arg(2)
		p.on(0, func(p *program) {
			p.arg(1)
			p.mask(0xf) // the rest are SOCK_CLOEXEC and SOCK_NONBLOCK
			p.retIf(unix.SOCK_STREAM, allow)
			p.retIf(unix.SOCK_DGRAM, allow)
			p.ret(refuse)
		})
		p.on(unix.IPPROTO_TCP, onlyType(unix.SOCK_STREAM))
		p.on(unix.IPPROTO_UDP, onlyType(unix.SOCK_DGRAM))
		p.ret(noProtocol)
	}
	p.on(unix.AF_INET, inet)
	p.on(unix.AF_INET6, inet)
	p.ret(noFamily)
}

func onlyType(kind uint32) func(*program) {
	return func(p *program) {
		p.arg(1)
		p.mask(0xf)
		p.retIf(kind, allow)
		p.ret(refuse)
	}
}

// optionRule refuses socket options that load programs, tables or protocol modules.
func optionRule(p *program) {
	const replaceTable, addCounters = 64, 65 // iptables and its kin, in both families
	p.arg(1)
	p.on(unix.SOL_SOCKET, func(p *program) {
		p.arg(2)
		for _, o := range socketFilters {
			p.retIf(o, refuse)
		}
		p.ret(allow)
	})
	p.on(unix.IPPROTO_TCP, func(p *program) {
		p.arg(2)
		p.retIf(unix.TCP_ULP, noOption)
		p.ret(allow)
	})
	table := func(p *program) {
		p.arg(2)
		p.retIf(replaceTable, refuse)
		p.retIf(addCounters, refuse)
		p.ret(allow)
	}
	p.on(unix.IPPROTO_IP, table)
	p.on(unix.IPPROTO_IPV6, table)
	p.ret(allow)
}

// ranges joins neighbouring numbers, which keeps the filter short.
func ranges(numbers []uint32) [][2]uint32 {
	s := slices.Clone(numbers)
	slices.Sort(s)
	var out [][2]uint32
	for _, n := range s {
		if l := len(out); l > 0 && n <= out[l-1][1]+1 {
			out[l-1][1] = n
			continue
		}
		out = append(out, [2]uint32{n, n})
	}
	return out
}

// install puts the filter on the calling thread.
func install(f []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// SeccompKills returns nil when the kernel can end a whole process for a refused call, the newest thing the filter needs.
func SeccompKills() error {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); e != 0 {
		return e
	}
	return nil
}
