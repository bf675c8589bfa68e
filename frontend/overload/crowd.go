package overload

import "time"

// How a node is looked at: every SampleTime how many want a processor, and after Samples of these what that means.
const (
	SampleTime = 20 * time.Millisecond
	Samples    = 5 // in a flow.Window
)

const (
	crowdMax = 2.0 // that want to run for each processor; from here on it is an overload
	fresh    = 0.1 // weight of a new sample: the mean of about the last 200 ms
	fullPart = 0.9 // of the calls that may be in flight
)

// A Crowd is how many threads of a machine want to run for each of its processors, smoothed. The zero value is a machine
// at rest.
type Crowd struct{ mean float64 }

// Sample takes how many want to run at this moment for each processor. Call it every SampleTime.
func (c *Crowd) Sample(perCPU float64) { c.mean += fresh * (perCPU - c.mean) }

// Pressure returns what the crowd says; from 1 on there is too much work.
func (c *Crowd) Pressure() float64 { return c.mean / crowdMax }

// Full returns the pressure of a frontend by the calls it has in flight, as a part in [0, 1] of those it may have.
func Full(part float64) float64 { return part / fullPart }
