package starling

import (
	"fmt"
	"regexp"
	"strconv"
)

// An AccountID names a tenant. It is chosen at creation, never reused, and part of every key of every map.
type AccountID string

// A FunctionName names a function inside its account.
type FunctionName string

// A FunctionRef names a function in the cluster.
type FunctionRef struct {
	Account AccountID    `cbor:"1,keyasint" json:"account"`
	Name    FunctionName `cbor:"2,keyasint" json:"name"`
}

// String returns "account/name".
func (r FunctionRef) String() string { return string(r.Account) + "/" + string(r.Name) }

// A VersionID names one immutable snapshot of a function. It is the Raft index of the command that
// made it, so it is unique in the cluster and never reused. 0 names nothing.
type VersionID uint64

// A VersionNumber counts the published versions of one function from 1. Latest (0) is the snapshot
// that create and update replace.
type VersionNumber uint32

// Latest is the version number of the newest unpublished snapshot.
const Latest VersionNumber = 0

// String returns "latest" or the number.
func (n VersionNumber) String() string {
	if n == Latest {
		return "latest"
	}
	return strconv.FormatUint(uint64(n), 10)
}

// ParseVersionNumber accepts "", "latest", "$LATEST" and a positive decimal number.
func ParseVersionNumber(s string) (VersionNumber, error) {
	if s == "" || s == "latest" || s == "$LATEST" {
		return Latest, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return 0, Errorf(Invalid, "parse version", "%q is no version: use \"latest\" or a number from 1", s)
	}
	return VersionNumber(n), nil
}

// A NodeID names one node of the cluster for ever: a node that lost its disk comes back under a new one.
type NodeID uint64

// String returns the form people see, "n7".
func (n NodeID) String() string { return "n" + strconv.FormatUint(uint64(n), 10) }

// A PartitionID names one partition of the function space; it is never reused.
type PartitionID uint64

// String returns the form people see, "p7".
func (p PartitionID) String() string { return "p" + strconv.FormatUint(uint64(p), 10) }

// An Epoch counts the lives of one partition. Each move, split, merge or take-over raises it, and a
// message that carries an older epoch is refused.
type Epoch uint64

// An InstanceID names one instance. The partition that starts it draws it: partition id, epoch and a
// counter make it unique in the cluster.
type InstanceID struct {
	Partition PartitionID `cbor:"1,keyasint" json:"partition"`
	Epoch     Epoch       `cbor:"2,keyasint" json:"epoch"`
	Seq       uint64      `cbor:"3,keyasint" json:"seq"`
}

// String returns "p1-e2-3".
func (i InstanceID) String() string {
	return fmt.Sprintf("p%d-e%d-%d", uint64(i.Partition), uint64(i.Epoch), i.Seq)
}

// A LeaseID names one lease inside the partition and epoch that granted it.
type LeaseID uint64

// A RequestID names one invocation. It is printed as a UUID.
type RequestID [16]byte

const hexDigits = "0123456789abcdef"

// Append appends the 36-character UUID form of id to dst without allocating.
func (id RequestID) Append(dst []byte) []byte {
	for i, b := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = append(dst, hexDigits[b>>4], hexDigits[b&15])
	}
	return dst
}

// String returns the 36-character UUID form.
func (id RequestID) String() string { return string(id.Append(make([]byte, 0, 36))) }

// ParseRequestID reads the 36-character UUID form; ok is false for anything else.
func ParseRequestID[T string | []byte](s T) (id RequestID, ok bool) {
	if len(s) != 36 {
		return id, false
	}
	j := 0
	for i := range id {
		if j == 8 || j == 13 || j == 18 || j == 23 {
			if s[j] != '-' {
				return RequestID{}, false
			}
			j++
		}
		hi, lo := unhex(s[j]), unhex(s[j+1])
		if hi > 15 || lo > 15 {
			return RequestID{}, false
		}
		id[i] = hi<<4 | lo
		j += 2
	}
	return id, true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|32 >= 'a' && c|32 <= 'f':
		return c | 32 - 'a' + 10
	}
	return 255
}

// A Zone is the label of a failure domain; empty means one common zone.
type Zone string

var (
	accountPattern  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	functionPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$`)
)

// Validate reports whether a is a legal account name: 1–32 of a-z, 0-9 and "-", a letter first.
func (a AccountID) Validate() error {
	if !accountPattern.MatchString(string(a)) {
		return Errorf(Invalid, "check account", "%q is no account name: use 1-32 of a-z, 0-9 and \"-\", a letter first", string(a))
	}
	return nil
}

// Validate reports whether n is a legal function name: 1–64 of letters, digits, "_" and "-", no "-" first.
func (n FunctionName) Validate() error {
	if !functionPattern.MatchString(string(n)) {
		return Errorf(Invalid, "check function", "%q is no function name: use 1-64 of letters, digits, \"_\" and \"-\", not \"-\" first", string(n))
	}
	return nil
}
