package link

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLineSpeaksWithConn(t *testing.T) {
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := NewLine(fd)
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := b.Send(&Message{Op: Listener}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, fds, err := a.Receive()
	if err != nil || m.Op != Listener || len(fds) != 1 {
		t.Fatalf("%+v %v %v", m, fds, err)
	}
	unix.Close(fds[0])
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a copy of the descriptor is still open: %d %v", n, err)
	}
	if err := a.Send(&Message{Op: Ready, Env: []string{"A=b"}}); err != nil {
		t.Fatal(err)
	}
	if m, _, err := b.Receive(); err != nil || m.Op != Ready || len(m.Env) != 1 {
		t.Errorf("%+v %v", m, err)
	}
	a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the line: %v", err)
	}
	if err := b.Send(&Message{Op: Ready}); err == nil {
		t.Error("sent to nobody")
	}
}

func TestLinesPassAnyBytes(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := NewLine(fds[0]), NewLine(fds[1])
	defer b.Close()
	if err := a.SendBytes([]byte("no message")); err != nil {
		t.Fatal(err)
	}
	if said, err := b.ReceiveBytes(); err != nil || string(said) != "no message" {
		t.Errorf("%q %v", said, err)
	}
	a.Close()
	if _, err := b.ReceiveBytes(); err != io.EOF {
		t.Errorf("end of the line: %v", err)
	}
}
