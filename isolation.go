package starling

import (
	"slices"
	"strings"
)

// An Isolation names what stands between a function and the machine it runs on. Empty means the weakest, process, in
// everything that is stored; in a wish it means what the account, then the cluster, says.
type Isolation string

const (
	IsolationProcess Isolation = "process" // namespaces and filters; the kernel is the host's
	IsolationGVisor  Isolation = "gvisor"  // a kernel of its own in user space
	IsolationKata    Isolation = "kata"    // a virtual machine of its own
)

// IsolationKinds lists them, the weakest first.
var IsolationKinds = []Isolation{IsolationProcess, IsolationGVisor, IsolationKata}

// IsolationCount is how many there are.
const IsolationCount = 3

// Or returns i, or other when i says nothing.
func (i Isolation) Or(other Isolation) Isolation {
	if i == "" {
		return other
	}
	return i
}

// Validate reports whether i is one of IsolationKinds or empty.
func (i Isolation) Validate() error {
	if i == "" || slices.Contains(IsolationKinds, i) {
		return nil
	}
	return Errorf(Invalid, "check isolation", "%q is no isolation: use process, gvisor or kata", string(i)).With("UnknownIsolation")
}

// Rank is i's place in IsolationKinds; empty is process's, 0.
func (i Isolation) Rank() int { return max(0, slices.Index(IsolationKinds, i)) }

// WeakerThan reports whether i isolates less than other. Empty counts as process.
func (i Isolation) WeakerThan(other Isolation) bool { return i.Rank() < other.Rank() }

// Isolations is a set of them, such as those a host can give.
type Isolations uint8

// OnlyProcess is what a host of a release before the choice gives.
const OnlyProcess Isolations = 1

// SetOf returns the set of list.
func SetOf(list ...Isolation) (s Isolations) {
	for _, i := range list {
		s |= 1 << i.Rank()
	}
	return s
}

// Has reports whether i, empty meaning process, is in s.
func (s Isolations) Has(i Isolation) bool { return s&(1<<i.Rank()) != 0 }

// List returns what is in s, the weakest first.
func (s Isolations) List() (list []Isolation) {
	for _, i := range IsolationKinds {
		if s.Has(i) {
			list = append(list, i)
		}
	}
	return list
}

// String returns "process,gvisor", or "none".
func (s Isolations) String() string {
	var words []string
	for _, i := range s.List() {
		words = append(words, string(i))
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ",")
}

// ParseIsolations reads "process,gvisor"; at least one.
func ParseIsolations(text string) (s Isolations, err error) {
	for _, word := range strings.Split(text, ",") {
		i := Isolation(strings.TrimSpace(word))
		if i == "" {
			return 0, Errorf(Invalid, "parse isolations", "%q: use a list of process, gvisor and kata", text)
		}
		if err := i.Validate(); err != nil {
			return 0, err
		}
		s |= SetOf(i)
	}
	return s, nil
}

// An IsolationPolicy is what an owner says of its functions, the cluster's operator of all and of an account's.
type IsolationPolicy struct {
	Default Isolation `cbor:"1,keyasint,omitempty" json:"default,omitempty" doc:"of functions that do not say; empty means what stands above says, at last process"`
	Least   Isolation `cbor:"2,keyasint,omitempty" json:"least,omitempty" doc:"no function may have less; empty means process"`
}

// Validate reports the first field that cannot be.
func (p IsolationPolicy) Validate() error {
	if err := p.Default.Validate(); err != nil {
		return err
	}
	if err := p.Least.Validate(); err != nil {
		return err
	}
	if p.Default != "" && p.Default.WeakerThan(p.Least) {
		return Errorf(Invalid, "check isolation", "default %s is less than the least that is allowed, %s", p.Default, p.Least)
	}
	return nil
}

// Under returns p below a policy that stands above it: what p leaves out comes from there, and the stronger least counts.
func (p IsolationPolicy) Under(above IsolationPolicy) IsolationPolicy {
	out := IsolationPolicy{Default: p.Default.Or(above.Default), Least: p.Least}
	if p.Least.WeakerThan(above.Least) {
		out.Least = above.Least
	}
	return out
}

// Resolve returns what a function gets that wishes for wish, as it is stored: empty for process. A wish for less than
// the least is refused as Invalid; a default below it rises to it.
func (p IsolationPolicy) Resolve(wish Isolation) (Isolation, error) {
	got := wish.Or(p.Default)
	if got.WeakerThan(p.Least) {
		if wish != "" {
			return "", Errorf(Invalid, "check isolation", "isolation %s: this account may have no less than %s", wish, p.Least).With("IsolationTooWeak")
		}
		got = p.Least
	}
	if got == IsolationProcess {
		got = ""
	}
	return got, nil
}
