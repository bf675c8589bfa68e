package registry

import (
	"fmt"
	"strings"
	"testing"

	"starling"
)

func layerOf(account, name string, runtimes ...starling.Runtime) starling.Layer {
	return starling.Layer{Account: starling.AccountID(account), Name: starling.LayerName(name), Code: code, CodeSize: 1, Unpacked: 4096, Runtimes: runtimes}
}

func mustPublish(t *testing.T, r *Registry, l starling.Layer) starling.LayerRef {
	t.Helper()
	got, err := r.PublishLayer(l)
	if err != nil {
		t.Fatal(err)
	}
	return got.Ref()
}

func withLayers(id starling.VersionID, name string, layers ...starling.LayerRef) Put {
	p := put(id, "a", name)
	p.Config.Layers = layers
	return p
}

func otherCode(n int) starling.CodeHash {
	return starling.CodeHash(fmt.Sprintf("%064x", n))
}

func TestLayersAreNumberedAndRepeatedPublicationsAreNot(t *testing.T) {
	r := withAccounts(t, "a")
	l := layerOf("a", "deps")
	if ref := mustPublish(t, r, l); ref.String() != "deps:1" {
		t.Fatalf("the first is %s", ref)
	}
	if ref := mustPublish(t, r, l); ref.Version != 1 {
		t.Fatalf("the same again is %s", ref)
	}
	l.Code = otherCode(1)
	if ref := mustPublish(t, r, l); ref.Version != 2 {
		t.Fatalf("the second is %s", ref)
	}
	if err := r.DeleteLayer("a", starling.LayerRef{Name: "deps", Version: 2}); err != nil {
		t.Fatal(err)
	}
	if ref := mustPublish(t, r, l); ref.Version != 3 {
		t.Fatalf("a number was given twice: %s", ref)
	}
	list, err := r.Layer("a", "deps", 0)
	if err != nil || len(list) != 2 || list[0].Version != 3 || list[1].Version != 1 {
		t.Fatalf("listed %+v %v", list, err)
	}
	if page, _, err := r.Layers("a", "", 0); err != nil || len(page) != 1 || page[0].Version != 3 {
		t.Fatalf("the newest is %+v %v", page, err)
	}
}

func TestAFunctionKeepsWhatItsLayersAreMadeOf(t *testing.T) {
	r := withAccounts(t, "a")
	low, high := layerOf("a", "low"), layerOf("a", "high")
	high.Code = otherCode(1)
	refs := []starling.LayerRef{mustPublish(t, r, high), mustPublish(t, r, low)}
	v, _, err := r.PutFunction(withLayers(1, "f", refs...))
	if err != nil || len(v.LayerCode) != 2 || v.LayerCode[0] != high.Code || v.LayerCode[1] != low.Code {
		t.Fatalf("made of %v, %v", v, err)
	}
	turned, _, err := r.PutFunction(withLayers(2, "f", refs[1], refs[0]))
	if err != nil || turned.LayerCode[0] != low.Code {
		t.Fatalf("another order is the same function: %v %v", turned, err)
	}
	p, err := r.PublishVersion(3, v.Function, 3)
	if err != nil || len(p.LayerCode) != 2 {
		t.Fatalf("published without its layers: %v %v", p, err)
	}
}

