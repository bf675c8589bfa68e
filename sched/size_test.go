package sched

import (
	"testing"
	"unsafe"
)

// TestHotFieldsLieOnTwoLines: a field added in the wrong place costs every warm call a cache miss.
func TestHotFieldsLieOnTwoLines(t *testing.T) {
	var v version
	var i instance
	if n := unsafe.Offsetof(v.id); n > 120 {
		t.Errorf("what a warm call touches of a version ends at byte %d, want 128", n+8)
	}
	if n := unsafe.Offsetof(i.in); n > 112 {
		t.Errorf("what a warm call touches of an instance ends at byte %d, want 128", n+16)
	}
	if a, b := unsafe.Sizeof(v), unsafe.Sizeof(i); a != 640 || b != 256 {
		t.Errorf("version and instance have %d and %d bytes: pad them to 640 and 256", a, b)
	}
}
