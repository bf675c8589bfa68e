package handover

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"starling"
	"starling/vpcproxy/resume"
)

// A directory that others may enter is refused; an own one is made, and what an earlier life left in it is no hindrance.
func TestOnlyAnOwnDirectoryServes(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(open, 1, func(*Conn) {}); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a directory for everybody: %v, %v", l, err)
	}
	own := filepath.Join(t.TempDir(), "own")
	for range 2 {
		l, err := Listen(own, 1, func(*Conn) {})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if Here(own, 2) {
		t.Error("a gateway that is not there answers")
	}
}

// A message, a descriptor and bytes come as they were sent.
func TestConversation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "own")
	sent := bytes.Repeat([]byte("0123456789"), 20_000) // several pieces
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("in a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, 7, func(c *Conn) {
		f, err := os.Open(text)
		if err != nil {
			return
		}
		defer f.Close()
		var q resume.Question
		if _, err := c.Hear(&q); err != nil || q.Sent != 5 {
			return
		}
		if c.Say(resume.Flow{Unsent: len(sent)}, int(f.Fd())) == nil && c.Send(sent) == nil {
			_, _ = c.Hear(&q) // until the other end is through
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(dir, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Say(resume.Question{Sent: 5}); err != nil {
		t.Fatal(err)
	}
	var flow resume.Flow
	fds, err := c.Hear(&flow)
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	f := os.NewFile(uintptr(fds[0]), "text")
	defer f.Close()
	b := make([]byte, 100)
	if n, err := f.Read(b); err != nil || string(b[:n]) != "in a file" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if got, err := c.Receive(flow.Unsent); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
