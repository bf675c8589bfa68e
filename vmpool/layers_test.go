package vmpool_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
)

// What functions do with layers: find what is in them where runtimes look, and try to change it.
const (
	pythonLayered = `
import ctypes, os, subprocess
import low, shared, packaged
def refused(f):
    try: f()
    except OSError: return True
    return False
def tell(e, c):
    return {"low": low.NAME, "shared": shared.NAME, "packaged": packaged.NAME, "tool": subprocess.run(["layer-tool"], capture_output=True, text=True).stdout.strip(),
        "mounts": open("/proc/self/mountinfo").read(), "library": ctypes.CDLL("liblayer.so").zlibVersion() != 0, "written": not all(refused(f) for f in (
            lambda: open("/opt/new", "w"), lambda: open("/opt/python/low.py", "a"), lambda: os.remove("/opt/python/low.py"), lambda: os.mkdir("/opt/lib/x"), lambda: os.chmod("/opt/python/low.py", 0o777)))}
`
	nodeLayered = `
const outer = require('outer'), versioned = require('versioned');
exports.tell = async () => ({ outer, versioned });
`
	nothingLayered = `
import os
def tell(e, c): return sorted(f for d in os.walk("/opt/") for f in d[2])
`
)

// layerDir makes a layer of name, text pairs.
func layerDir(t *testing.T, files ...string) vmpool.Layer {
	t.Helper()
	_, dir := version(t, starling.Provided, "bootstrap", files...)
	readable(dir)
	return vmpool.Layer{Dir: dir}
}

// readable lets sandboxes read a folder as those of the code store are.
func readable(dir string) {
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		os.Chmod(up, 0o755)
	}
}

// someLibrary returns a shared library that is nobody's but a layer's under its new name.
func someLibrary(t *testing.T) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/*/libz.so.1")
	if len(found) == 0 {
		t.Fatal("this machine has no libz.so.1, which Python needs")
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// layersWork calls functions with layers in sandboxes of p; limit is what a call may take.
func layersWork(t *testing.T, p *vmpool.Pool, limit time.Duration) {
	low := layerDir(t, "python/low.py", "NAME = 'low'", "python/shared.py", "NAME = 'low'", "bin/layer-tool", "#!/usr/bin/python3\nprint('from the layer')\n",
		"nodejs/node_modules/inner/index.js", "exports.name = 'low';", "nodejs/node_modules/outer/index.js", "exports.inner = require('inner').name;")
	high := layerDir(t, "python/shared.py", "NAME = 'high'", "python/lib/python3.11/site-packages/packaged.py", "NAME = 'site-packages'", "lib/liblayer.so", someLibrary(t),
		"nodejs/node_modules/inner/index.js", "exports.name = 'high';", "nodejs/node20/node_modules/versioned/index.js", "module.exports = 20;")
	tell := func(rt starling.Runtime, file, text string, layers ...vmpool.Layer) string {
		t.Helper()
		v, dir := version(t, rt, "main.tell", file, text)
		readable(dir)
		i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir, Layers: layers, InitTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		out, a, _ := call(t, i, "1", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(limit) })
		if out.Status != 0 {
			t.Fatalf("%s ended %v %s: %s", file, out.Status, out.ErrorType, a.String())
		}
		return a.String()
	}
	for name, c := range map[string]struct {
		shared string
		layers []vmpool.Layer
	}{"in order": {"high", []vmpool.Layer{low, high}}, "turned": {"low", []vmpool.Layer{high, low}}} {
		t.Run(name, func(t *testing.T) {
			type told struct {
				Low, Shared, Packaged, Tool, Mounts string
				Library, Written                    bool
			}
			var got told
			if err := json.Unmarshal([]byte(tell(starling.Python311, "main.py", pythonLayered, c.layers...)), &got); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(got.Mounts, filepath.Dir(low.Dir)) {
				t.Errorf("a function sees where its layers lie on the host:\n%s", got.Mounts)
			}
			if want := (told{"low", c.shared, "site-packages", "from the layer", got.Mounts, true, false}); got != want {
				t.Errorf("Python tells %+v, want %+v", got, want)
			}
			if got, want := tell(starling.NodeJS20, "main.js", nodeLayered, c.layers...), `{"outer":{"inner":"`+c.shared+`"},"versioned":20}`; got != want {
				t.Errorf("Node tells %s, want %s", got, want)
			}
		})
	}
	t.Run("one", func(t *testing.T) {
		if got := tell(starling.Python311, "main.py", "import low\ndef tell(e, c): return low.NAME", low); got != `"low"` {
			t.Errorf("it tells %s", got)
		}
	})
	t.Run("bootstrap", func(t *testing.T) {
		bootstrap := goBootstrap(t, "./runtimeapi/testdata/echo")
		readable(bootstrap)
		v, dir := version(t, starling.Provided, "bootstrap", "note", "the program is in the layer")
		readable(dir)
		i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir, Layers: []vmpool.Layer{{Dir: bootstrap}}, InitTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		if out, a, _ := call(t, i, `{"text":"x"}`, func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(limit) }); a.String() != `{"echo":"x"}` {
			t.Errorf("it ended %v %s with %s", out.Status, out.Error, a.String())
		}
	})
	t.Run("none", func(t *testing.T) {
		if got := tell(starling.Python311, "main.py", nothingLayered); got != "[]" {
			t.Errorf("a function without layers sees %s", got)
		}
	})
}
