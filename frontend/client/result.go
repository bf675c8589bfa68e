package client

import (
	"encoding/json"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// A Call is one invocation as a client asks for it.
type Call struct {
	Function    starling.FunctionName
	Version     starling.VersionNumber
	ContentType string             // of Payload; JSON when empty
	Payload     []byte             // at most starling.PayloadMax
	Request     starling.RequestID // zero lets the frontend draw one
	Tail        bool               // bring the end of the call's output
}

// A Result is the end of a call that reached the function.
type Result struct {
	Request     starling.RequestID
	Version     string // number that ran, or "latest"
	Status      starling.Status
	ErrorType   string // for a failed function
	ContentType string
	Payload     []byte // the answer, or the error document of a failed function
	LogTail     []byte
	Timing      map[string]time.Duration // queue, place, start, init, run, as far as they happened
}

// Err returns nil for a function that answered and a Failed error with its error type otherwise.
func (r *Result) Err() error {
	if r.Status == starling.Succeeded {
		return nil
	}
	var doc protocol.FunctionError
	if json.Unmarshal(r.Payload, &doc) != nil || doc.Message == "" {
		doc.Message = "the function failed; its log says why"
	}
	return starling.Errorf(starling.Failed, "invoke function", "%s: %s", r.ErrorType, doc.Message).With(r.ErrorType)
}
