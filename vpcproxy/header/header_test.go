package header

import (
	"bytes"
	"io"
	"net/netip"
	"testing"

	"starling"
	"starling/vpcproxy/resume"
)

func samples() []Header {
	return []Header{
		{Kind: TCP, Grant: []byte("grant"), To: netip.MustParseAddrPort("10.0.0.5:5432")},
		{Kind: UDP, Grant: bytes.Repeat([]byte{1}, 512), To: netip.MustParseAddrPort("[fd00::5]:53")},
		{Kind: TCP, Grant: []byte{}, To: netip.MustParseAddrPort("[::ffff:10.0.0.5]:80")},
		{Kind: DNS, Grant: []byte("g")},
		{Version: Movable, Kind: TCP, Grant: []byte("g"), To: netip.MustParseAddrPort("10.0.0.5:5432")},
		{Version: Movable, Kind: Watch, Grant: []byte{}},
		{Version: Movable, Kind: Resume, Grant: []byte{}, From: 1 << 40, Token: resume.Token{1, 15: 9}, Sent: 1 << 50},
	}
}

func TestHeaderComesBackAndNothingMoreIsRead(t *testing.T) {
	for _, h := range samples() {
		r := bytes.NewReader(append(Append(nil, h), "rest"...))
		got, err := Read(r)
		if err != nil || got.Version != max(h.Version, Fixed) || got.Kind != h.Kind || !bytes.Equal(got.Grant, h.Grant) || got.To != h.To || got.From != h.From || got.Token != h.Token || got.Sent != h.Sent {
			t.Errorf("%+v, %v; want %+v", got, err, h)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "rest" {
			t.Errorf("%s: what follows became %q", h.Kind, rest)
		}
	}
}

func TestHeaderIsRefused(t *testing.T) {
	good := Append(nil, samples()[0])
	for name, b := range map[string][]byte{
		"another version":        append([]byte{3}, good[1:]...),
		"version 0":              append([]byte{0}, good[1:]...),
		"a watch of version 1":   {1, 5, 0, 0, 0, 0, 0},
		"a watch of an address":  {2, 5, 0, 0, 4, 1, 2, 3, 4, 0, 80},
		"a kind past the last":   {2, 7, 0, 0, 0, 0, 0},
		"kind 0":                 {1, 0, 0, 0, 4, 1, 2, 3, 4, 0, 80},
		"an unknown kind":        {1, 9, 0, 0, 4, 1, 2, 3, 4, 0, 80},
		"a grant of 513 bytes":   {1, 1, 2, 1},
		"an address of 5 bytes":  {1, 1, 0, 0, 5, 1, 2, 3, 4, 5, 0, 80},
		"TCP without an address": {1, 1, 0, 0, 0, 0, 80},
		"DNS with an address":    {1, 3, 0, 0, 4, 1, 2, 3, 4, 0, 53},
		"DNS with a port":        {1, 3, 0, 0, 0, 0, 53},
	} {
		if _, err := Read(bytes.NewReader(b)); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range len(good) {
		if _, err := Read(bytes.NewReader(good[:n])); err == nil {
			t.Errorf("%d of %d bytes are taken", n, len(good))
		}
	}
}

func TestDatagramsKeepTheirEnds(t *testing.T) {
	var wire []byte
	sent := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte{9}, DatagramMax)}
	for _, d := range sent {
		wire = AppendDatagram(wire, d)
	}
	r, buf := bytes.NewReader(wire), make([]byte, DatagramMax)
	for i, want := range sent {
		if got, err := ReadDatagram(r, buf); err != nil || !bytes.Equal(got, want) {
			t.Errorf("datagram %d: %d bytes, %v", i, len(got), err)
		}
	}
	if _, err := ReadDatagram(r, buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	for _, h := range samples() {
		f.Add(Append(nil, h))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		h, err := Read(r)
		if err != nil {
			return
		}
		if used := raw[:len(raw)-r.Len()]; !bytes.Equal(Append(nil, h), used) {
			t.Fatalf("%x is read as %+v, which is %x", used, h, Append(nil, h))
		}
		buf := make([]byte, DatagramMax)
		for {
			if _, err := ReadDatagram(r, buf); err != nil {
				return
			}
		}
	})
}
