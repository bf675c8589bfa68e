package jail

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// at returns the text an address of an image points at.
func at(t *testing.T, image []byte, address uint64) string {
	t.Helper()
	if address < imageAt || address >= imageAt+uint64(len(image)) {
		t.Fatalf("address %#x is outside of the image", address)
	}
	text, _, ok := bytes.Cut(image[address-imageAt:], []byte{0})
	if !ok {
		t.Fatalf("no end of the text at %#x", address)
	}
	return string(text)
}

func TestAnImageHoldsWhatItsAddressesSay(t *testing.T) {
	env := []string{"A=b", "EMPTY=", "LONG=" + strings.Repeat("x", 5000)}
	image, err := Image(Bootstrap, env)
	if err != nil {
		t.Fatal(err)
	}
	word := func(address uint64) uint64 { return binary.LittleEndian.Uint64(image[address-imageAt:]) }
	if folder, path := at(t, image, word(imageAt)), at(t, image, word(imageAt+8)); folder != taskRoot || path != Bootstrap {
		t.Errorf("executes %q in %q", path, folder)
	}
	list := func(from uint64) (out []string) {
		for ; word(from) != 0; from += 8 {
			out = append(out, at(t, image, word(from)))
		}
		return out
	}
	if argv := list(word(imageAt + 16)); len(argv) != 1 || argv[0] != Bootstrap {
		t.Errorf("arguments %q", argv)
	}
	if got := list(word(imageAt + 24)); strings.Join(got, " ") != strings.Join(env, " ") {
		t.Errorf("environment %q", got)
	}
	if _, err := Image(Bootstrap, []string{strings.Repeat("x", imageMax)}); err == nil {
		t.Error("an image over the limit was made")
	}
}

func TestRefusedNamesTheReason(t *testing.T) {
	said := func(e unix.Errno) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(-int64(e))) }
	if got := Refused(said(unix.ENOEXEC)); !strings.Contains(got, "build it for linux") {
		t.Error(got)
	}
	if got := Refused(said(unix.EACCES)); !strings.Contains(got, "permission denied") {
		t.Error(got)
	}
	if got := Refused(nil); got == "" {
		t.Error("no words")
	}
}
