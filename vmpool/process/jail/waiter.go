package jail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The waiter is what a pooled sandbox of the provided runtime is between its closing in and its bootstrap: a program of one
// thread and three pages, which waits for an image of the bootstrap's path, arguments and environment and executes it. A Go
// process would do the same, but to replace one the kernel must first end its other threads and tear its memory down, and
// it wakes them before it reads: a third of a millisecond of each start.
//
// The program is the assembly function waiter, which uses registers and fixed addresses only; a file around it makes it
// something to execute. It lives in memory and is handed to each sandbox as a descriptor.

// Where the waiter's two pieces of memory lie, and how large an image may be. waiter knows imageAt and imageMax.
const (
	codeAt   = 0x400000
	imageAt  = 0x800000
	imageMax = 128 << 10
)

// taskRoot is where the sandbox sees its code.
const taskRoot = "/var/task"

// codeSize is what is copied of waiter, which is shorter; what follows it is never reached.
const codeSize = 256

// waiter is never called.
func waiter()

// waiterCode returns the instructions of waiter, which nobody may write.
func waiterCode() *[codeSize]byte

// Waiter returns a sealed file in memory with the waiter, ready to be executed by anybody who has a descriptor of it.
func Waiter() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("waiter", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 every such file could be executed
		fd, err = unix.MemfdCreate("waiter", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make waiter: %w", err)
	}
	f := os.NewFile(uintptr(fd), "waiter")
	if _, err = f.Write(waiterFile()); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make waiter: %w", err)
	}
	return f, nil
}

// waiterFile returns the waiter as an executable file (ELF, 64 bits): its instructions, and zeroed memory for an image.
func waiterFile() []byte {
	const (
		headSize, segmentSize  = 64, 56
		load, stack            = 1, 0x6474e551 // kinds of segments
		execute, write, read   = 1, 2, 4
		instructions           = headSize + 3*segmentSize
		executable, thisFormat = 2, 1
	)
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64 bits, the low byte first
	b = le.AppendUint16(le.AppendUint16(b, executable), elfMachine)
	b = le.AppendUint32(b, thisFormat)
	for _, v := range []uint64{codeAt + instructions, headSize, 0} { // the first instruction, the segments, no sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{headSize, segmentSize, 3, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind, flags uint32, at, inFile, size uint64) {
		b = le.AppendUint32(le.AppendUint32(b, kind), flags)
		for _, v := range []uint64{0, at, at, inFile, size, 4096} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(load, read|execute, codeAt, instructions+codeSize, instructions+codeSize)
	segment(load, read|write, imageAt, 0, imageMax)
	segment(stack, read|write, 0, 0, 0) // which is not executed
	return append(b, waiterCode()[:]...)
}

// Image returns what makes the waiter become the bootstrap at path with the environment env: four addresses (of the folder to go to,
// the path, the arguments and the environment), then what they point at, as it will lie in the waiter's memory.
func Image(path string, env []string) ([]byte, error) {
	const words = 4 + 2 // the arguments are the path and the end
	texts := append([]string{taskRoot, path}, env...)
	at := uint64(8 * (words + len(env) + 1))
	size := at
	for _, text := range texts {
		size += uint64(len(text)) + 1
	}
	b := make([]byte, at, size) // and no more: fresh memory costs a start 2 µs a page
	point := func(word int, to uint64) { binary.LittleEndian.PutUint64(b[8*word:], to) }
	for i, text := range texts {
		switch here := imageAt + at; i {
		case 0:
			point(0, here)
		case 1:
			point(1, here)
			point(4, here)
		default:
			point(words+i-2, here)
		}
		b = append(append(b, text...), 0)
		at = uint64(len(b))
	}
	point(2, imageAt+8*4)
	point(3, imageAt+8*words)
	if len(b) > imageMax {
		return nil, fmt.Errorf("the environment of the bootstrap needs %d bytes, %d are the limit", len(b), imageMax)
	}
	return b, nil
}

// Refused explains what the waiter says when the bootstrap could not be executed; said holds the kernel's answer.
func Refused(said []byte) string {
	if len(said) < 8 {
		return "bootstrap cannot run: no reason is known"
	}
	err := unix.Errno(-int64(binary.LittleEndian.Uint64(said)))
	if err == unix.ENOEXEC || err == unix.ENOENT {
		return "bootstrap cannot run here: build it for linux and this machine, static or with an interpreter the sandbox has: " + err.Error()
	}
	return fmt.Sprintf("execute bootstrap: %v", err)
}

// FindBootstrap returns the package's bootstrap or else that of its layers, or says why there is none that can run; it is asked inside
// the sandbox's mounts.
func FindBootstrap() (path, why string) {
	var st unix.Stat_t
	path = Bootstrap
	err := unix.Stat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		path = LayerBootstrap
		err = unix.Stat(path, &st)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", "the package has no file named bootstrap at its top, nor has a layer: add the executable that serves the Runtime API"
	case err != nil:
		return "", "look at bootstrap: " + err.Error()
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o001 == 0:
		return "", "bootstrap is not an executable file: give it mode 0755 in the package"
	}
	return path, ""
}
