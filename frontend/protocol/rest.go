// Package protocol is what a client and a frontend say to each other: the JSON bodies and header names of
// the HTTP interface and the frames of the QUIC one. Both sides import it, so neither can drift.
package protocol

import (
	"encoding/json"
	"time"

	"starling"
)

// The headers of an invocation. Answers to a call that reached a function carry all but the last two always.
const (
	HeaderRequestID     = "X-Request-Id"              // in: a UUID to use; out: the request id
	HeaderVersion       = "X-Starling-Version"        // out: the version number that ran, or "latest"
	HeaderFunctionError = "X-Starling-Function-Error" // out: Handled or Unhandled, when the function failed
	HeaderErrorType     = "X-Starling-Error-Type"     // out: the function's error type; a trailer when streamed
	HeaderLogTail       = "X-Starling-Log-Tail"       // in: 1 asks for the end of the call's output
	HeaderLogResult     = "X-Starling-Log-Result"     // out: that output, base64; a trailer when streamed
	HeaderClientContext = "X-Starling-Client-Context" // in: base64 JSON, passed to the function
	HeaderAccount       = "X-Starling-Account"        // in, admin only: act for this account
	HeaderServerTiming  = "Server-Timing"             // out: phases of the call, in milliseconds
	HeaderCodeHash      = "X-Starling-Code-Sha256"    // in, optional: refuse an upload with another hash
)

// An Identity says whom the presented key stands for.
type Identity struct {
	Account starling.AccountID `json:"account" doc:"account the request acts for"`
	Role    starling.KeyRole   `json:"role" doc:"admin or user"`
	KeyID   string             `json:"keyId" doc:"name of the key in lists"`
	Cluster string             `json:"cluster" doc:"name of the cluster"`
}

// An AccountSpec asks for a new account. A ConcurrencyMax of 0 means starling.ConcurrencyMax.
type AccountSpec struct {
	ID             starling.AccountID `json:"id" doc:"1-32 of a-z, 0-9 and -, a letter first"`
	ConcurrencyMax int                `json:"concurrencyMax,omitempty" minimum:"0" doc:"calls in flight at once; 0 means the default"`
	Isolation      starling.Isolation `json:"isolation,omitempty" doc:"of functions that do not say; empty means the cluster's"`
	IsolationLeast starling.Isolation `json:"isolationLeast,omitempty" doc:"no function may have less"`
}

// A NetworkSpec asks for a new network. A limit of 0 means the default.
type NetworkSpec struct {
	Name    starling.NetworkName `json:"name" doc:"1-63 of a-z, 0-9 and -"`
	CIDRs   []string             `json:"cidrs" doc:"addresses that may be reached; private ones only by ranges of private addresses"`
	DNS     []string             `json:"dns,omitempty" doc:"name servers, within cidrs"`
	Egress  string               `json:"egress,omitempty" doc:"fixed source address"`
	Allow   []string             `json:"allow,omitempty" doc:"when not empty only these of cidrs, as 10.0.0.0/24 or 10.0.0.5:5432"`
	Deny    []string             `json:"deny,omitempty" doc:"never these; stronger than allow"`
	ConnMax int                  `json:"connMax,omitempty" minimum:"0" doc:"flows at once"`
	RateMax int                  `json:"rateMax,omitempty" minimum:"0" doc:"flows begun in a second"`
}

// A NetworkTarget is where a connection would go.
type NetworkTarget struct {
	Target string `json:"target" doc:"address or name, and a port, as db.internal:5432"`
}

// A NetworkTest is what a connection from a network met.
type NetworkTest struct {
	Network   starling.NetworkName `json:"network"`
	Target    string               `json:"target"`
	Reached   bool                 `json:"reached"`
	Outcome   string               `json:"outcome" doc:"open, or why a function would not be connected: denied, refused, unreachable, timed out, limit reached, no uplink"`
	Reason    string               `json:"reason,omitempty" doc:"sentence for people; none when it was reached"`
	Addresses []string             `json:"addresses,omitempty" doc:"what the name is in the network; the first was tried"`
	ConnectMS float64              `json:"connectMS,omitempty" doc:"milliseconds that connecting took at the gateway, also when it failed; none when it was not tried"`
	Gateway   string               `json:"gateway" doc:"node that was asked"`
}

// A KeySpec asks for a new key.
type KeySpec struct {
	Role starling.KeyRole `json:"role,omitempty" doc:"admin or user; user when empty"`
}

// A NewKey is a key just made. Secret is shown here once and stored nowhere.
type NewKey struct {
	starling.Key
	Secret string `json:"secret" doc:"the bearer key; it is shown once"`
}

