package resume

import (
	"net/netip"

	"github.com/fxamacker/cbor/v2"

	"starling"
)

// A Token names one flow between its host and its gateways. Nobody else knows it.
type Token [16]byte

// The sizes of what goes between two gateways of one machine.
const (
	MessageMax = 4 << 10  // bytes of one message
	PieceMax   = 32 << 10 // bytes of one piece of what a flow had under way
)

// A Question is what a gateway asks another of the same machine. With Token zero it asks whether anybody is there; otherwise for the flow,
// which its host wants to go on with. Fields are only ever added.
type Question struct {
	Token Token           `cbor:"1,keyasint"`
	Host  starling.NodeID `cbor:"2,keyasint"` // whose certificate the one who asks saw
	Sent  uint64          `cbor:"3,keyasint"` // bytes that the host has sent in all
}

// An Offer answers a Question: nothing has been done yet, and nothing is when the other does not say Wanted.
type Offer struct {
	Here    bool                `cbor:"1,keyasint"` // the flow, or for an empty question the gateway
	Network starling.NetworkRef `cbor:"2,keyasint"` // of the flow
}

// Wanted answers an Offer, and then says that the Flow and all that follows it has come.
type Wanted struct {
	Wanted bool `cbor:"1,keyasint"`
}

// A Flow is what goes with the socket, before the pieces: first what was not sent, then what was not written.
type Flow struct {
	Function  starling.FunctionRef `cbor:"1,keyasint"`
	Network   starling.NetworkName `cbor:"2,keyasint"`
	Version   starling.VersionID   `cbor:"3,keyasint"`
	Instance  starling.InstanceID  `cbor:"4,keyasint"`
	To        netip.AddrPort       `cbor:"5,keyasint"`
	Began     int64                `cbor:"6,keyasint"` // Unix milliseconds
	Sent      uint64               `cbor:"7,keyasint"` // bytes to the host in all
	Taken     uint64               `cbor:"8,keyasint"` // bytes from the host in all
	Unsent    int                  `cbor:"9,keyasint"` // bytes that follow
	Unwritten int                  `cbor:"10,keyasint"`
}

// Check reports what no gateway would say. The error is Invalid.
func (f Flow) Check() error {
	if f.Unsent < 0 || f.Unwritten < 0 || f.Unsent > WaitMax || f.Unwritten > WaitMax || !f.To.IsValid() {
		return starling.Errorf(starling.Invalid, "resume flow", "%d and %d bytes follow, to %s", f.Unsent, f.Unwritten, f.To)
	}
	return nil
}

// Encode returns a message: a Question, an Offer or a Flow.
func Encode(message any) ([]byte, error) { return cbor.Marshal(message) }

// Decode reads one. Fields of a later release are passed over.
func Decode(raw []byte, message any) error {
	if err := cbor.Unmarshal(raw, message); err != nil {
		return starling.Errorf(starling.Invalid, "read message of a gateway", "%w", err)
	}
	return nil
}
