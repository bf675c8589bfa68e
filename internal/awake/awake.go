// Package awake keeps the idle cores of this machine from sleeping for a moment. A core that sleeps takes 50 to 150 µs to wake in a
// virtual machine, and a start is a row of wake-ups. The kernel lets root ask for a bound on that time
// (/dev/cpu_dma_latency): while it is zero, an idle core polls, at the full power of a busy one.
package awake

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"
)

// Device is where Linux takes bounds on the time that a core may need to wake.
const Device = "/dev/cpu_dma_latency"

// unbounded is what the kernel holds for no bound, in µs.
const unbounded = 2_000_000_000

// Cores are the cores of this machine. Open them, Rouse them, Close them; they have no goroutine of their own. All methods may be
// called at the same time, and on nil, where they do nothing.
type Cores struct {
	stay time.Duration

	mu    sync.Mutex // a leaf: guards what follows
	file  *os.File   // the bound lasts while it is open; nil once closed
	until time.Time  // when they may sleep again
	bound bool       // they may not now
	rest  *time.Timer
}

// Open returns cores that stay awake for so long after each Rouse, which is more than 0. An error means that the kernel takes no bounds from us.
func Open(device string, stay time.Duration) (*Cores, error) {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep cores awake: %w", err)
	}
	c := &Cores{stay: stay, file: f}
	if err := c.say(unbounded); err != nil { // opening alone may count as a bound of zero
		f.Close()
		return nil, err
	}
	c.rest = time.AfterFunc(stay, c.sleep)
	c.rest.Stop()
	return c, nil
}

// Rouse wakes the idle cores and lets none sleep for a while.
func (c *Cores) Rouse() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return
	}
	c.until = time.Now().Add(c.stay)
	if c.bound || c.say(0) != nil { // it is a favour: without it a start takes a moment longer
		return
	}
	c.bound = true
	c.rest.Reset(c.stay)
}

// sleep lets the cores sleep, or looks again when they may.
func (c *Cores) sleep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return
	}
	if left := time.Until(c.until); left > 0 {
		c.rest.Reset(left)
		return
	}
	if c.say(unbounded) == nil {
		c.bound = false
		return
	}
	c.rest.Reset(c.stay)
}

// say sets the bound in µs. The caller holds mu, or is alone.
func (c *Cores) say(micros uint32) error {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], micros)
	if _, err := c.file.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("keep cores awake: %w", err)
	}
	return nil
}

// Close gives the bound up.
func (c *Cores) Close() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	c.rest.Stop()
	f := c.file
	c.file = nil
	return f.Close()
}