func TestLayersThatCannotBeAreRefused(t *testing.T) {
	r := withAccounts(t, "a", "b")
	deps := mustPublish(t, r, layerOf("a", "deps"))
	node := mustPublish(t, r, layerOf("a", "node", starling.NodeJS20))
	foreign := mustPublish(t, r, layerOf("b", "foreign"))
	large := layerOf("a", "large")
	large.Unpacked = starling.CodeUnpackedMax
	largeRef := mustPublish(t, r, large)
	var six []starling.LayerRef
	for i := range starling.LayersMax + 1 {
		six = append(six, mustPublish(t, r, layerOf("a", fmt.Sprint("l", i))))
	}
	for name, c := range map[string]struct {
		layers []starling.LayerRef
		kind   starling.Kind
		reason string
	}{
		"no such layer":          {[]starling.LayerRef{{Name: "nothing", Version: 1}}, starling.Invalid, "NoLayer"},
		"no such version":        {[]starling.LayerRef{{Name: "deps", Version: 2}}, starling.Invalid, "NoLayer"},
		"another tenant's layer": {[]starling.LayerRef{foreign}, starling.Invalid, "NoLayer"},
		"another runtime's":      {[]starling.LayerRef{node}, starling.Invalid, "LayerRuntime"},
		"one twice":              {[]starling.LayerRef{deps, deps}, starling.Invalid, "LayerTwice"},
		"too many":               {six, starling.Invalid, "TooManyLayers"},
		"too large together":     {[]starling.LayerRef{deps, largeRef}, starling.TooLarge, "LayersTooLarge"},
	} {
		_, _, err := r.PutFunction(withLayers(1, "f", c.layers...))
		wantKind(t, name, err, c.kind)
		if starling.ReasonOf(err) != c.reason {
			t.Errorf("%s: reason %q, want %q", name, starling.ReasonOf(err), c.reason)
		}
	}
	own := withLayers(1, "f", largeRef)
	own.Unpacked = 1
	_, _, err := r.PutFunction(own)
	wantKind(t, "too large with the code", err, starling.TooLarge)
	own.Unpacked = 0
	if _, _, err := r.PutFunction(own); err != nil {
		t.Errorf("just large enough: %v", err)
	}
	for name, l := range map[string]starling.Layer{
		"a bad name":         layerOf("a", "a:b"),
		"an unknown runtime": layerOf("a", "x", "cobol"),
		"a runtime twice":    layerOf("a", "x", starling.NodeJS20, starling.NodeJS20),
		"a long description": {Account: "a", Name: "x", Code: code, CodeSize: 1, Description: strings.Repeat("x", 257)},
		"no code":            {Account: "a", Name: "x", CodeSize: 1},
	} {
		_, err := r.PublishLayer(l)
		wantKind(t, name, err, starling.Invalid)
	}
}

func TestALayerInUseStays(t *testing.T) {
	r := withAccounts(t, "a")
	deps := mustPublish(t, r, layerOf("a", "deps"))
	v, _, err := r.PutFunction(withLayers(1, "f", deps))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.PublishVersion(2, v.Function, 2); err != nil {
		t.Fatal(err)
	}
	inUse := func(what string) {
		t.Helper()
		err := r.DeleteLayer("a", deps)
		wantKind(t, what, err, starling.Conflict)
		if starling.ReasonOf(err) != "LayerInUse" {
			t.Errorf("%s: reason %q", what, starling.ReasonOf(err))
		}
	}
	inUse("used by the latest")
	if _, _, err = r.PutFunction(withLayers(3, "f")); err != nil {
		t.Fatal(err)
	}
	inUse("used by a published version")
	if _, err = r.DeleteFunction(v.Function); err != nil {
		t.Fatal(err)
	}
	_, err = r.DeleteAccount("a")
	wantKind(t, "an account with a layer", err, starling.Conflict)
	if err := r.DeleteLayer("a", deps); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "deleted twice", r.DeleteLayer("a", deps), starling.NotFound)
	if _, err := r.DeleteAccount("a"); err != nil {
		t.Fatal(err)
	}
}

// A snapshot that was replaced is kept for calls in flight, and does not hold its layers.
func TestAReplacedSnapshotHoldsNoLayer(t *testing.T) {
	r := withAccounts(t, "a")
	deps := mustPublish(t, r, layerOf("a", "deps"))
	old, _, err := r.PutFunction(withLayers(1, "f", deps))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = r.PutFunction(withLayers(2, "f")); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteLayer("a", deps); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Version(old.ID); err != nil || len(v.LayerCode) != 1 {
		t.Fatalf("it does not know its layers any more: %v %v", v, err)
	}
}

func TestLayersHaveLimits(t *testing.T) {
	r := withAccounts(t, "a")
	for i := range LayerKeepMax {
		l := layerOf("a", "deps")
		l.Code = otherCode(i)
		mustPublish(t, r, l)
	}
	l := layerOf("a", "deps")
	_, err := r.PublishLayer(l)
	wantKind(t, "one version too many", err, starling.Overloaded)
	for i := range LayerMax - 1 {
		mustPublish(t, r, layerOf("a", fmt.Sprint("l", i)))
	}
	_, err = r.PublishLayer(layerOf("a", "more"))
	wantKind(t, "one layer too many", err, starling.Overloaded)
	if starling.ReasonOf(err) != "LayerLimit" {
		t.Errorf("reason %q", starling.ReasonOf(err))
	}
	seen := 0
	for after := ""; ; {
		page, next, err := r.Layers("a", after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if seen += len(page); next == "" {
			break
		}
		after = next
	}
	if seen != LayerMax {
		t.Errorf("pages hold %d layers, want %d", seen, LayerMax)
	}
}
