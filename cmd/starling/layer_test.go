package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"starling"
)

// wantRefusal runs a command that must be refused for a reason.
func wantRefusal(t *testing.T, env []string, reason string, args ...string) {
	t.Helper()
	cmd := exec.Command(starlingBinary(t), append(args, "-o", "json")...)
	cmd.Env = append(os.Environ(), env...)
	var says bytes.Buffer
	cmd.Stderr = &says
	if err := cmd.Run(); err == nil || !strings.Contains(says.String(), reason) {
		t.Errorf("%v: %v, want %s: %s", args, err, reason, says.String())
	}
}

// TestLayersFromPublicationToDeletion publishes layers at one node and runs functions with them on another.
func TestLayersFromPublicationToDeletion(t *testing.T) {
	if testing.Short() {
		t.Skip("real sandboxes take seconds")
	}
	t.Parallel()
	c := startNodes(t, testKind{roles: "manager,frontend,scheduler"}, testKind{roles: "host", args: []string{"--isolation", "process,gvisor", "--runsc", runscBinary(t)}})
	server := "STARLING_SERVER=" + c.nodes[0].url
	env, admin := []string{server, "STARLING_KEY=" + c.key}, []string{server, "STARLING_KEY=" + c.root}
	publish := func(name string, args ...string) {
		t.Helper()
		starlingCLI(t, env, append([]string{"layer", "publish", name}, args...)...)
	}
	wantAnswer := func(function, want string) {
		t.Helper()
		if got := strings.TrimSpace(starlingCLI(t, env, "invoke", function, "{}")); got != want {
			t.Errorf("%s answers %s, want %s", function, got, want)
		}
	}
	noise := make([]byte, 33<<20) // more than is unpacked in memory
	rand.NewChaCha8([32]byte{7}).Read(noise)
	publish("deps", "--dir", folder(t, map[string]string{"python/dep.py": "NAME = 'one'", "nodejs/node_modules/dep/index.js": "exports.name = 'one';"}), "--description", "what all need")
	publish("deps", "--dir", folder(t, map[string]string{"python/dep.py": "NAME = 'two'"}), "--runtime", "python3.11")
	publish("large", "--dir", folder(t, map[string]string{"python/dep.py": "NAME = 'large'", "data": string(noise)}))

	python := folder(t, map[string]string{"main.py": `import dep
def refused(f):
    try: f()
    except OSError: return True
def handler(event, context):
    data = open("/opt/data", "rb") if event.get("data") else None
    return [dep.NAME, refused(lambda: open("/opt/python/dep.py", "w")) and refused(lambda: open("/opt/x", "w")), data and data.seek(20 << 20) and data.read(4).hex()]
`})
	for _, isolation := range []string{"gvisor", "process"} {
		starlingCLI(t, env, "deploy", python, "--name", "py", "--isolation", isolation, "--layer", "deps:1", "--layer", "large:1")
		wantAnswer("py", `["large", true, null]`)
		var got []any
		if err := json.Unmarshal([]byte(starlingCLI(t, env, "invoke", "py", `{"data":true}`)), &got); err != nil || got[2] != hex.EncodeToString(noise[20<<20:20<<20+4]) {
			t.Errorf("isolation %s: from the middle of a large layer comes %v, %v", isolation, got, err)
		}
	}
	starlingCLI(t, env, "deploy", python, "--name", "py", "--layer", "large:1", "--layer", "deps:1", "--publish")
	wantAnswer("py", `["one", true, null]`)
	starlingCLI(t, env, "deploy", python, "--name", "py", "--layer", "deps:2")
	wantAnswer("py", `["two", true, null]`)
	starlingCLI(t, env, "deploy", folder(t, map[string]string{"index.js": "exports.handler = async () => require('dep').name;", "starling.yaml": "name: js\nlayers: [\"deps:1\"]\n"}))
	wantAnswer("js", `"one"`)
	wantAnswer("py", `["two", true, null]`)

	if out := starlingCLI(t, env, "functions", "js"); !strings.Contains(out, "deps:1") {
		t.Errorf("a function does not show its layers:\n%s", out)
	}
	var list []starling.Layer
	if err := json.Unmarshal([]byte(starlingCLI(t, env, "layer", "list", "-o", "json")), &list); err != nil || len(list) != 2 || list[0].Ref().String() != "deps:2" || list[0].Runtimes[0] != starling.Python311 {
		t.Errorf("listed %+v, %v", list, err)
	}
	if out := starlingCLI(t, env, "layer", "show", "deps:1"); !strings.Contains(out, "what all need") {
		t.Errorf("a layer does not show its description:\n%s", out)
	}
	js := folder(t, map[string]string{"index.js": "exports.handler = async () => 1;"})
	wantRefusal(t, env, "LayerRuntime", "deploy", js, "--name", "js", "--layer", "deps:2")
	wantRefusal(t, env, "NoLayer", "deploy", js, "--name", "js", "--layer", "deps:3")
	wantRefusal(t, env, "NAME:VERSION", "deploy", js, "--name", "js", "--layer", "deps")
	wantRefusal(t, env, "LayerTwice", "deploy", js, "--name", "js", "--layer", "deps:1", "--layer", "deps:1")
	wantRefusal(t, env, "LayerInUse", "layer", "delete", "deps:2")
	wantRefusal(t, env, "LayerInUse", "layer", "delete", "deps:1") // of js, and of version 1 of py
	starlingCLI(t, env, "delete", "js")
	wantRefusal(t, env, "LayerInUse", "layer", "delete", "large:1")

	starlingCLI(t, admin, "account", "create", "other")
	stranger := append(admin, "STARLING_ACCOUNT=other")
	wantRefusal(t, stranger, "NoLayer", "deploy", js, "--name", "js", "--layer", "deps:1")
	wantRefusal(t, stranger, "not-found", "layer", "show", "deps:1")
	wantRefusal(t, stranger, "not-found", "layer", "delete", "deps:1")
	starlingCLI(t, env, "delete", "py")
	starlingCLI(t, env, "layer", "delete", "deps:1", "deps:2", "large:1")
	if out := starlingCLI(t, env, "layer", "list", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("deleted layers are listed: %s", out)
	}
}
