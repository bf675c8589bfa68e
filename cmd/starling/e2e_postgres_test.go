package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
	"starling/vpcproxy/netns"
)

// startPostgres starts a real PostgreSQL at 10.7.0.10:5432 of a tenant's network and waits until it serves.
func (c *netTenant) startPostgres(t *testing.T) {
	t.Helper()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		t.Fatal("PostgreSQL is missing: run make needs")
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	dir, err := os.MkdirTemp("", "starling-postgres") // that of the test is closed to other users
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chown(dir, uid, gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	command := func(name string, args ...string) *exec.Cmd { // as user postgres
		cmd := exec.CommandContext(ctx, filepath.Join(bins[len(bins)-1], name), args...)
		cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	if text, err := command("initdb", "--no-sync", "-U", "shop", "--auth=trust", "--no-locale", "--encoding=UTF8", "-D", "data").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, text)
	}
	single := command("postgres", "--single", "-D", "data", "postgres")
	single.Stdin = strings.NewReader("CREATE TABLE customers (id bigint PRIMARY KEY, name text, city text)\nINSERT INTO customers VALUES (2, 'Grace', 'New York')\n")
	if text, err := single.CombinedOutput(); err != nil {
		t.Fatalf("make a table: %v\n%s", err, text)
	}
	if err := os.WriteFile(filepath.Join(dir, "data/pg_hba.conf"), []byte("host all all 10.7.0.2/32 trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := command("postgres", "-D", "data", "-c", "listen_addresses=10.7.0.10", "-c", "unix_socket_directories=", "-c", "fsync=off")
	server.Cancel = func() error { return server.Process.Signal(syscall.SIGINT) } // ends its connections and its processes
	server.SysProcAttr.Pdeathsig = syscall.SIGINT
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the signal comes when the thread that started it ends
		started <- netns.Do(c.inside, server.Start)
		_ = server.Wait() // it was told to end
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	c.awaitPostgres(t, filepath.Join(dir, "data/postmaster.pid"))
}

// awaitPostgres waits until the server says that it is ready, in the last line of its pid file.
func (c *netTenant) awaitPostgres(t *testing.T, file string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if text, err := os.ReadFile(file); err == nil && strings.HasSuffix(strings.TrimSpace(string(text)), "ready") {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatal("PostgreSQL is not ready after a minute")
		}
	}
}

// TestE2EFunctionAsksPostgres runs the demo's function, an unmodified program on database/sql, against a real PostgreSQL in its
// account's network; without the network, and in the other account's, it has none.
func TestE2EFunctionAsksPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	t.Parallel()
	startNetWorld(t, starling.IsolationProcess).asksPostgres(t)
}

func (w *netWorld) asksPostgres(t *testing.T) {
	t.Helper()
	w.tenants["acme"].startPostgres(t)
	const url = "DATABASE_URL=postgres://shop@10.7.0.10/postgres?sslmode=disable"
	zip := filepath.Join(repo(t), "bin/functions/customers-go.zip")
	for _, f := range []struct{ account, name, network string }{{"acme", "customers", "db"}, {"acme", "alone", "none"}, {"zeta", "neighbour", "db"}} {
		starlingCLI(t, w.env[f.account], "deploy", zip, "--name", f.name, "--isolation", string(w.isolation), "--network", f.network, "--env", url)
	}
	var found struct{ Name, Server, SeenAs string }
	w.call(t, "acme", "customers", `{"id":2}`, &found)
	if found.Name != "Grace" || found.SeenAs != "10.7.0.2" || found.Server == "" {
		t.Errorf("the database answers %+v", found)
	}
	w.testsNetwork(t)
	for name, account := range map[string]string{"alone": "acme", "neighbour": "zeta"} {
		if text, err := w.refused(t, account, "invoke", name, `{"id":2}`); err == nil || !strings.Contains(text, "ask the database") {
			t.Errorf("%s of %s: %v: %s", name, account, err, text)
		}
	}
}

// testsNetwork lets the command line tell what connections of the two accounts would meet.
func (w *netWorld) testsNetwork(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		account, target, outcome, address string
	}{
		{"acme", "db.internal:5432", "open", "10.7.0.10"}, {"acme", "10.7.0.66:5432", "denied", "10.7.0.66"}, {"acme", "evil.internal:80", "denied", "169.254.169.254"},
		{"zeta", "db.internal:5432", "refused", "10.7.0.10"},
	} {
		var r protocol.NetworkTest
		text := starlingCLI(t, w.env[c.account], "network", "test", "db", c.target, "-o", "json")
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if r.Outcome != c.outcome || r.Reached != (c.outcome == "open") || (r.Reason == "") != r.Reached || len(r.Addresses) != 1 || r.Addresses[0] != c.address {
			t.Errorf("%s of %s: %s", c.target, c.account, text)
		}
	}
	for target, says := range map[string]string{"db:nowhere": "use an address or a name with a port", "10.7.0.10": "use an address or a name with a port"} {
		if text, err := w.refused(t, "acme", "network", "test", "db", target); err == nil || !strings.Contains(text, says) {
			t.Errorf("%s: %v: %s", target, err, text)
		}
	}
	if text, err := w.refused(t, "acme", "network", "test", "other", "10.7.0.10:5432"); err == nil || !strings.Contains(text, "other") {
		t.Errorf("a network that is not there: %v: %s", err, text)
	}
}

// refused runs the command line and returns all that it says.
func (w *netWorld) refused(t *testing.T, account string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(starlingBinary(t), args...)
	cmd.Env = append(os.Environ(), w.env[account]...)
	text, err := cmd.CombinedOutput()
	return string(text), err
}
