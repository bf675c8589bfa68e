package awake

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// device returns a file in the device's place and what was last written to it.
func device(t *testing.T) (path string, said func() uint32) {
	path = filepath.Join(t.TempDir(), "latency")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() uint32 {
		b, err := os.ReadFile(path)
		if err != nil || len(b) != 4 {
			t.Fatalf("the device was told %v, %v", b, err)
		}
		return binary.NativeEndian.Uint32(b)
	}
}

func TestCoresSleepUnlessRoused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, said := device(t)
		c, err := Open(path, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		asleep := func(want bool, when string) {
			t.Helper()
			synctest.Wait()
			if got := said() != 0; got != want {
				t.Errorf("%s: asleep %v, want %v", when, got, want)
			}
		}
		asleep(true, "before any start")
		c.Rouse()
		asleep(false, "at a start")
		time.Sleep(15 * time.Millisecond)
		c.Rouse()
		time.Sleep(15 * time.Millisecond)
		asleep(false, "15 ms after the second of two starts")
		time.Sleep(10 * time.Millisecond)
		asleep(true, "25 ms after the second")
		c.Rouse()
		asleep(false, "at a later start")
	})
}

func TestClosedCoresAreLeftAlone(t *testing.T) {
	path, said := device(t)
	c, err := Open(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.Rouse()
	if said() == 0 {
		t.Error("a bound was set after Close")
	}
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestNoDeviceIsAnError(t *testing.T) {
	if c, err := Open(filepath.Join(t.TempDir(), "none"), time.Second); err == nil || c != nil {
		t.Errorf("got %v, %v", c, err)
	}
}

func TestNoCoresDoNothing(t *testing.T) {
	var c *Cores
	c.Rouse()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
