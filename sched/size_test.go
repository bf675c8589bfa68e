package sched

import (
	"testing"
	"unsafe"
)

// TestHotFieldsLieOnTwoLines: a field added in the wrong place costs every warm call a cache miss.
func TestHotFieldsLieOnTwoLines(t *testing.T) {
	if a, b := unsafe.Sizeof(version{}), unsafe.Sizeof(instance{}); a != 128 || b != 128 {
		t.Errorf("version and instance have %d and %d bytes, want 128 each: what a warm call does not touch belongs to their rests", a, b)
	}
}
