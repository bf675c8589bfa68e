package partition

import (
	"reflect"
	"testing"

	"starling"
	"starling/cluster/partmap"
)

var anOffer = offer{entry: partmap.Partition{ID: 1, Range: starling.Range{Lo: 2, Hi: 3}, Epoch: 4, Owner: 5, Since: 3}, versions: []starling.VersionID{7, 8}}

func TestOfferComesBackAsItWent(t *testing.T) {
	b := anOffer.encode()
	got, err := decodeOffer(b)
	if err != nil || !reflect.DeepEqual(got, anOffer) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for n := range b {
		if _, err := decodeOffer(b[:n]); starling.KindOf(err) != starling.Invalid {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func FuzzOffer(f *testing.F) {
	f.Add(anOffer.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeOffer(b)
		if err == nil && string(o.encode()) != string(b) {
			t.Fatalf("%x became %+v", b, o)
		}
	})
}
