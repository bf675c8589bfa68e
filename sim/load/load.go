// Package load is the seam between a simulated cluster and whatever calls it: a load model, a
// recorded trace, or a test's own list.
package load

import "time"

// Function is one function of a load: all the simulator has to know of it to register, place and
// start it. A function has one version.
type Function struct {
	Account   string        // who owns it; instances are never shared between accounts
	Name      string        // unique inside the account
	MemoryMiB int           // of one instance, at least 1
	Slots     int           // calls one instance serves at once, at least 1
	Start     time.Duration // median time until an instance exists, without the code's own Init
	Init      time.Duration // median time of the code's own initialisation
}

// Call is one call of a load.
type Call struct {
	At       time.Duration // since the beginning of the world; never falls from one call to the next
	Function int32         // index into Load.Functions
	Exec     time.Duration // how long the code runs once it has a slot
}

// Load is a stream of calls in the order of their times. It belongs to one world and is read by
// it alone; a Load that draws at random is made from a seed of its own.
type Load interface {
	// Functions returns every function that Next may name. It is called once, and the caller
	// keeps the slice.
	Functions() []Function
	// Next returns the next call; false says there is none left.
	Next() (Call, bool)
}
