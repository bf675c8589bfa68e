// Package shim stands in for QEMU's path in Kata's configuration: it is started with the arguments that Kata worked out,
// adds what Kata has no setting for, and becomes QEMU. What it adds is the same for a template and its clones, because a
// saved state fits the same devices only.
package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/cgroup"
)

// Name is the file name under which starling-guest acts as the shim.
const Name = "starling-qemu"

// Files beside the shim, which say what to add.
const (
	QEMUFile  = "qemu"       // link to the QEMU to become
	AccelFile = "accel"      // "kvm" or "tcg"
	RootFile  = "root.erofs" // the guest's root
	CodeFile  = "code.img"   // what is in the code slot before there is code
	// GroupsFile names the parent of the VMs' cgroups; each has the name of the folder that holds the VM's.
	GroupsFile = "groups"
)

// CgroupRoot is where cgroups are mounted.
const CgroupRoot = "/sys/fs/cgroup"

// Sockets in the folder of each VM.
const (
	AgentSocket   = "agent.sock"
	StreamSocket  = "stream.sock"
	MonitorSocket = "monitor.sock" // QMP, besides Kata's own
)

// Nodes of QEMU's block layer that make up the code slot.
const (
	CodeNode = "code"
	codeFile = "codefile"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg" // software emulation
)

// emulator is what replaces hardware help: a small cache of translated code, for there are many of these.
const emulator = "tcg,thread=single,tb-size=32"

// absent are the parts of the machine that a guest has no use for. Each costs every clone memory and time to load its state.
const absent = ",sata=off,smbus=off,hpet=off,vmport=off,usb=off"

// ports is how many serial ports there can be: the console and ours. QEMU would make queues for thirty.
const ports = ",max_ports=4"

// filter is QEMU's own of system calls. It may start programs, because it loads a saved state through cat.
const filter = "on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny"

// Sample stands for Kata's arguments where only what becomes of them counts.
var Sample = []string{"-machine", "q35", "-m", "64M,slots=1", "-device", "pci-bridge", "-device", "virtio-serial-pci", "-object", "rng-random", "-device", "virtio-rng-pci", "-pidfile", "vm/pid"}

// Args returns Kata's arguments without what nobody uses and with what is added: the files beside the shim in dir. It fails when
// Kata's arguments do not say where the VM's folder is.
func Args(in []string, dir, accel string) ([]string, error) {
	var out []string
	vm := ""
	clone := slices.Contains(in, "-incoming")
	for i := 0; i < len(in); i++ {
		arg, next := in[i], ""
		if i+1 < len(in) {
			next = in[i+1]
		}
		kind, _, _ := strings.Cut(next, ",")
		switch {
		case clone && (arg == "-kernel" || arg == "-initrd" || arg == "-append"), // a clone has booted long ago
			arg == "-device" && (kind == "pci-bridge" || kind == "virtio-rng-pci"), // nothing is plugged in later; randomness comes with the reseeding
			arg == "-object" && kind == "rng-random",
			arg == "-global" && accel == TCG && strings.HasPrefix(next, "kvm-"):
			i++
			continue
		case arg == "-pidfile":
			vm = filepath.Dir(next)
		case arg == "-machine":
			if accel == TCG {
				next = emulated(next)
			}
			out = append(out, arg, next+absent)
			i++
			continue
		case arg == "-m":
			out = append(out, arg, kind) // without room for memory that is plugged in later
			i++
			continue
		case arg == "-device" && kind == "virtio-serial-pci":
			out = append(out, arg, next+ports)
			i++
			continue
		case arg == "-cpu" && accel == TCG:
			out = append(out, arg, "max")
			i++
			continue
		}
		out = append(out, arg)
	}
	if vm == "" {
		return nil, fmt.Errorf("Kata's arguments name no pidfile: %q", in)
	}
	if accel == TCG {
		out = append(out, "-accel", emulator)
	}
	out = append(out, "-sandbox", filter)
	return append(out, added(dir, vm)...), nil
}

// emulated takes the words of hardware help out of a machine's options.
func emulated(options string) string {
	var keep []string
	for _, o := range strings.Split(options, ",") {
		if o != "" && o != "accel=kvm" && !strings.HasPrefix(o, "kernel_irqchip=") {
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// added is a monitor of ours, the two ports of the guest and its two disks.
func added(dir, vm string) []string {
	socket := func(id, file string) string {
		return "socket,id=" + id + ",path=" + filepath.Join(vm, file) + ",server=on,wait=off"
	}
	return []string{
		"-chardev", socket("smonitor", MonitorSocket), "-mon", "chardev=smonitor,mode=control",
		"-chardev", socket("sagent", AgentSocket), "-device", "virtserialport,chardev=sagent,name=agent.0,id=sagentport",
		"-chardev", socket("sstream", StreamSocket), "-device", "virtserialport,chardev=sstream,name=stream.0,id=sstreamport",
		"-blockdev", "driver=file,node-name=rootfile,read-only=on,filename=" + filepath.Join(dir, RootFile),
		"-blockdev", "driver=raw,node-name=root,read-only=on,file=rootfile",
		"-device", "virtio-blk-pci,drive=root,serial=root,id=rootdisk",
		"-blockdev", "driver=file,node-name=" + codeFile + ",read-only=on,filename=" + filepath.Join(dir, CodeFile),
		"-blockdev", "driver=raw,node-name=" + CodeNode + ",read-only=on,file=" + codeFile,
		"-device", "virtio-blk-pci,drive=" + CodeNode + ",serial=code,id=codedisk",
	}
}

// enter places this process in the cgroup of its VM, so that all that QEMU does is bounded and counted.
func enter(dir string, args []string) error {
	parent, err := os.ReadFile(filepath.Join(dir, GroupsFile))
	if err != nil {
		return err
	}
	tree, err := cgroup.Find(CgroupRoot, string(parent))
	if err != nil {
		return err
	}
	vm := filepath.Dir(args[slices.Index(args, "-pidfile")+1]) // Args has seen that it is there
	return tree.Group(filepath.Base(filepath.Dir(vm))).Place(os.Getpid())
}

// Main becomes QEMU. It returns only with a failure.
func Main(args []string) error {
	dir := filepath.Dir(args[0])
	accel, err := os.ReadFile(filepath.Join(dir, AccelFile))
	if err != nil {
		return err
	}
	qemu, err := os.Readlink(filepath.Join(dir, QEMUFile))
	if err != nil {
		return err
	}
	out, err := Args(args[1:], dir, strings.TrimSpace(string(accel)))
	if err != nil {
		return err
	}
	if err := enter(dir, args[1:]); err != nil {
		return fmt.Errorf("enter the VM's group: %w", err)
	}
	if err := confine(dir, args[1:]); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	// A VM must not outlive the program that knows of it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	// QEMU asks for pages of 2 MiB for its translated code, and a clone uses a few hundred KiB of most of them.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		return err
	}
	// An arena for each thread is memory of every VM.
	return syscall.Exec(qemu, append([]string{qemu}, out...), []string{"PATH=/usr/bin:/bin", "MALLOC_ARENA_MAX=1", "LD_LIBRARY_PATH=" + filepath.Join(dir, HollowDir)})
}
