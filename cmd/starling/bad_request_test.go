package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// requests names things that do not exist, says them wrongly, or with the wrong key.
func (w *badWorld) requests(t *testing.T) {
	code, err := w.node.http.PutCode(t.Context(), bytes.NewReader(zipOf(t, map[string]string{"main.py": "def handler(e, c):\n    return e\n"})), -1)
	if err != nil {
		t.Fatal(err)
	}
	create := func(name, config string) string {
		return fmt.Sprintf(`{"name":%q,"code":%q,"config":%s}`, name, code.Hash, config)
	}
	absent := strings.Repeat("ab", 32)
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		kind                     starling.Kind
		reason                   string
	}{
		{"unknown function", "POST", "/v1/functions/absent/invocations", "{}", nil, 404, starling.NotFound, ""},
		{"unknown version", "POST", "/v1/functions/echo/invocations?version=7", "{}", nil, 404, starling.NotFound, ""},
		{"version that is no number", "POST", "/v1/functions/echo/invocations?version=x", "{}", nil, 400, starling.Invalid, ""},
		{"unknown runtime", "POST", "/v1/functions", create("f", `{"runtime":"cobol85"}`), nil, 400, starling.Invalid, "UnknownRuntime"},
		{"bad name", "POST", "/v1/functions", create("no/slashes", `{"runtime":"python3.11"}`), nil, 400, starling.Invalid, ""},
		{"empty name", "POST", "/v1/functions", create("", `{"runtime":"python3.11"}`), nil, 400, starling.Invalid, ""},
		{"bad name invoked", "POST", "/v1/functions/b%20d/invocations", "{}", nil, 404, starling.NotFound, ""},
		{"long name invoked", "POST", "/v1/functions/" + strings.Repeat("n", 65) + "/invocations", "{}", nil, 400, starling.Invalid, ""},
		{"handler without a function", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","handler":"main"}`), nil, 400, starling.Invalid, ""},
		{"handler outside the package", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","handler":"../main.f"}`), nil, 400, starling.Invalid, ""},
		{"too little memory", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","memoryMiB":64}`), nil, 400, starling.Invalid, ""},
		{"too long a timeout", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","timeoutMS":900001}`), nil, 400, starling.Invalid, ""},
		{"environment of ours", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","env":{"AWS_LAMBDA_X":"1"}}`), nil, 400, starling.Invalid, ""},
		{"too large an environment", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","env":{"A":"`+strings.Repeat("x", 4096)+`"}}`), nil, 400, starling.Invalid, ""},
		{"unknown code", "POST", "/v1/functions", `{"name":"f","code":"` + absent + `","config":{"runtime":"python3.11"}}`, nil, 400, starling.Invalid, "NoCode"},
		{"exists already", "POST", "/v1/functions", create("echo", `{"runtime":"python3.11"}`), nil, 409, starling.Conflict, ""},
		{"body that is no JSON", "POST", "/v1/functions", "{", nil, 400, starling.Invalid, ""},
		{"field that is none", "POST", "/v1/functions", create("f", `{"runtime":"python3.11","memory":128}`), nil, 400, starling.Invalid, ""},
		{"unknown route", "GET", "/v1/nothing", "", nil, 404, starling.NotFound, "NoRoute"},
		{"no key", "POST", "/v1/functions/echo/invocations", "{}", []string{"Authorization: "}, 401, starling.Denied, "BadKey"},
		{"unknown key", "POST", "/v1/functions/echo/invocations", "{}", []string{"Authorization: Bearer stk_AAAAAAAA_" + strings.Repeat("A", 32)}, 401, starling.Denied, "BadKey"},
		{"key that is none", "GET", "/v1/whoami", "", []string{"Authorization: Basic eDp5"}, 401, starling.Denied, "BadKey"},
		{"user at an admin's route", "GET", "/v1/nodes", "", nil, 403, starling.Denied, "NotPermitted"},
		{"user for another account", "POST", "/v1/functions/echo/invocations", "{}", []string{"X-Starling-Account: other"}, 403, starling.Denied, "NotPermitted"},
		{"unknown account", "GET", "/v1/accounts/nobody", "", []string{"Authorization: Bearer " + w.root}, 404, starling.NotFound, ""},
		{"function of an unknown account", "POST", "/v1/functions/echo/invocations", "{}", []string{"Authorization: Bearer " + w.root, "X-Starling-Account: nobody"}, 404, starling.NotFound, ""},
		{"deploy to an unknown account", "POST", "/v1/code", "x", []string{"Authorization: Bearer " + w.root, "X-Starling-Account: nobody"}, 404, starling.NotFound, ""},
		{"bad account name", "POST", "/v1/accounts", `{"id":"No Good"}`, []string{"Authorization: Bearer " + w.root}, 400, starling.Invalid, ""},
		{"keys of an unknown account", "POST", "/v1/accounts/nobody/keys", `{}`, []string{"Authorization: Bearer " + w.root}, 404, starling.NotFound, ""},
		{"unknown key deleted", "DELETE", "/v1/accounts/default/keys/AAAAAAAA", "", []string{"Authorization: Bearer " + w.root}, 404, starling.NotFound, ""},
		{"account with functions deleted", "DELETE", "/v1/accounts/default", "", []string{"Authorization: Bearer " + w.root}, 409, starling.Conflict, ""},
		{"logs of an unknown function", "GET", "/v1/functions/absent/logs", "", nil, 404, starling.NotFound, ""},
		{"logs since no time", "GET", "/v1/functions/echo/logs?since=yesterday", "", nil, 400, starling.Invalid, ""},
		{"too large a payload", "POST", "/v1/functions/echo/invocations", strings.Repeat("x", starling.PayloadMax+1), nil, 413, starling.TooLarge, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, w.send(t, c.method, c.path, strings.NewReader(c.body), c.header...), c.status, c.kind, c.reason)
		})
	}
	t.Run("too large a payload of unknown length", func(t *testing.T) {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", starling.PayloadMax)), strings.NewReader("x"))
		refused(t, w.send(t, "POST", "/v1/functions/echo/invocations", body), 413, starling.TooLarge, "")
	})
	t.Run("payload of the largest size", func(t *testing.T) {
		body := `"` + strings.Repeat("x", starling.PayloadMax-2) + `"`
		if r := w.call(t, "echo", body); r.status != 200 || string(r.body) != body {
			t.Errorf("%d bytes came back: %s", len(r.body), r)
		}
	})
	w.echoes(t)
}

// packages uploads what is no package, or one that would hurt.
func (w *badWorld) packages(t *testing.T) {
	noise := bytes.Repeat([]byte("no zip at all. "), 100)
	var many bytes.Buffer
	z := zip.NewWriter(&many)
	for i := range starling.CodeEntryMax + 1 {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("f%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	z.Close()
	for _, c := range []struct {
		name   string
		zip    []byte
		status int
		kind   starling.Kind
		reason string
	}{
		{"no zip", noise, 400, starling.Invalid, "InvalidPackage"},
		{"nothing", nil, 400, starling.Invalid, "InvalidPackage"},
		{"empty zip", zipOf(t, nil), 400, starling.Invalid, "InvalidPackage"},
		{"cut zip", zipOf(t, map[string]string{"main.py": strings.Repeat("x=1\n", 1000)})[:60], 400, starling.Invalid, "InvalidPackage"},
		{"slip", zipOf(t, map[string]string{"../../etc/cron.d/x": "x"}), 400, starling.Invalid, "InvalidPackage"},
		{"absolute name", zipOf(t, map[string]string{"/etc/passwd": "x"}), 400, starling.Invalid, "InvalidPackage"},
		{"bomb", zipOf(t, map[string]string{"bomb": strings.Repeat("\x00", 64<<20)}), 413, starling.TooLarge, "PackageTooLarge"},
		{"too many entries", many.Bytes(), 413, starling.TooLarge, "PackageTooLarge"},
		{"too large", make([]byte, starling.CodeZipMax+1), 413, starling.TooLarge, "PackageTooLarge"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, w.send(t, "POST", "/v1/code", bytes.NewReader(c.zip), "Content-Type: application/zip"), c.status, c.kind, c.reason)
		})
	}
	t.Run("too large, of unknown length", func(t *testing.T) {
		body := io.MultiReader(bytes.NewReader(make([]byte, starling.CodeZipMax)), strings.NewReader("xx"))
		refused(t, w.send(t, "POST", "/v1/code", body), 413, starling.TooLarge, "PackageTooLarge")
	})
	t.Run("another hash than was said", func(t *testing.T) {
		r := w.send(t, "POST", "/v1/code", bytes.NewReader(zipOf(t, map[string]string{"a": "b"})), protocol.HeaderCodeHash+": "+strings.Repeat("ab", 32))
		refused(t, r, 400, starling.Invalid, "HashMismatch")
	})
	w.echoes(t)
	if left, err := os.ReadDir(filepath.Join(w.node.dir, "code", "upload")); err == nil && len(left) > 0 {
		t.Errorf("refused uploads are left on the disk: %v", left)
	}
}

// run runs one command line and returns its exit code and what it wrote.
func (w *badWorld) run(t *testing.T, env []string, args ...string) (code int, out, diag string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), starlingBinary(t), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "STARLING_SERVER="+w.node.url, "STARLING_KEY="+w.key)
	cmd.Env = append(cmd.Env, env...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	cmd.Run()
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// commands checks the exit codes and words of the command line against a real node.
func (w *badWorld) commands(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big.json")
	if err := os.WriteFile(big, bytes.Repeat([]byte("x"), starling.PayloadMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	notZip := filepath.Join(t.TempDir(), "f.zip")
	if err := os.WriteFile(notZip, []byte("no zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "main.py"), []byte("def handler(e, c):\n    return e\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.deploy(t, "raises", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    raise ValueError('boom')\n"}, nil)
	w.deploy(t, "slow", starling.Python311, map[string]string{"main.py": "import time\ndef handler(event, context):\n    time.sleep(2)\n"}, nil)
	for _, c := range []struct {
		name string
		env  []string
		args []string
		code int
		say  string // in what it writes to standard error
	}{
		{"unknown function", nil, []string{"invoke", "absent"}, exitNotFound, "absent"},
		{"unknown version", nil, []string{"invoke", "echo", "--version", "9"}, exitNotFound, "9"},
		{"bad name", nil, []string{"invoke", "no/slash"}, exitUsage, "no/slash"},
		{"unknown key", []string{"STARLING_KEY=stk_AAAAAAAA_" + strings.Repeat("A", 32)}, []string{"functions"}, exitDenied, "key"},
		{"no key", []string{"STARLING_KEY="}, []string{"functions"}, exitDenied, "starling login"},
		{"user's key for an admin's command", nil, []string{"nodes"}, exitDenied, "admin"},
		{"payload too large", nil, []string{"invoke", "echo", "--file", big}, exitTooLarge, "payload"},
		{"no zip", nil, []string{"deploy", notZip, "--name", "f", "--runtime", "python3.11"}, exitUsage, "zip"},
		{"unknown runtime", nil, []string{"deploy", folder, "--name", "f", "--runtime", "cobol"}, exitUsage, "cobol"},
		{"function that fails", nil, []string{"invoke", "raises"}, exitFailed, "boom"},
		{"caller's own timeout", nil, []string{"invoke", "slow", "--timeout", "200ms"}, exitTimeout, "200ms"},
		{"nobody there", []string{"STARLING_SERVER=http://127.0.0.1:1"}, []string{"functions"}, exitUnavailable, "127.0.0.1:1"},
		{"unknown command", nil, []string{"dance"}, exitUsage, "dance"},
		{"logs of an unknown function", nil, []string{"logs", "absent"}, exitNotFound, "absent"},
		{"delete of an unknown function", nil, []string{"delete", "absent"}, exitNotFound, "absent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, diag := w.run(t, c.env, c.args...)
			if code != c.code || !strings.Contains(diag, c.say) || out != "" {
				t.Errorf("starling %s: exit %d, want %d and %q on standard error\nstdout: %s\nstderr: %s", strings.Join(c.args, " "), code, c.code, c.say, out, diag)
			}
		})
	}
	t.Run("tail shows output", func(t *testing.T) {
		w.deploy(t, "prints", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    print('hello from the function')\n    return 1\n"}, nil)
		code, out, diag := w.run(t, nil, "invoke", "prints", "--tail", "--timing")
		if code != 0 || out != "1" || !strings.Contains(diag, "hello from the function") || !strings.Contains(diag, "REPORT") || !strings.Contains(diag, "init ") {
			t.Errorf("exit %d\nstdout: %s\nstderr: %s", code, out, diag)
		}
	})
	t.Run("logs of one call", func(t *testing.T) {
		id := "6f1d5a36-5555-4000-8000-000000000001"
		if code, _, diag := w.run(t, nil, "invoke", "prints", "--request-id", id); code != 0 {
			t.Fatalf("exit %d: %s", code, diag)
		}
		var out string
		if !within(20*time.Second, func() bool {
			_, out, _ = w.run(t, nil, "logs", "prints", "--request", id, "--bare")
			return strings.Contains(out, "REPORT")
		}) {
			t.Fatalf("no lines of the call: %s", out)
		}
		if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 4 || lines[1] != "hello from the function" {
			t.Errorf("the lines of one call are\n%s", out)
		}
	})
	t.Run("doctor", func(t *testing.T) {
		code, out, diag := w.run(t, nil, "doctor", "--data", t.TempDir(), "-o", "json", "--listen", freePort(t), "--http", freePort(t), "--admin", freePort(t))
		if code != 0 || !strings.Contains(out, "process driver") {
			t.Errorf("exit %d\nstdout: %s\nstderr: %s", code, out, diag)
		}
	})
	w.echoes(t)
}

// joins lets strangers try to become members.
func (w *badWorld) joins(t *testing.T) {
	_, token, diag := w.run(t, []string{"STARLING_KEY=" + w.root}, "cluster", "token")
	token = strings.TrimSpace(token)
	secret, pin, ok := strings.Cut(token, ".")
	if !ok {
		t.Fatalf("token %q: %s", token, diag)
	}
	unknown := []byte(secret) // one character is another
	if middle := &unknown[len(unknown)/2]; *middle == 'a' {
		*middle = 'b'
	} else {
		*middle = 'a'
	}
	_, hostToken, _ := w.run(t, []string{"STARLING_KEY=" + w.root}, "cluster", "token", "--roles", "host")
	for _, c := range []struct {
		name, token string
		roles       string
		code        int
		say         string
	}{
		{"token that is none", "rubbish", "all", exitUsage, "token"},
		{"unknown token", string(unknown) + "." + pin, "all", exitDenied, "token"},
		{"token of another cluster", secret + "." + strings.Repeat("ab", len(pin)/2), "all", exitDenied, "fingerprint"},
		{"more roles than the token permits", strings.TrimSpace(hostToken), "all", exitDenied, "roles"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "joiner")
			n := newTestNode(t, "joiner", dir)
			began := time.Now()
			code, _, diag := w.run(t, nil, append(n.args, "--roles", c.roles, "--join", w.node.quic, "--token", c.token)...)
			if code != c.code || !strings.Contains(diag, c.say) {
				t.Errorf("exit %d, want %d with %q\n%s", code, c.code, c.say, diag)
			}
			if took := time.Since(began); took > 30*time.Second { // it asks for a minute where nobody can let it in
				t.Errorf("it took %v to be refused", took)
			}
			if _, err := os.Stat(filepath.Join(dir, "member.json")); err == nil {
				t.Error("a refused joiner thinks it is a member")
			}
		})
	}
	if nodes, err := w.node.admin.Nodes(t.Context()); err != nil || len(nodes) != 1 {
		t.Errorf("the cluster has %d nodes (%v) after the strangers", len(nodes), err)
	}
	w.strangers(t)
	if res, err := http.Get(w.node.health + "/readyz"); err != nil || res.StatusCode != 200 {
		t.Errorf("the node is not ready after the strangers: %v", err)
	}
}
