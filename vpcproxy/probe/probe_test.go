package probe

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"starling"
)

func FuzzRead(f *testing.F) {
	good := Question{Network: starling.NetworkRef{Account: "acme", Name: "db"}, Host: "db.internal", Port: 5432}
	raw, err := cbor.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	if q, err := Read(bytes.NewReader(raw)); err != nil || q != good {
		f.Fatalf("%+v, %v", q, err)
	}
	f.Add(raw)
	f.Add(bytes.Repeat([]byte{0xff}, sizeMax+1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if q, err := Read(bytes.NewReader(raw)); err == nil && q.Validate() != nil {
			t.Fatalf("%+v is taken", q)
		}
	})
}
