package ends

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEndsCarryOutputAndCalls(t *testing.T) {
	var e Ends
	theirs, err := e.Plumb(true)
	if err != nil || len(theirs) != 4 {
		t.Fatalf("%v %v", theirs, err)
	}
	files := make([]*os.File, len(theirs))
	for i, fd := range theirs {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("end %d of the sandbox does not block: %v", i, err)
		}
		files[i] = os.NewFile(uintptr(fd), "theirs")
	}
	stdout, stderr := e.Output()
	for i, r := range []io.Reader{stdout, stderr, e.Channel()} {
		w := files[[]int{0, 1, 3}[i]]
		if _, err := w.WriteString("hello"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if got, err := io.ReadAll(r); err != nil || string(got) != "hello" {
			t.Errorf("stream %d: %q %v", i, got, err)
		}
	}
	if err := errors.Join(e.Release(), e.Release()); err != nil {
		t.Errorf("release: %v", err)
	}
	if got, err := io.ReadAll(files[2]); err != nil || len(got) != 0 {
		t.Errorf("calls after the release: %q %v", got, err)
	}
	files[2].Close()
}

func TestProvidedHasNoChannel(t *testing.T) {
	var e Ends
	theirs, err := e.Plumb(false)
	if err != nil || len(theirs) != 2 || e.Channel() != nil || e.Listener() != nil {
		t.Fatalf("%v %v", theirs, err)
	}
	for _, fd := range theirs {
		unix.Close(fd)
	}
	if err := e.Release(); err != nil {
		t.Error(err)
	}
}
