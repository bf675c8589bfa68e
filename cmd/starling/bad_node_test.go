package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"golang.org/x/sys/unix"

	"starling"
	"starling/cluster/identity"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/transport"
	"starling/transport/quic"
)

// aloneAt makes a cluster of one node in dir; more are flags of the node.
func aloneAt(t *testing.T, dir string, more ...string) *badWorld {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	if os.Getuid() != 0 {
		t.Skip("real sandboxes need root")
	}
	n := newTestNode(t, "alone", dir)
	n.args = append(n.args, "--pool", "1")
	n.args = append(n.args, more...)
	var made struct{ Key, AdminKey string }
	out := starlingCLI(t, nil, "cluster", "init", "--data", dir, "--listen", n.quic, "--name", "alone", "-o", "json")
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("cluster init printed %q: %v", out, err)
	}
	n.http, n.admin = client.NewHTTP(n.url, made.Key), client.NewHTTP(n.url, made.AdminKey)
	n.start(t)
	t.Cleanup(n.stop)
	n.ready(t, 30*time.Second)
	return &badWorld{t: t, testCluster: &testCluster{nodes: []*testNode{n}, key: made.Key, root: made.AdminKey}, node: n}
}

// TestDiskFull fills the disk under a node: what must be written is refused with its own word, what runs goes on
// running, and with room everything works again.
func TestDiskFull(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("mounts a file system, which needs root, and runs a real node")
	}
	t.Parallel()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error // the kernel may close the files of a process that has ended a moment later
		if !within(20*time.Second, func() bool { err = unix.Unmount(disk, 0); return err != unix.EBUSY }) || err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	w := aloneAt(t, filepath.Join(disk, "node"))
	code := map[string]string{"main.py": "def handler(event, context):\n    print('a line')\n    return event\n"}
	w.deploy(t, "echo", starling.Python311, code, nil)
	w.echoes(t)
	hash, err := w.node.http.PutCode(t.Context(), strings.NewReader(string(zipOf(t, map[string]string{"main.py": "x = 1\n"}))), -1)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	refused(t, w.send(t, "POST", "/v1/code", strings.NewReader(string(zipOf(t, map[string]string{"a": strings.Repeat("z", 1000)})))), 503, starling.Unavailable, "DiskFull")
	spec := fmt.Sprintf(`{"name":"f","code":%q,"config":{"runtime":"python3.11"}}`, hash.Hash)
	refused(t, w.send(t, "POST", "/v1/functions", strings.NewReader(spec)), 503, starling.Unavailable, "DiskFull")
	for range 20 {
		w.echoes(t)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if r := w.send(t, "POST", "/v1/functions", strings.NewReader(spec)); r.status != http.StatusOK && r.status != http.StatusCreated {
		t.Errorf("with room again: %s", r)
	}
	w.deploy(t, "later", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    return 'later'\n"}, nil)
	if r := w.call(t, "later", "{}"); string(r.body) != `"later"` {
		t.Errorf("a function deployed with room again: %s", r)
	}
	id := "6f1d5a36-3333-4000-8000-000000000001"
	w.call(t, "echo", "{}", protocol.HeaderRequestID+": "+id)
	if !within(20*time.Second, func() bool { return strings.Contains(w.lines(t, "echo", id), "a line") }) {
		t.Error("the log does not go on with room again")
	}
	w.nothingLeft(t)
}

// fill writes until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		for b := make([]byte, size); err == nil; {
			_, err = f.Write(b)
		}
		err = nil
	}
}

