package link

import "testing"

// A Line receives the messages and the bytes of another.
func TestLinesSpeak(t *testing.T) {
	a, f, err := LinePair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b := NewLine(int(f.Fd())) // which makes it block
	defer f.Close()
	if err := a.Send(&Message{Op: Ready, Env: []string{"A=b"}}); err != nil {
		t.Fatal(err)
	}
	if m, _, err := b.Receive(); err != nil || m.Op != Ready || len(m.Env) != 1 {
		t.Errorf("%+v %v", m, err)
	}
	if err := b.SendBytes([]byte("no message")); err != nil {
		t.Fatal(err)
	}
	if said, err := a.ReceiveBytes(); err != nil || string(said) != "no message" {
		t.Errorf("%q %v", said, err)
	}
}
