package check

import (
	"strings"
	"testing"
)

func TestThatNamesTheInvariant(t *testing.T) {
	That(true, "never printed")
	defer func() {
		got, _ := recover().(string)
		if !strings.Contains(got, "slot 3 is free") {
			t.Fatalf("panicked with %q", got)
		}
	}()
	That(false, "slot %d is free", 3)
	t.Fatal("a broken invariant went on")
}
