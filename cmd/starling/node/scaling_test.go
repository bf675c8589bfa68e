package node

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"starling"
	"starling/sched/scale"
)

func TestReadScaling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scaling.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := scale.Default()
	want.Worth, want.Utilization = 7*time.Minute, 0.5
	write("# tuned\nworth: 7m\nutilization: 0.5\n")
	if got, err := ReadScaling(path); err != nil || *got != *want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadScaling(""); err != nil || *got != *scale.Default() {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	for _, bad := range []string{"worth: -1m", "worht: 1m", "- worth", "utilization: 2"} {
		write(bad)
		if _, err := ReadScaling(path); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ReadScaling(path + ".none"); starling.KindOf(err) != starling.Invalid {
		t.Errorf("no file: %v", err)
	}
}