// TestCorruptData damages what a node keeps, one thing at a time. The node must say what is wrong and end with a
// code, or serve as before; it must never panic or serve something else.
func TestCorruptData(t *testing.T) {
	t.Parallel()
	w := aloneAt(t, filepath.Join(t.TempDir(), "node"))
	w.deploy(t, "echo", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    return event\n"}, nil)
	w.echoes(t)
	w.node.stop()
	kept := w.node.dir + ".kept"
	copyTree(t, w.node.dir, kept)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		say    string // in the words of the refusal
	}{
		{"member.json is no JSON", overwrite("member.json", "{"), "member.json"},
		{"member.json is gone", remove("member.json"), "holds no node"},
		{"the node's identity is gone", remove("identity/node.pem"), "identity"},
		{"the node's identity is no certificate", overwrite("identity/node.pem", "rubbish"), "identity"},
		{"the cluster's CA is gone", remove("identity/ca.pem"), "identity"},
		{"the replica's note is no JSON", overwrite("manager/replica.json", "{"), "replica.json"},
		{"the replica's log is gone", remove("manager/raft"), "has no log"},
		{"the replica's log is noise", scramble("manager/raft"), "damaged"},
		{"the data folder is a file", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, []byte("a file"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			restore(t, kept, w.node.dir)
			c.damage(t, w.node.dir)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, starlingBinary(t), w.node.args...)
			out, err := cmd.CombinedOutput()
			if err == nil || ctx.Err() != nil || cmd.ProcessState.ExitCode() < 1 {
				t.Errorf("the node did not refuse: %v\n%s", err, out)
			}
			last := string(out)[strings.LastIndex(strings.TrimSpace(string(out)), "\nstarling: ")+1:]
			if !strings.HasPrefix(last, "starling: ") || !strings.Contains(last, c.say) || strings.Contains(string(out), "goroutine ") {
				t.Errorf("exit %d; want a sentence with %q\n%s", cmd.ProcessState.ExitCode(), c.say, out)
			}
			if left := w.node.cgroups(t); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("unpacked code and logs are noise", func(t *testing.T) {
		restore(t, kept, w.node.dir)
		scramble("code")(t, w.node.dir)
		scramble("logs")(t, w.node.dir)
		w.node.start(t)
		w.node.ready(t, 30*time.Second)
		if r := w.call(t, "echo", `{"n":1}`); r.status >= 500 && r.errorType() == "" {
			refused(t, r, 503, starling.Unavailable, "")
		}
		w.deploy(t, "fresh", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    return 'fresh'\n"}, nil)
		if r := w.call(t, "fresh", "{}"); string(r.body) != `"fresh"` {
			t.Errorf("a new function beside the noise: %s", r)
		}
		w.nothingLeft(t)
	})
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if text, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, text)
	}
}

func restore(t *testing.T, kept, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	copyTree(t, kept, dir)
}

// matching returns the one file or folder of dir that pattern names.
func matching(t *testing.T, dir, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(list) == 0 {
		all, _ := filepath.Glob(filepath.Join(dir, filepath.Dir(pattern), "*"))
		t.Fatalf("%s matches nothing of %v", pattern, all)
	}
	return list[0]
}

func overwrite(pattern, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(matching(t, dir, pattern), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(pattern string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.RemoveAll(matching(t, dir, pattern)); err != nil {
			t.Fatal(err)
		}
	}
}

// scramble turns the bytes of every file below a folder around.
func scramble(folder string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		err := filepath.WalkDir(filepath.Join(dir, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := range b {
				b[i] ^= 0x5a
			}
			return os.WriteFile(path, b, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamsOverTLS runs a node with a certificate and reads a streamed answer over HTTPS, HTTP/2 and HTTP/3.
func TestStreamsOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key, roots := selfSigned(t, dir)
	w := aloneAt(t, filepath.Join(dir, "node"), "--tls-cert", cert, "--tls-key", key)
	url := strings.Replace(w.node.url, "http:", "https:", 1)
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetHTTP2(true)
	trust := &tls.Config{RootCAs: roots}
	via1, via2 := &http.Transport{Protocols: &h1, TLSClientConfig: trust.Clone()}, &http.Transport{Protocols: &h2, TLSClientConfig: trust.Clone()}
	via3 := &http3.Transport{TLSClientConfig: trust.Clone()}
	defer via1.CloseIdleConnections()
	defer via2.CloseIdleConnections()
	defer via3.Close()
	w.node.http = client.NewHTTP(url, w.key, client.WithHTTPClient(&http.Client{Transport: via1}))
	w.deploy(t, "streams", starling.Python311, map[string]string{"main.py": "import time\ndef handler(event, context):\n    for i in range(3):\n        yield f'part{i}\\n'\n        time.sleep(0.3)\n    if event.get('do') == 'break':\n        raise ValueError('the source ran dry')\n"}, nil)
	var wg sync.WaitGroup // the transports are closed after all of them
	for name, via := range map[string]http.RoundTripper{"HTTP/1.1": via1, "HTTP/2.0": via2, "HTTP/3.0": via3} {
		wg.Go(func() {
			t.Run(name, func(t *testing.T) {
				var proto string
				streamed(t, client.NewHTTP(url, w.key, client.WithHTTPClient(&http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					res, err := via.RoundTrip(r)
					if err == nil {
						proto = res.Proto
					}
					return res, err
				})})), "streams")
				if proto != name {
					t.Errorf("the answer came over %s", proto)
				}
			})
		})
	}
	wg.Wait()
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// selfSigned writes a certificate for loopback and its key.
func selfSigned(t *testing.T, dir string) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, roots = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(parsed)
	return cert, key, roots
}

// TestNobodyToJoin starts a node whose cluster never answers: after the minute for which it asks it says so and ends. The minute passes
// beside the tests that come after this one.
func TestNobodyToJoin(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a node asks for a minute")
	}
	n := newTestNode(t, "joiner", filepath.Join(t.TempDir(), "joiner"))
	n.args = append(n.args, "--join", freePort(t), "--token", identity.NewToken([32]byte{1}).String())
	n.start(t)
	t.Cleanup(n.stop)
	t.Parallel()
	if code, says := n.gaveUp(2 * time.Minute); code != exitUnavailable || !strings.Contains(says, "check --join") {
		t.Errorf("exit %d\n%s", code, says)
	}
}

// TestCommandsSayNothingMore holds internal/quiet: a library must not write before main does.
func TestCommandsSayNothingMore(t *testing.T) {
	cmd := exec.Command(starlingBinary(t), "version")
	var diag strings.Builder
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil || diag.String() != "" || !strings.HasPrefix(string(out), "starling ") {
		t.Errorf("%v; standard output %q, standard error %q", err, out, diag.String())
	}
}

// strangers speak to a node's port with certificates that give them no right to: of another cluster's CA of the same name,
// or of the right CA with roles that may not do what they ask.
func (w *badWorld) strangers(t *testing.T) {
	other, err := identity.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := identity.LoadCA(filepath.Join(w.node.dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		ca      *identity.CA
		roles   starling.Roles
		channel transport.Channel
	}{
		{"another CA", other, starling.RoleManager | starling.RoleHost, transport.ChannelControl},
		{"a host at the replicas' channel", own, starling.RoleHost, transport.ChannelRaft},
		{"a host at the payloads' channel", own, starling.RoleHost, transport.ChannelInvoke},
		{"a scheduler at the logs' channel", own, starling.RoleScheduler, transport.ChannelLogs},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := c.ca.Issue(identity.Grant{Node: 77, Roles: c.roles}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			ep := quic.New(quic.Config{Addr: freePort(t), Identity: id, Allow: func(transport.Peer, transport.Channel) bool { return false }, Log: slog.New(slog.DiscardHandler)})
			if err := ep.Listen(); err != nil {
				t.Fatal(err)
			}
			defer ep.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s, err := ep.Open(ctx, w.node.quic, c.channel)
			if err == nil {
				defer s.Cancel()
				s.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err = s.Write([]byte("hello")); err == nil {
					_, err = s.Read(make([]byte, 1))
				}
			}
			if starling.KindOf(err) != starling.Denied {
				t.Errorf("a stranger was told %s: %v", starling.KindOf(err), err)
			}
		})
	}
}
