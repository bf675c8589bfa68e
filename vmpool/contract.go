package vmpool

import (
	"context"

	"starling"
)

// A Contract is how calls reach the code in one sandbox: framed for the shipped runtimes, the Lambda
// Runtime API for provided. vmpool/framed and vmpool/runtimeapi implement it.
type Contract interface {
	// Init waits until the function's own initialisation ended. A failure is a Failed error whose reason is
	// the error type (starling.ErrHandler and so on).
	Init(ctx context.Context) error
	// Invoke hands one call to the code and writes the answer to sink as it comes. It returns at the latest
	// shortly after inv.Deadline, then with ErrTimedOut; the instance is not usable after an Unhandled outcome.
	// At most the instance's slots are in use at once; beyond that Invoke waits for the code to ask for more. An
	// outcome of type runtimeapi.NotStarted says that the code never saw the call.
	Invoke(inv *starling.Invocation, sink starling.Sink) starling.Outcome
	// Err says why no further call may be made: the code broke its protocol or is gone. It is asked after each
	// Invoke and is nil while the instance is usable.
	Err() error
	// Close ends the contract; calls in flight end with ErrExit.
	Close() error
}
