package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// methods are the calls of Kata's agent protocol that a sandbox of ours has a use for; field numbers are those of its messages.
var methods = map[string]func(*guest, []byte) ([]byte, error){
	"grpc.Health/Check":                       (*guest).check,
	"grpc.Health/Version":                     (*guest).version,
	"grpc.AgentService/ReseedRandomDev":       (*guest).reseed,
	"grpc.AgentService/SetGuestDateTime":      (*guest).setTime,
	"grpc.AgentService/CreateSandbox":         (*guest).createSandbox,
	"grpc.AgentService/UpdateEphemeralMounts": (*guest).mountCode,
	"grpc.AgentService/UpdateContainer":       (*guest).limit,
	"grpc.AgentService/UpdateRoutes":          (*guest).letOut,
	"grpc.AgentService/ExecProcess":           (*guest).exec,
	"grpc.AgentService/WaitProcess":           (*guest).wait,
	"grpc.AgentService/StatsContainer":        (*guest).stats,
}

func (g *guest) call(service, method string, in []byte) ([]byte, error) {
	f := methods[service+"/"+method]
	if f == nil {
		return nil, refuse(notServed, "%s/%s is not served", service, method)
	}
	return f(g, in)
}

// check says SERVING: the agent listens only when the language runtime is ready.
func (g *guest) check([]byte) ([]byte, error) { return appendNumber(nil, 1, 1), nil }

// version tells the identity of the boot that this guest comes from: all clones of a template have the same, and a guest
// that was booted instead of cloned has its own.
func (g *guest) version([]byte) ([]byte, error) {
	return appendBytes(appendBytes(nil, 1, []byte("0.0.1")), 2, g.boot), nil
}

// What every clone gets before code: see fresh.
const (
	freshRandom = 1 << iota
	freshTime
	freshName
	freshAll = freshRandom | freshTime | freshName
)

// renew notes that one of these was done.
func (g *guest) renew(what uint8) {
	g.mu.Lock()
	g.fresh |= what
	g.mu.Unlock()
}

// mayHaveCode refuses to give a clone code that still has the random state, clock and name of its template.
func (g *guest) mayHaveCode() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fresh != freshAll {
		return refuse(invalidArgument, "the guest has not its own randomness, time and name yet (%03b)", g.fresh)
	}
	return nil
}

const (
	rndAddEntropy = 0x40085203
	rndReseed     = 0x5207
)

// reseed mixes bytes of the host into the kernel's generator and has it derive its keys anew.
func (g *guest) reseed(in []byte) ([]byte, error) {
	var data []byte
	if err := within(in, []protowire.Number{2}, func(v value) { data = v.bytes }); err != nil {
		return nil, err
	}
	if len(data) < 32 || len(data) > 4096 {
		return nil, refuse(invalidArgument, "%d bytes of randomness: use 32-4096", len(data))
	}
	pool := make([]uint32, 2+(len(data)+3)/4) // struct rand_pool_info
	pool[0], pool[1] = uint32(len(data)*8), uint32(len(data))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&pool[2])), len(data)), data)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, g.random.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&pool[0]))); e != 0 {
		return nil, fmt.Errorf("add randomness: %w", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, g.random.Fd(), rndReseed, 0); e != 0 {
		return nil, fmt.Errorf("reseed: %w", e)
	}
	g.renew(freshRandom)
	return nil, nil
}

func (g *guest) setTime(in []byte) ([]byte, error) {
	var t unix.Timeval
	err := fields(in, func(n protowire.Number, v value) {
		switch n {
		case 1:
			t.Sec = int64(v.number)
		case 2:
			t.Usec = int64(v.number)
		}
	})
	if err == nil {
		err = unix.Settimeofday(&t)
	}
	if err != nil {
		return nil, fmt.Errorf("set time: %w", err)
	}
	g.renew(freshTime)
	return nil, nil
}

// createSandbox gives the clone its name, and a machine-id of its own generator, which must be fresh by then.
func (g *guest) createSandbox(in []byte) ([]byte, error) {
	var name string
	if err := within(in, []protowire.Number{1}, func(v value) { name = string(v.bytes) }); err != nil {
		return nil, err
	}
	g.mu.Lock()
	fresh := g.fresh
	g.mu.Unlock()
	if fresh&freshRandom == 0 || fresh&freshName != 0 || name == "" || len(name) > 63 {
		return nil, refuse(invalidArgument, "a name of 1-63 letters, once, after the randomness")
	}
	if err := g.setIdentity(name); err != nil {
		return nil, err
	}
	g.renew(freshName)
	return nil, nil
}

// setIdentity gives the guest its name and a machine-id; the root's /etc/hostname and /etc/machine-id are links to these files.
func (g *guest) setIdentity(name string) error {
	var id [16]byte
	if _, err := unix.Getrandom(id[:], 0); err != nil {
		return fmt.Errorf("make machine-id: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	_, err := g.hostname.WriteString(name + "\n")
	_, err2 := g.machineID.WriteString(hex.EncodeToString(id[:]) + "\n")
	return errors.Join(err, err2)
}

// limit sets the memory of the function.
func (g *guest) limit(in []byte) ([]byte, error) {
	var bytes uint64
	if err := within(in, []protowire.Number{2, 2, 1}, func(v value) { bytes = v.number }); err != nil {
		return nil, err
	}
	if bytes == 0 {
		return nil, refuse(invalidArgument, "no memory limit")
	}
	return nil, os.WriteFile(group+"/memory.max", strconv.AppendUint(nil, bytes, 10), 0)
}

func (g *guest) stats([]byte) ([]byte, error) {
	now, err := groupNumber("memory.current", "")
	if err != nil {
		return nil, err
	}
	peak, err := groupNumber("memory.peak", "")
	if errors.Is(err, os.ErrNotExist) { // a kernel before 5.19
		peak, err = now, nil
	}
	if err != nil {
		return nil, err
	}
	cpu, err := groupNumber("cpu.stat", "usage_usec")
	if err != nil {
		return nil, err
	}
	tasks, err := groupNumber("pids.current", "")
	if err != nil {
		return nil, err
	}
	usage := appendNumber(appendNumber(nil, 1, now), 2, peak)
	all := appendBytes(nil, 1, appendBytes(nil, 1, appendNumber(nil, 1, cpu*1000)))
	all = appendBytes(all, 2, appendBytes(nil, 2, usage))
	all = appendBytes(all, 3, appendNumber(nil, 1, tasks))
	return appendBytes(nil, 1, all), nil
}

// groupNumber reads a number of the function's cgroup: the whole file, or the line that begins with key.
func groupNumber(file, key string) (uint64, error) {
	text, err := os.ReadFile(group + "/" + file)
	if err != nil {
		return 0, err
	}
	if key == "" {
		return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, key)
}
