package frontend

import (
	"slices"
	"strings"
	"testing"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

// uploaded returns the hash of a package of acme's.
func uploaded(t *testing.T, c *client.HTTP, content string) starling.CodeHash {
	t.Helper()
	code, err := c.PutCode(bg, strings.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return code.Hash
}

func TestLayersAreSharedByTheFunctionsOfTheirAccount(t *testing.T) {
	w := newWorld(t)
	c, other := w.client(w.user), w.client(w.admin, client.WithAccount("other"))
	l, err := c.PublishLayer(bg, "deps", protocol.LayerSpec{Code: uploaded(t, c, "layer"), Runtimes: []starling.Runtime{starling.NodeJS20}, Description: "what we all need"})
	if err != nil || l.Ref().String() != "deps:1" || l.Account != "acme" || l.CodeSize != 5 || l.Unpacked != 5<<20 || l.Created == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	spec := func(runtime starling.Runtime, code string, layers ...starling.LayerRef) protocol.FunctionSpec {
		return protocol.FunctionSpec{Name: "f", Config: &starling.Config{Runtime: runtime, Layers: layers}, Code: uploaded(t, c, code)}
	}
	v, err := c.CreateFunction(bg, spec(starling.NodeJS20, "code", l.Ref()))
	if err != nil || !slices.Equal(v.LayerCode, []starling.CodeHash{l.Code}) || !slices.Equal(v.Config.Layers, []starling.LayerRef{l.Ref()}) {
		t.Fatalf("%+v, %v", v, err)
	}
	if f, err := c.Function(bg, "f"); err != nil || !slices.Equal(f.Snapshot.Config.Layers, v.Config.Layers) {
		t.Fatalf("shown: %+v, %v", f.Snapshot.Config, err)
	}
	for name, x := range map[string]struct {
		spec   protocol.FunctionSpec
		reason string
	}{
		"unknown":         {spec(starling.NodeJS20, "code", starling.LayerRef{Name: "deps", Version: 2}), "NoLayer"},
		"another runtime": {spec(starling.Python311, "code", l.Ref()), "LayerRuntime"},
		"too large":       {spec(starling.NodeJS20, strings.Repeat("x", 246), l.Ref()), "LayersTooLarge"},
		"twice":           {spec(starling.NodeJS20, "code", l.Ref(), l.Ref()), "LayerTwice"},
		"too many":        {spec(starling.NodeJS20, "code", slices.Repeat([]starling.LayerRef{l.Ref()}, 6)...), "TooManyLayers"},
	} {
		if _, err := c.UpdateFunction(bg, "f", x.spec); starling.ReasonOf(err) != x.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := other.Layer(bg, l.Ref()); starling.KindOf(err) != starling.NotFound {
		t.Errorf("another account reads it: %v", err)
	}
	if _, err := other.PublishLayer(bg, "stolen", protocol.LayerSpec{Code: l.Code}); starling.ReasonOf(err) != "NoCode" {
		t.Errorf("another account publishes its content: %v", err)
	}
	foreign := spec(starling.NodeJS20, "code", l.Ref())
	foreign.Code = uploaded(t, other, "code")
	if _, err := other.CreateFunction(bg, foreign); starling.ReasonOf(err) != "NoLayer" {
		t.Errorf("another account's function uses it: %v", err)
	}
	if err := other.DeleteLayer(bg, l.Ref()); starling.KindOf(err) != starling.NotFound {
		t.Errorf("another account deletes it: %v", err)
	}
}

func TestLayersAreListedShownAndDeleted(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.user)
	for _, content := range []string{"one", "two", "two", "three"} {
		if _, err := c.PublishLayer(bg, "deps", protocol.LayerSpec{Code: uploaded(t, c, content)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.PublishLayer(bg, "also", protocol.LayerSpec{Code: uploaded(t, c, "one")}); err != nil {
		t.Fatal(err)
	}
	p, err := c.Layers(bg, "", 1)
	if err != nil || len(p.Items) != 1 || p.Items[0].Name != "also" || p.Next == "" {
		t.Fatalf("the first page: %+v, %v", p, err)
	}
	if p, err = c.Layers(bg, p.Next, 0); err != nil || len(p.Items) != 1 || p.Items[0].Version != 3 || p.Next != "" {
		t.Fatalf("the second page: %+v, %v", p, err)
	}
	newest := p.Items[0].Ref()
	if list, err := c.LayerVersions(bg, "deps"); err != nil || len(list) != 3 || list[0].Version != 3 || list[2].Version != 1 {
		t.Fatalf("versions: %+v, %v", list, err)
	}
	if _, err := c.CreateFunction(bg, protocol.FunctionSpec{Name: "f", Config: &starling.Config{Runtime: starling.NodeJS20, Layers: []starling.LayerRef{newest}}, Code: uploaded(t, c, "code")}); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteLayer(bg, newest); starling.KindOf(err) != starling.Conflict || starling.ReasonOf(err) != "LayerInUse" {
		t.Fatalf("deleted although a function uses it: %v", err)
	}
	if err := c.DeleteFunction(bg, "f"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteLayer(bg, newest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Layer(bg, newest); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("still there: %v", err)
	}
	if _, err := c.LayerVersions(bg, "nothing"); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("versions of nothing: %v", err)
	}
	if _, err := c.PublishLayer(bg, "a:b", protocol.LayerSpec{Code: uploaded(t, c, "one")}); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("a bad name: %v", err)
	}
}
