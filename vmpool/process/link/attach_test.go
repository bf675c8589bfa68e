package link

import (
	"reflect"
	"testing"
)

var attachments = []*Message{
	{Op: Attach, ID: 1 << 40, Code: "/srv/code/a b", MemoryBytes: 130 << 20, CPU: 0.25, Processes: 256, Env: []string{"A=1", "EMPTY=", "TEXT=ä\n"}},
	{Op: Attach, ID: 7, Error: "mount code: no such folder"},
	{Op: Attach, ID: 7, Entrypoint: "the package has no file named bootstrap"},
	{Op: Attach, ID: 9, Layers: []string{"/srv/layers/a", "", "/srv/layers/b"}, Env: []string{"A=1"}},
	{Op: Attach},
}

func TestAttachmentsArriveAsSent(t *testing.T) {
	a, b := ends(t)
	for _, sent := range attachments {
		if err := a.Send(sent); err != nil {
			t.Fatal(err)
		}
		if got, _, err := b.Receive(); err != nil || !reflect.DeepEqual(got, sent) {
			t.Errorf("sent %+v, got %+v, %v", sent, got, err)
		}
	}
}

// What is taken as an attachment is written again as it was meant; nothing else is taken, and nothing panics.
func FuzzReadAttach(f *testing.F) {
	for _, m := range attachments {
		f.Add(appendAttach(nil, m)[1:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again Message
		if readAttach(b, &m) != nil {
			return
		}
		if err := readAttach(appendAttach(nil, &m)[1:], &again); err != nil {
			t.Fatalf("%+v cannot be read again: %v", m, err)
		}
		if m.CPU == m.CPU && !reflect.DeepEqual(m, again) { // not a number differs from itself
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

// Code and layers are folders or the descriptors that came, in order; a folder that is not absolute, or a descriptor too few, is an error.
func TestTreesAreFoldersOrDescriptors(t *testing.T) {
	m := &Message{Layers: []string{"/a", "", "/b"}}
	code, layers, err := m.Trees([]int{5, 6})
	if want := []Tree{{"/a", -1}, {"", 6}, {"/b", -1}}; err != nil || code != (Tree{"", 5}) || !reflect.DeepEqual(layers, want) {
		t.Errorf("%+v, %+v, %v", code, layers, err)
	}
	for name, m := range map[string]*Message{"no code": {Layers: []string{"/a"}}, "a layer too many": {Code: "/c", Layers: []string{""}}, "no absolute folder": {Code: "c"}, "nor that of a layer": {Code: "/c", Layers: []string{"../a"}}} {
		if _, _, err := m.Trees(nil); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
