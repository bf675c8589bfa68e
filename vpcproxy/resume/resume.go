// Package resume is the account that both ends of a flow keep of its bytes, so that the flow can go on at another gateway with none lost
// and none doubled, and what two gateways of one machine say to each other about it. It is pure.
package resume

import "starling"

// BehindMax bounds, in bytes, what may be under way to one end when a flow moves: a stream's window, and what its buffers hold.
const BehindMax = 2 << 20

// WaitMax bounds, in bytes, what may wait at one end for a reader: a flow that nobody reads gains up to a window with each move.
const WaitMax = 4 * BehindMax

// An Account is what one end of a flow knows of its bytes. That end has a connection, which stays as it is when the flow moves, and a stream
// of the tunnel, which is replaced. The zero Account is that of a new flow. Its two directions, Read and Sent of one, Took of the other, are
// for one goroutine each; the rest is for when both stand still.
type Account struct {
	sent, taken       uint64
	unsent, unwritten []byte
}

// Restore returns the account of a flow that comes from another process, with what this had not sent and not written.
func Restore(sent, taken uint64, unsent, unwritten []byte) Account {
	return Account{sent: sent, taken: taken, unsent: unsent, unwritten: unwritten}
}

// Read notes that p was read from the connection and that its first n bytes were given to the stream. It copies what was not: that goes
// first on the next stream.
func (a *Account) Read(p []byte, n int) {
	a.sent += uint64(n)
	if n < len(p) {
		a.unsent = append([]byte(nil), p[n:]...)
	}
}

// Took notes that p came from the stream and that its first n bytes were written to the connection. It copies what was not: that is written
// first.
func (a *Account) Took(p []byte, n int) {
	a.taken += uint64(len(p))
	if n < len(p) {
		a.unwritten = append(a.unwritten, p[n:]...)
	}
}

// Sent returns how many bytes were given to streams since the flow began.
func (a *Account) Sent() uint64 { return a.sent }

// Taken returns how many bytes came from streams since the flow began.
func (a *Account) Taken() uint64 { return a.taken }

// Unsent returns what was read from the connection and given to no stream, for sending: it is handed out once.
func (a *Account) Unsent() []byte {
	p := a.unsent
	a.unsent = nil
	return p
}

// Unwritten returns what came from streams and was not written to the connection, for writing: it is handed out once. What of it was not
// written goes back by Return.
func (a *Account) Unwritten() []byte {
	p := a.unwritten
	a.unwritten = nil
	return p
}

// Return takes back what of Unwritten was not written.
func (a *Account) Return(p []byte) {
	if len(p) > 0 {
		a.unwritten = p
	}
}

// Behind returns how many bytes are still to come from the old stream when the other end says that it has sent so many in all. The
// error is Invalid when the two cannot be of one flow, or when more is under way than fits: then the connection is reset.
func (a *Account) Behind(theirs uint64) (int, error) {
	const op = "resume flow"
	switch {
	case theirs < a.taken:
		return 0, starling.Errorf(starling.Invalid, op, "%d bytes came of %d that were sent", a.taken, theirs)
	case theirs-a.taken > BehindMax || uint64(len(a.unwritten))+theirs-a.taken > WaitMax:
		return 0, starling.Errorf(starling.Invalid, op, "%d bytes are under way, and %d wait", theirs-a.taken, len(a.unwritten))
	}
	return int(theirs - a.taken), nil
}
