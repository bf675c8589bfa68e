package actors

import (
	"bytes"
	"testing"

	"starling/transport"
)

// FuzzParcel: no sequence of parts panics, holds more than the limit, or makes up bytes.
func FuzzParcel(f *testing.F) {
	head := []byte{3, 7, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}
	f.Add(append(bytes.Clone(head), 1, 2), append(bytes.Clone(head), 3, 4), uint64(1), uint64(1))
	f.Add(append(bytes.Clone(head), 1, 2), append(bytes.Clone(head), 3, 4), uint64(1), uint64(2))
	f.Add(head[:5], []byte{}, uint64(0), uint64(0))
	f.Add(append(bytes.Clone(head), 1, 2, 3, 4, 5), head, uint64(9), uint64(9))
	f.Fuzz(func(t *testing.T, a, b []byte, ida, idb uint64) {
		var p parcel
		whole := append(bytes.Clone(cut(a)), cut(b)...)
		for _, fr := range []transport.Frame{{ID: ida, Body: a}, {ID: idb, Body: b}} {
			_, _, body, done := p.take(&fr)
			if done && !bytes.Contains(whole, body) {
				t.Fatalf("%x is no part of %x", body, whole)
			}
			if len(p.body) > parcelMax {
				t.Fatalf("%d bytes are kept", len(p.body))
			}
		}
	})
}

func cut(b []byte) []byte { return b[min(len(b), parcelHead):] }
