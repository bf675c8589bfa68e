package link

import (
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func ends(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesCarryDescriptors(t *testing.T) {
	a, b := ends(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := &Message{Op: Clone, ID: 7, Argv: []string{"x", "y"}, Jail: &Jail{Files: 3}}
	if err := a.Send(sent, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, fds, err := b.Receive()
	if err != nil || len(fds) != 1 || !reflect.DeepEqual(got, sent) {
		t.Fatalf("%+v %v %v", got, fds, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Error("a received descriptor would be inherited")
	}
	unix.Close(fds[0])
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a copy of the descriptor is still open: %d %v", n, err)
	}
}

func TestEndAndExcess(t *testing.T) {
	a, b := ends(t)
	if err := a.Send(&Message{Op: Ready, Env: []string{strings.Repeat("x", MessageMax)}}); err == nil {
		t.Error("a message over the limit was sent")
	}
	a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the link: %v", err)
	}
}

func TestNoiseIsAnError(t *testing.T) {
	a, b := ends(t)
	if err := a.packets.Send([]byte("{not json")); err != nil {
		t.Fatal(err)
	}
	if m, _, err := b.Receive(); err == nil {
		t.Errorf("noise became %+v", m)
	}
}

// FuzzReceive feeds packets of any content: the answer is a message or an error.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"op":2,"id":5}`))
	f.Add([]byte(`{"op":10,"status":9,"oom":true}`))
	f.Add([]byte(`{"op":"x"}`))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > MessageMax {
			return
		}
		a, b := ends(t)
		if err := a.packets.Send(packet); err != nil {
			t.Fatal(err)
		}
		if m, fds, err := b.Receive(); (m == nil) == (err == nil) || len(fds) > 0 {
			t.Fatalf("%+v %v %v", m, fds, err)
		}
	})
}
