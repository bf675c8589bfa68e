// Package nowait makes system calls on descriptors that never wait, without a word to Go's scheduler.
//
// What a node does for a warm call is a handful of reads and writes of a few microseconds each. Around a usual system call the
// scheduler takes note that the thread may be away for long: its monitor wakes, looks every 20 us whether it is, and gives the
// work to another thread. Where nothing waits all of that is for nothing, and it cost a tenth of the node's time.
//
// Never use it on a descriptor that can block: the processor of Go that runs the caller would wait with it.
package nowait

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Able reports whether a descriptor never waits, so that the functions of this package may be used on it.
func Able(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK != 0
}

// Read reads into p, which is not empty, and answers EAGAIN when there is nothing. The error is a unix.Errno, never EINTR.
func Read(fd int, p []byte) (int, error) {
	return transfer(unix.SYS_READ, fd, p)
}

// Write writes what of p, which is not empty, the descriptor takes, and answers EAGAIN when that is nothing.
func Write(fd int, p []byte) (int, error) {
	return transfer(unix.SYS_WRITE, fd, p)
}

func transfer(call uintptr, fd int, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// Peek reads as Read does, from a socket, and leaves there what it reads.
func Peek(fd int, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// Poll looks which of fds, of which there is at least one, have what they are asked for now, and returns how many.
func Poll(fds []unix.PollFd) (int, error) {
	for {
		now := unix.Timespec{}
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}