// Code names an uploaded package.
type Code struct {
	Hash starling.CodeHash `json:"hash" doc:"lower-case hex SHA-256 of the zip"`
	Size int64             `json:"size" doc:"bytes of the zip"`
}

// A LayerSpec publishes a version of a layer.
type LayerSpec struct {
	Code        starling.CodeHash  `json:"code" doc:"hash that the upload answered"`
	Runtimes    []starling.Runtime `json:"runtimes,omitempty" doc:"of functions that may use it; empty for all"`
	Description string             `json:"description,omitempty" doc:"a line for people"`
}

// A FunctionSpec creates or updates a function. On update an absent Config or Code keeps what is there.
// Expect, when not 0, refuses the update with Conflict unless it is the latest snapshot's id.
type FunctionSpec struct {
	Name   starling.FunctionName `json:"name,omitempty" doc:"on create: 1-64 of letters, digits, _ and -"`
	Config *starling.Config      `json:"config,omitempty" doc:"how the function runs"`
	Code   starling.CodeHash     `json:"code,omitempty" doc:"hash that the upload answered"`
	Expect starling.VersionID    `json:"expect,omitempty" doc:"id of the snapshot this update is based on"`
}

// A Function is a function with its latest snapshot and its published versions, newest last.
type Function struct {
	starling.Function
	Snapshot starling.Version   `json:"snapshot"`
	Numbered []starling.Version `json:"numbered"`
}

// A Page is one part of a list. Next, when not empty, is the "after" of the next part.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// A Node is a member with its state: "alive" or "down"; with ", draining" after it while it is to be empty.
type Node struct {
	starling.Node
	Roles string    `json:"roles"` // shadows the bit set: people read words
	State string    `json:"state"`
	Level int       `json:"level,omitempty"` // of its release
	Load  *NodeLoad `json:"load,omitempty"`  // absent when the leading manager did not answer
}

// A NodeLoad is what a node said last of itself.
type NodeLoad struct {
	Partitions uint32 `json:"partitions"` // owned
	Acquires   uint32 `json:"acquires"`   // decided in the last second
	Instances  uint32 `json:"instances"`
	FreeMiB    uint32 `json:"freeMiB"` // memory that new instances may claim
	TotalMiB   uint32 `json:"totalMiB"`
	Isolations string `json:"isolations,omitempty"` // that a host can give, such as "process,gvisor"
	Flows      uint32 `json:"flows,omitempty"`      // of functions, that a gateway carries
}

// An Isolation is what the operator says of isolation, and what counts.
type Isolation struct {
	starling.IsolationPolicy
	SharedKernel bool `json:"sharedKernel,omitempty" doc:"functions of several accounts may share the kernel of a host (isolation process)"`
}

// A Partition is a range of the key space and who decides in it.
type Partition struct {
	ID    starling.PartitionID `json:"id"`
	Lo    string               `json:"lo"` // first key, 16 hex digits
	Hi    string               `json:"hi"` // first key beyond, 16 hex digits; zeros for 2^64
	Epoch starling.Epoch       `json:"epoch"`
	Owner starling.NodeID      `json:"owner"` // 0 while nobody owns it
	State string               `json:"state"` // "owned", "owner-down" or "unowned"
}

// A LogQuery selects lines of one function. Zero fields match all.
type LogQuery struct {
	Version starling.VersionNumber // unless All is set
	All     bool                   // lines of every version
	Request starling.RequestID     // lines of one call
	Since   time.Time
	Limit   int  // newest lines to begin with, 1-10000; 0 means 100
	Follow  bool // keep going as lines come
}

// A LogRecord is one line of output.
type LogRecord struct {
	Time     time.Time             `json:"time"`
	Function starling.FunctionName `json:"function"`
	Version  string                `json:"version"`
	Request  string                `json:"requestId,omitempty"`
	Stream   string                `json:"stream"` // stdout, stderr or platform
	Line     string                `json:"line"`
}

// An ErrorBody is the JSON of every refusal.
type ErrorBody struct {
	Kind      string `json:"kind" doc:"word for programs: invalid, not-found, overloaded, ..."`
	Reason    string `json:"reason,omitempty" doc:"narrower word for programs"`
	Message   string `json:"message" doc:"sentence for people"`
	RequestID string `json:"requestId,omitempty" doc:"names the request in the logs"`
}

// A FunctionError is the document that a failed function answers with.
type FunctionError struct {
	Message string          `json:"errorMessage"`
	Type    string          `json:"errorType"`
	Trace   json.RawMessage `json:"stackTrace,omitempty"`
}
