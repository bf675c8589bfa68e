package starling

import (
	"errors"
	"fmt"
	"time"
)

// A Kind says what a caller can do about an error. It decides the HTTP status, the exit code of the
// command line and whether a retry can help. docs/decisions/0002-error-kinds.md argues for each.
type Kind uint8

const (
	Internal    Kind = iota // a bug or a broken machine; the caller learns nothing more
	Invalid                 // the caller's mistake; retrying cannot help
	NotFound                // no such account, function, version or instance
	Overloaded              // a limit was reached; retry after a pause
	Moved                   // the partition or lease lives elsewhere; refresh the map and retry
	Denied                  // no key, a wrong key or a key without the right
	Conflict                // it exists already, or changed meanwhile
	TooLarge                // a payload, package or frame over its limit
	Timeout                 // the deadline passed
	Failed                  // the function itself failed; Reason is its error type
	Unavailable             // no node can serve this now; retry after a pause
)

var kindNames = [...]string{"internal", "invalid", "not-found", "overloaded", "moved", "denied", "conflict",
	"too-large", "timeout", "failed", "unavailable"}

// String returns the word people see and the wire carries in JSON.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ParseKind is the reverse of String; an unknown word is Internal.
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// An Error is a refusal with a kind for programs and a sentence for people.
type Error struct {
	Kind    Kind
	Op      string        // what was attempted, a verb and a noun: "deploy function"
	Reason  string        // a stable word for programs, such as "ConcurrencyLimit" or "Runtime.ExitError"; may be empty
	Message string        // a sentence for people that says what to do
	After   time.Duration // a retry before this is pointless; 0 when unknown
	Err     error         // the cause; nil when a boundary hides it
}

// Error returns "op: message"; the message already tells the cause.
func (e *Error) Error() string {
	if e.Op == "" {
		return e.Message
	}
	return e.Op + ": " + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an *Error whose message is formatted; the operand of a %w verb becomes its cause.
func Errorf(k Kind, op, format string, args ...any) *Error {
	w := fmt.Errorf(format, args...)
	return &Error{Kind: k, Op: op, Message: w.Error(), Err: errors.Unwrap(w)}
}

// With returns e with a stable reason word.
func (e *Error) With(reason string) *Error { e.Reason = reason; return e }

// RetryAfter returns e with the time before which a retry is pointless.
func (e *Error) RetryAfter(d time.Duration) *Error { e.After = d; return e }

// KindOf returns the kind of the first *Error in err's chain; any other error is Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// ReasonOf returns the reason of the first *Error in err's chain, or "".
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
