package starling

import "time"

// An Invocation is one call on its way to an instance.
type Invocation struct {
	ID            RequestID
	Version       VersionID
	Deadline      time.Time // by the clock of this node; crosses the wire as a remaining duration
	Trace         string    // the caller's traceparent, passed through; at most 512 bytes
	ClientContext string    // base64 JSON of the caller, passed through; at most 3,583 bytes
	ContentType   string    // of Payload; at most 256 bytes
	Payload       []byte    // owned by the caller; valid until Invoke returns
	Tail          bool      // return the end of this call's output in the outcome
}

// A Sink takes the answer of one invocation while it is produced. An implementation is used by one
// goroutine at a time. An error from Write means that the caller went away: the call runs on, its
// further bytes are dropped.
type Sink interface {
	// Start is called once before the first Write. A streaming answer must reach the client as it comes.
	Start(contentType string, streaming bool)
	Write(p []byte) (int, error)
}

// A Status says how an invocation ended.
type Status uint8

const (
	Succeeded Status = iota // the function answered
	Handled                 // the function reported an error: the answer is its error document
	Unhandled               // the function failed to answer: exit, timeout, out of memory, bad handler, init error
)

// An Outcome is the end of one invocation that reached an instance. A call that reached none ends in an
// *Error instead.
type Outcome struct {
	Status    Status
	ErrorType string        // for Handled and Unhandled, such as "Sandbox.Timedout" or "ValueError"
	Error     []byte        // for Handled and Unhandled before any byte was written: JSON {"errorMessage","errorType",...}
	Run       time.Duration // time in the function
	Init      time.Duration // time of the instance's initialisation when this call waited for it, else 0
	MemoryMax int64         // bytes, peak of the instance so far; 0 when unknown
	LogTail   []byte        // last LogTailMax bytes of the call's output when Tail was set
}

// Error types of outcomes and init failures that the platform itself gives.
const (
	ErrTimedOut       = "Sandbox.Timedout"
	ErrExit           = "Runtime.ExitError"
	ErrOutOfMemory    = "Runtime.OutOfMemory"
	ErrHandler        = "Runtime.HandlerNotFound"
	ErrImport         = "Runtime.ImportModuleError"
	ErrSyntax         = "Runtime.UserCodeSyntaxError"
	ErrEntrypoint     = "Runtime.InvalidEntrypoint"
	ErrInit           = "Runtime.InitError"
	ErrInitTimeout    = "Runtime.InitTimeout"
	ErrResponseSize   = "Function.ResponseSizeTooLarge"
	ErrProtocol       = "Runtime.ProtocolError"
	ErrMarshal        = "Runtime.MarshalError"
	ErrSandboxFailure = "Sandbox.Failure"
	ErrCodeLost       = "Sandbox.CodeUnreadable" // a part of the package cannot be had from anywhere
)

// Phases are the parts of a cold start; all zero for a warm call.
type Phases struct {
	Queue time.Duration // waiting in the partition
	Place time.Duration // from the decision to start until a host said yes
	Start time.Duration // taking a sandbox and attaching the code
	Init  time.Duration // running the function's own initialisation
}

// Cold reports whether an instance was started for this call.
func (p Phases) Cold() bool { return p.Start != 0 || p.Init != 0 }
