package starling

import (
	"encoding/json"
	"testing"
)

func TestLayersAreNamedWithTheirVersion(t *testing.T) {
	for _, text := range []string{"", ":", "deps", "deps:", "deps:0", "deps:01", "deps:+1", "deps:-1", "deps:x", ":1", "a b:1", "-a:1", "deps:1:2", "deps:4294967296", "deps:latest"} {
		if r, err := ParseLayerRef(text); KindOf(err) != Invalid {
			t.Errorf("%q is %v, %v", text, r, err)
		}
	}
	r, err := ParseLayerRef("my_deps-2:37")
	if err != nil || r != (LayerRef{"my_deps-2", 37}) {
		t.Fatalf("got %v, %v", r, err)
	}
	var c Config
	if err := json.Unmarshal([]byte(`{"runtime":"python3.11","layers":["a:1","b:2"]}`), &c); err != nil || len(c.Layers) != 2 || c.Layers[1] != (LayerRef{"b", 2}) {
		t.Fatalf("from JSON: %+v, %v", c, err)
	}
	if err := json.Unmarshal([]byte(`{"layers":["a"]}`), &c); err == nil {
		t.Fatal("a layer without its version was read")
	}
	if b, err := json.Marshal(r); err != nil || string(b) != `"my_deps-2:37"` {
		t.Fatalf("to JSON: %s, %v", b, err)
	}
}

func FuzzParseLayerRef(f *testing.F) {
	f.Add("deps:1")
	f.Add("a:4294967295")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseLayerRef(text)
		if err == nil && (r.String() != text || r.Version == 0 || r.Name.Validate() != nil) {
			t.Fatalf("%q was read as %+v", text, r)
		}
	})
}
