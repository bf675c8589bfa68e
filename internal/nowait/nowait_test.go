package nowait

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func TestBytesArriveOnceAndTheEndIsSeen(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 16)
	if n, err := Read(b, buf); n != 0 || err != unix.EAGAIN {
		t.Errorf("reading nothing gives %d, %v", n, err)
	}
	if n, err := Write(a, []byte("hello")); n != 5 || err != nil {
		t.Errorf("writing gives %d, %v", n, err)
	}
	for _, read := range []func(int, []byte) (int, error){Peek, Read} {
		if n, err := read(b, buf); err != nil || !bytes.Equal(buf[:n], []byte("hello")) {
			t.Errorf("reading gives %q, %v", buf[:n], err)
		}
	}
	if n, err := Peek(b, buf); n != 0 || err != unix.EAGAIN {
		t.Errorf("what was read is still there: %d, %v", n, err)
	}
	if err := unix.Shutdown(a, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	for _, read := range []func(int, []byte) (int, error){Peek, Read} {
		if n, err := read(b, buf); n != 0 || err != nil {
			t.Errorf("reading at the end gives %d, %v", n, err)
		}
	}
}

func TestAFullPipeTakesAPartAndThenNothing(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	big := make([]byte, 4<<20)
	if n, err := Write(p[1], big); err != nil || n <= 0 || n >= len(big) {
		t.Errorf("writing gives %d, %v", n, err)
	}
	if n, err := Write(p[1], big); n != 0 || err != unix.EAGAIN {
		t.Errorf("writing into a full pipe gives %d, %v", n, err)
	}
}

func TestPollTellsWhatCanBeRead(t *testing.T) {
	a, b := pair(t)
	fds := []unix.PollFd{{Fd: int32(a), Events: unix.POLLIN}, {Fd: int32(b), Events: unix.POLLIN}, {Fd: -1}}
	if n, err := Poll(fds); n != 0 || err != nil {
		t.Errorf("nothing can be read, and poll says %d, %v", n, err)
	}
	if _, err := Write(a, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := Poll(fds); n != 1 || err != nil || fds[0].Revents != 0 || fds[1].Revents&unix.POLLIN == 0 {
		t.Errorf("poll says %d, %v, %+v", n, err, fds)
	}
}

func TestOnlyDescriptorsThatNeverWaitAreAble(t *testing.T) {
	a, b := pair(t)
	if err := unix.SetNonblock(b, false); err != nil {
		t.Fatal(err)
	}
	if !Able(a) || Able(b) || Able(-1) {
		t.Errorf("non-blocking %t, blocking %t, none %t", Able(a), Able(b), Able(-1))
	}
}
