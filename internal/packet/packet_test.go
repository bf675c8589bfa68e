package packet

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const limit = 64

// An end is what both kinds of ends can do.
type end interface {
	Send(b []byte, fds ...int) error
	Receive() ([]byte, []int, error)
}

// ends returns two ends, the second of which receives packets of at most limit bytes, and what ends the first.
func ends(t *testing.T, line bool) (a, b end, hangUp func()) {
	t.Helper()
	conn, f, err := Pair(limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if line {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		l := NewLine(fd, limit)
		t.Cleanup(l.Close)
		return conn, l, func() { conn.Close() }
	}
	other, err := New(f, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return conn, other, func() { conn.Close() }
}

func both(t *testing.T, test func(t *testing.T, line bool)) {
	t.Run("conn", func(t *testing.T) { test(t, false) })
	t.Run("line", func(t *testing.T) { test(t, true) })
}

func TestPacketsCarryDescriptors(t *testing.T) {
	both(t, func(t *testing.T, line bool) {
		a, b, _ := ends(t, line)
		for _, pair := range [][2]end{{a, b}, {b, a}} {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := pair[0].Send([]byte("take this"), int(w.Fd())); err != nil {
				t.Fatal(err)
			}
			w.Close()
			got, fds, err := pair[1].Receive()
			if err != nil || string(got) != "take this" || len(fds) != 1 {
				t.Fatalf("%q %v %v", got, fds, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Error("a received descriptor would be inherited")
			}
			CloseAll(fds)
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("a copy of the descriptor is still open: %d %v", n, err)
			}
		}
	})
}

func TestTheEndIsTold(t *testing.T) {
	both(t, func(t *testing.T, line bool) {
		_, b, hangUp := ends(t, line)
		hangUp()
		if got, _, err := b.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("%q %v", got, err)
		}
		if b.Send([]byte("hello")) == nil {
			t.Error("sent to nobody")
		}
	})
}

// A packet over the limit is an error, and what came with it stays open nowhere; the next packet is whole.
func TestTooMuchIsAnError(t *testing.T) {
	both(t, func(t *testing.T, line bool) {
		a, b, _ := ends(t, line)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := a.Send([]byte(strings.Repeat("x", limit+1)), int(w.Fd())); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if got, _, err := b.Receive(); err == nil {
			t.Errorf("received %d bytes of %d", len(got), limit+1)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("a copy of the descriptor is still open: %d %v", n, err)
		}
		whole := strings.Repeat("y", limit)
		if err := a.Send([]byte(whole)); err != nil {
			t.Fatal(err)
		}
		if got, fds, err := b.Receive(); string(got) != whole || len(fds) != 0 || err != nil {
			t.Errorf("%q %v %v", got, fds, err)
		}
		if a.Send(nil) == nil || b.Send(nil) == nil {
			t.Error("an empty packet was sent, which is the end")
		}
		if many := make([]int, fdsMax+1); a.Send([]byte("x"), many...) == nil || b.Send([]byte("x"), many...) == nil {
			t.Error("too many descriptors were sent")
		}
	})
}
