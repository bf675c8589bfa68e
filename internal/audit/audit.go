// Package audit writes down what one node permits itself, for checkers of tests: when its partitions may grant, what
// they grant, and which leases its host accepts. It is off unless a node is started with a file for it.
//
// Every record carries an instant of CLOCK_MONOTONIC, which all processes of a machine share, so that the records of
// several nodes can be laid beside each other. A record is in the file before what it tells can have an effect on
// others, so a node that is killed leaves no effect without its record.
package audit

import (
	"bufio"
	"encoding/json"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"starling"
)

// A Kind names what a record tells; the words are those of the file.
type Kind string

const (
	// May: the partition of this epoch may grant leases for the keys of Range from At until before Until. A later one
	// prolongs it.
	May Kind = "may"

	// Stop: it may not any more, from At on.
	Stop Kind = "stop"

	// Grant: a lease was granted at At.
	Grant Kind = "grant"

	// Fence: from At on this host honours leases for Range from before the epoch Since only while they are in use.
	Fence Kind = "fence"

	// Enter: this host was shown a lease at At and accepted it for one call.
	Enter Kind = "enter"

	// Refuse: the call before could not begin, because the instance had no free slot. Its Leave is this record.
	Refuse Kind = "refuse"

	// Leave: that call had ended, with its slot given back, at At.
	Leave Kind = "leave"
)

// A Record is one line. Which fields count depends on its kind.
type Record struct {
	Kind      Kind                 `json:"kind"`
	At        int64                `json:"at"` // nanoseconds of CLOCK_MONOTONIC at which it was decided
	Node      starling.NodeID      `json:"node"`
	Partition starling.PartitionID `json:"partition"`
	Epoch     starling.Epoch       `json:"epoch"`
	Range     starling.Range       `json:"range,omitzero"`    // of May, Fence
	Until     int64                `json:"until,omitempty"`   // of May, as At
	Since     starling.Epoch       `json:"since,omitempty"`   // of Fence
	Lease     starling.LeaseID     `json:"lease,omitempty"`   // of Grant, Enter, Leave, and so are:
	Instance  starling.InstanceID  `json:"instance,omitzero"` // the instance that the lease is for
	Key       starling.Key64       `json:"key,omitempty"`     // of the instance
	Slots     int                  `json:"slots,omitempty"`   // of Enter: calls the instance takes at once
}

// Leased returns a record of a lease, decided at the instant at.
func (l *Log) Leased(k Kind, at time.Time, lease *starling.Lease, slots int) Record {
	return Record{Kind: k, At: l.Instant(at), Partition: lease.Partition, Epoch: lease.Epoch, Lease: lease.ID, Instance: lease.Instance, Key: lease.Key, Slots: slots}
}

// A Log is one node's file. A nil Log is one that is off: nothing may be called on it. It is safe for concurrent use.
type Log struct {
	node starling.NodeID
	base time.Time // carries the monotonic clock
	zero int64     // CLOCK_MONOTONIC at base

	mu   sync.Mutex // guards file; a leaf
	file *os.File
	err  error // the first failure: what comes after it is not written
}

// Open appends to the file at path, which it makes when it is not there. Close the Log.
func Open(path string, node starling.NodeID) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "open audit", "--audit %s: %w", path, err)
	}
	l := &Log{node: node, file: f}
	l.base, l.zero = meet()
	return l, nil
}

// meet reads Go's clock and the kernel's at one instant. Go's monotonic readings are CLOCK_MONOTONIC since the start of the
// process; the distance is constant, and the best of a few pairs is known to a fraction of a microsecond.
func meet() (base time.Time, zero int64) {
	best := int64(math.MaxInt64)
	for range 100 {
		before := monotonic()
		now := time.Now()
		after := monotonic()
		if after-before < best {
			best, base, zero = after-before, now, before+(after-before)/2
		}
	}
	return base, zero
}

func monotonic() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // the clock exists on every Linux
	}
	return ts.Nano()
}

// Now returns the instant as records count it.
func Now() int64 { return monotonic() }

// Instant returns t, which must come from time.Now of this process, as records count it.
func (l *Log) Instant(t time.Time) int64 { return l.zero + int64(t.Sub(l.base)) }

// Write appends r, with this node as its Node. After the first failure it writes nothing; Close tells.
func (l *Log) Write(r Record) {
	r.Node = l.node
	line, err := json.Marshal(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	if l.err == nil {
		l.err = err
	}
}

// Close closes the file and returns the first error of all writes.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.file.Close(); l.err == nil {
		l.err = err
	}
	return l.err
}

// Read returns the records of a file in their order. A last line that was cut off by the writer's death is left out.
func Read(r io.Reader) ([]Record, error) {
	var out []Record
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return out, starling.Errorf(starling.Internal, "read audit", "line %d: %w", len(out)+1, err)
		}
		out = append(out, rec)
	}
}
