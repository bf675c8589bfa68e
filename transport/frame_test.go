package transport

import (
	"bytes"
	"testing"

	"starling"
)

func TestFrameOnTheWire(t *testing.T) {
	got := AppendFrame(nil, 3, 0x0102, []byte("ab"), []byte("c"))
	want := []byte{12, 0, 0, 0, 3, 2, 1, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c'}
	if !bytes.Equal(got, want) {
		t.Fatalf("% x\nwant % x", got, want)
	}
}

func TestBadLengthsEndTheStream(t *testing.T) {
	for n, want := range map[uint32]starling.Kind{0: starling.Invalid, 8: starling.Invalid, frameHead + FrameBodyMax + 1: starling.TooLarge, 1 << 31: starling.TooLarge} {
		_, _, err := NextFrame([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 1})
		if err == nil || starling.KindOf(err) != want {
			t.Errorf("length %d: %v, want %v", n, err, want)
		}
	}
}

func FuzzNextFrame(f *testing.F) {
	f.Add(AppendFrame(nil, 1, 2, []byte("body")))
	f.Add(AppendFrame(AppendFrame(nil, 0, 0), 255, 1<<63, bytes.Repeat([]byte("x"), 300)))
	f.Add([]byte{9, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		rest := data
		for {
			fr, n, err := NextFrame(rest)
			if err != nil || n == 0 {
				break
			}
			if n > len(rest) || len(fr.Body) > FrameBodyMax {
				t.Fatalf("a frame of %d bytes out of %d", n, len(rest))
			}
			again = AppendFrame(again, fr.Kind, fr.ID, fr.Body)
			rest = rest[n:]
		}
		if !bytes.HasPrefix(data, again) {
			t.Fatal("what was read does not write the same bytes")
		}
		// The reader, fed in small pieces, must find the same frames.
		var pieces []byte
		readFrames(&byThree{data}, 4, func(batch []Frame) {
			if len(batch) == 0 || len(batch) > 4 {
				t.Fatalf("a batch of %d", len(batch))
			}
			for _, fr := range batch {
				pieces = AppendFrame(pieces, fr.Kind, fr.ID, fr.Body)
			}
		})
		if !bytes.Equal(pieces, again) {
			t.Fatalf("in pieces: %d bytes of frames, whole: %d", len(pieces), len(again))
		}
	})
}
