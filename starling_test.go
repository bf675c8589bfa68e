package starling

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/quick"
)

func TestRequestIDsReadBackAsWritten(t *testing.T) {
	same := func(id RequestID) bool {
		got, ok := ParseRequestID(id.String())
		return ok && got == id
	}
	if err := quick.Check(same, nil); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", "00000000-0000-0000-0000-00000000000g", "00000000000000000000000000000000----", "000000000-000-0000-0000-000000000000"} {
		if _, ok := ParseRequestID(bad); ok {
			t.Errorf("%q was taken for a request id", bad)
		}
	}
}

func TestErrorsKeepTheirKindThroughWrapping(t *testing.T) {
	err := fmt.Errorf("outer: %w", Errorf(Overloaded, "take slot", "queue is full: %w", io.ErrShortBuffer).With("QueueFull"))
	if KindOf(err) != Overloaded || ReasonOf(err) != "QueueFull" || !errors.Is(err, io.ErrShortBuffer) {
		t.Fatalf("lost kind, reason or cause: %v %q %v", KindOf(err), ReasonOf(err), errors.Is(err, io.ErrShortBuffer))
	}
	if KindOf(io.EOF) != Internal {
		t.Fatal("a foreign error is internal")
	}
	for k := Internal; k <= Unavailable; k++ {
		if ParseKind(k.String()) != k {
			t.Errorf("%v does not read back", k)
		}
	}
}

// The replicated map is keyed by KeyOf: a changed value here would lose every function of a running cluster.
func TestKeysNeverChange(t *testing.T) {
	for ref, want := range map[FunctionRef]Key64{
		{"acme", "resize"}: 0xb1aed9ef00000007,
		{"a", "bc"}:        0x6c48a2ff00000007,
		{"ab", "c"}:        0xb36c8ae900000007,
	} {
		if got := KeyOf(ref, 7); got != want {
			t.Errorf("KeyOf(%v, 7) = %#x, was %#x", ref, uint64(got), uint64(want))
		}
	}
}

func TestSpansAreSpreadOverTheKeySpace(t *testing.T) {
	var quarter [4]int
	for i := range 4000 {
		quarter[KeyOf(FunctionRef{"acme", FunctionName(fmt.Sprintf("fn%d", i))}, 0)>>62]++
	}
	for i, n := range quarter {
		if n < 800 || n > 1200 {
			t.Errorf("quarter %d holds %d of 4000 functions", i, n)
		}
	}
}

func TestRangesHoldTheirKeys(t *testing.T) {
	last := Range{Lo: 1 << 63}
	if !last.Contains(1<<63) || !last.Contains(1<<64-1) || last.Contains(1<<63-1) {
		t.Fatal("the last range ends at 2^64")
	}
	if r := (Range{Lo: 5, Hi: 7}); !r.Contains(6) || r.Contains(7) || r.Contains(4) {
		t.Fatal("a range holds Lo and not Hi")
	}
}

func TestConfigRefusesWhatCannotWork(t *testing.T) {
	good := Config{Runtime: Python311}.WithDefaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"unknown runtime":      func(c *Config) { c.Runtime = "cobol" },
		"handler leaves":       func(c *Config) { c.Handler = "../../bin/sh.x" },
		"handler absolute":     func(c *Config) { c.Handler = "/bin/sh.x" },
		"handler no function":  func(c *Config) { c.Handler = "main" },
		"memory low":           func(c *Config) { c.MemoryMiB = 1 },
		"memory high":          func(c *Config) { c.MemoryMiB = 1 << 20 },
		"timeout long":         func(c *Config) { c.TimeoutMS = 900_001 },
		"python concurrency":   func(c *Config) { c.Concurrency = 2 },
		"environment too big":  func(c *Config) { c.Env = map[string]string{"A": string(make([]byte, EnvMax+1))} },
		"environment NUL":      func(c *Config) { c.Env = map[string]string{"A": "\x00"} },
		"environment reserved": func(c *Config) { c.Env = map[string]string{"AWS_LAMBDA_RUNTIME_API": "x"} },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); KindOf(err) != Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestNamesAreBounded(t *testing.T) {
	for _, bad := range []string{"", "-a", "a/b", "a b", "ä", string(make([]byte, 65))} {
		if FunctionName(bad).Validate() == nil {
			t.Errorf("function name %q was accepted", bad)
		}
	}
	for _, bad := range []string{"", "1a", "Acme", "a_b"} {
		if AccountID(bad).Validate() == nil {
			t.Errorf("account name %q was accepted", bad)
		}
	}
	for in, want := range map[string]VersionNumber{"": Latest, "latest": Latest, "$LATEST": Latest, "3": 3} {
		if got, err := ParseVersionNumber(in); err != nil || got != want {
			t.Errorf("version %q: %v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"0", "-1", "x", "4294967296"} {
		if _, err := ParseVersionNumber(bad); err == nil {
			t.Errorf("version %q was accepted", bad)
		}
	}
}

func TestRolesReadBack(t *testing.T) {
	r, err := ParseRoles("manager, host")
	if err != nil || r.String() != "manager,host" {
		t.Fatalf("got %v, %v", r, err)
	}
	if _, err := ParseRoles("boss"); KindOf(err) != Invalid {
		t.Fatalf("got %v", err)
	}
}
